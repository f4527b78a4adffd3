"""Run the network of a web page on images in a process of its own, with NumPy and onnxruntime alone.

    python -I run_web.py FOLDER IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [2,N,K], logits and probabilities. Attention, where there is any, is looked at.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def load(folder: str) -> Callable[[Any], Any]:
    """Open a folder: what is returned answers images, uint8 [B,S,S,3], as OUT has it, float32 [2,B,K]."""
    session = onnxruntime.InferenceSession(
        Path(folder) / "model.onnx", providers=["CPUExecutionProvider"]
    )

    def answer(pixels: Any) -> Any:
        logits, probabilities, *attention = session.run(None, {"pixels": pixels})
        if attention:
            require_weights(attention[0])
        return np.stack([logits, probabilities])

    return answer


def require_weights(attention: Any) -> None:
    """Exit with a line if attention [B,T,G,G] is not part of what sums to 1."""
    sums = attention.sum(axis=(2, 3))
    if not (
        (attention >= 0).all() and (sums > 0).all() and (sums <= 1 + 1e-3).all()
    ):  # what is no number fails too
        sys.exit(
            f"the attention of its tokens sums to {sums.min():.3g} .. {sums.max():.3g}, which are no weights."
        )


def main(folder: str, inputs: str, answers: str) -> None:
    """Answer the first image alone, the others sixteen at a time."""
    images, network = np.load(inputs), load(folder)
    batches = [images[:1], *(images[start : start + 16] for start in range(1, len(images), 16))]
    np.save(answers, np.concatenate([network(batch) for batch in batches], axis=1))


if __name__ == "__main__":
    main(*sys.argv[1:])

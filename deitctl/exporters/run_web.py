"""Run the network of a web page on pictures in a process of its own, with NumPy and onnxruntime alone.

    python -I run_web.py FOLDER/model.onnx IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [2,N,K], logits and probabilities. Attention, where there is any, is looked at.
"""

import base64
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime


def load(model: str) -> Callable[[Any], Any]:
    """Open a file: what is returned answers pictures, uint8 [B,S,S,3], as OUT has it, float32 [2,B,K]."""
    session = open_session(model)

    def answer(pixels: Any) -> Any:
        logits, probabilities, *attention = session.run(None, {"pixels": pixels})
        if attention:
            require_weights(attention[0])
        return np.stack([logits, probabilities])

    return answer


def open_session(model: str) -> Any:
    """Start onnxruntime on the CPU."""
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def require_weights(attention: Any) -> None:
    """Exit with a line if attention [B,T,G,G] is not part of what sums to 1."""
    sums = attention.sum(axis=(2, 3))
    if not ((attention >= 0).all() and (sums > 0).all() and (sums <= 1 + 1e-3).all()):  # what is no number fails too
        sys.exit(f"the attention of its tokens sums to {sums.min():.3g} .. {sums.max():.3g}, which are no weights.")


def require_golden_sample(session: Any, answer: Callable[[Any], Any]) -> None:
    """Exit with a line if the file does not answer its own golden sample as its metadata says."""
    sample = json.loads(session.get_modelmeta().custom_metadata_map["golden_sample"])
    size = session.get_inputs()[0].shape[1]
    tile = np.frombuffer(base64.b64decode(sample["tile"]), dtype=np.uint8).reshape(8, 8, 3)
    nearest = np.arange(size) * 8 // size
    wanted = np.array(sample["logits"])
    given = answer(tile[nearest][:, nearest][None])[0][0]
    spread = float(np.std(wanted)) or 1.0  # one class alone has none
    difference = float(np.sqrt(np.mean((given - wanted) ** 2))) / spread
    if not difference <= sample["tolerance"]:  # a difference that is no number fails too
        sys.exit(f"its golden sample is answered {difference:.3g} off, where {sample['tolerance']:g} is allowed.")


def main(model: str, pictures: str, answers: str) -> None:
    """Answer the golden sample, the first picture alone, the others sixteen at a time."""
    images, answer = np.load(pictures), load(model)
    require_golden_sample(open_session(model), answer)
    batches = [images[:1], *(images[start : start + 16] for start in range(1, len(images), 16))]
    np.save(answers, np.concatenate([answer(batch) for batch in batches], axis=1))


if __name__ == "__main__":
    main(*sys.argv[1:])

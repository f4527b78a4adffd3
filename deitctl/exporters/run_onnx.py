"""Run an ONNX file on pictures in a process of its own, with NumPy and onnxruntime alone.

    python -I run_onnx.py MODEL.onnx IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [2,N,K], logits and probabilities.
"""

import sys

import numpy as np
import onnxruntime


def main(model: str, pictures: str, answers: str) -> None:
    """Answer the first picture alone, the others sixteen at a time."""
    images = np.load(pictures)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    starts = [0, *range(1, len(images), 16)]
    batches = [images[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    parts = [session.run(["logits", "probabilities"], {"pixels": batch}) for batch in batches]
    np.save(answers, np.stack([np.concatenate(output) for output in zip(*parts, strict=True)]))


if __name__ == "__main__":
    main(*sys.argv[1:])

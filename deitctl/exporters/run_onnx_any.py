"""Run an ONNX file that takes whole images in a process of its own, with NumPy and onnxruntime alone.

    python -I run_onnx_any.py MODEL.onnx IMAGES OUT.npy

IMAGES is a folder of N files, 000000.npy and so on, uint8 [H,W,3] each, of any sizes. OUT becomes float32 [2,N,K],
logits and probabilities, and seen.npy beside it uint8 [N,S,S,3], what the network looked at.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


def load(model: str) -> Callable[[Any], Any]:
    """Open a file: what is returned answers images of one size, uint8 [B,H,W,3], with float32 [2,B,K]."""
    look = open_file(model)
    return lambda pixels: np.stack(look(pixels)[:2])


def open_file(model: str) -> Callable[[Any], Any]:
    """Open a file: what is returned answers images of one size with logits, probabilities and what was seen."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["logits", "probabilities", "seen"], {"pixels": pixels})


def main(model: str, images: str, answers: str) -> None:
    """Answer the images one by one, as they have sizes of their own."""
    look = open_file(model)
    found = [look(np.load(file)[None]) for file in sorted(Path(images).iterdir())]
    logits, probabilities, seen = (np.concatenate(output) for output in zip(*found, strict=True))
    np.save(answers, np.stack([logits, probabilities]))
    np.save(Path(answers).with_name("seen.npy"), seen)


if __name__ == "__main__":
    main(*sys.argv[1:])

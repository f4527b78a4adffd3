"""Run an ONNX file on images in a process of its own, with NumPy and onnxruntime alone.

    python -I run_onnx.py MODEL.onnx IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [2,N,K], logits and probabilities; [1,N,K] of a bare network.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime


def load(model: str) -> Callable[[Any], Any]:
    """Open a file: what is returned answers images, uint8 [B,S,S,3], as OUT has it, float32 [2 or 1,B,K]."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda pixels: np.stack(answer(session, pixels))


def answer(session: Any, pixels: Any) -> Any:
    """Return the network's outputs for images [B,S,S,3], normalized by its metadata where it leaves that to us."""
    (given,) = session.get_inputs()
    if given.type == "tensor(float)":
        said = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])[
            "normalization"
        ]
        mean, std = (np.array(said[k], dtype=np.float32) for k in ("mean", "std"))
        pixels = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    outputs = [
        o.name for o in session.get_outputs() if o.name != "seen"
    ]  # pixels, of a file that resizes
    return session.run(outputs, {given.name: pixels})


def main(model: str, inputs: str, answers: str) -> None:
    """Answer the first image alone, the others sixteen at a time."""
    images, network = np.load(inputs), load(model)
    batches = [images[:1], *(images[i : i + 16] for i in range(1, len(images), 16))]
    np.save(answers, np.concatenate([network(batch) for batch in batches], axis=1))


if __name__ == "__main__":
    main(*sys.argv[1:])

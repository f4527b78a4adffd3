"""Run an OpenVINO folder on images in a process of its own, with NumPy and openvino alone.

    python -I run_openvino.py FOLDER IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [2,N,K], logits and probabilities.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import openvino

FP32 = {
    "INFERENCE_PRECISION_HINT": "f32"
}  # left out, a CPU that has bf16 computes in it, and answers otherwise


def load(folder: str, how: dict[str, str] = FP32) -> Callable[[Any], Any]:
    """Open a folder: what is returned answers images, uint8 [B,S,S,3], as OUT has it, float32 [2,B,K]."""
    network = openvino.Core().compile_model(f"{folder}/model.xml", "CPU", how)

    def answer(pixels: Any) -> Any:
        given = network(pixels)
        return np.stack([given["logits"], given["probabilities"]])

    return answer


def main(folder: str, inputs: str, answers: str) -> None:
    """Answer the first image alone, the others sixteen at a time."""
    images, network = np.load(inputs), load(folder)
    batches = [images[:1], *(images[i : i + 16] for i in range(1, len(images), 16))]
    np.save(answers, np.concatenate([network(batch) for batch in batches], axis=1))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Run a Core ML package on images in a process of its own, on macOS, with NumPy, Pillow and coremltools alone.

    python -I run_coreml.py MODEL.mlpackage IN.npy OUT.npy

IN is uint8 [N,S,S,3]; OUT becomes float32 [2,N,K], logits and probabilities.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import coremltools
import numpy as np
from PIL import Image


def load(package: str) -> Callable[[Any], Any]:
    """Open a package: what is returned answers images, uint8 [B,S,S,3], as OUT has it, float32 [2,B,K]."""
    model = coremltools.models.MLModel(package, compute_units=coremltools.ComputeUnit.CPU_ONLY)
    labels = json.loads(model.user_defined_metadata["labels"])

    def one(pixels: Any) -> Any:
        given = model.predict({"image": Image.fromarray(pixels)})
        return np.stack(
            [given["logits"].reshape(-1), [given["probabilities"][label] for label in labels]]
        )

    return lambda pixels: np.stack([one(image) for image in pixels], axis=1).astype(np.float32)


def main(package: str, images: str, answers: str) -> None:
    """Answer image by image."""
    np.save(answers, load(package)(np.load(images)))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Run a transformers folder on images in a process of its own, with transformers and without deitctl.

    python -I run_transformers.py FOLDER IN OUT.npy

Where IN is a file, uint8 [N,S,S,3], OUT becomes float32 [1,N,K], logits. Where IN is a folder of N images, the image
processor looks at them as files: OUT becomes float32 [2,N,K], first with Pillow, then as `AutoImageProcessor` chooses,
and labels.json beside it the names of the K classes.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # all there is, is in the folder

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.image_utils import load_image


def load(folder: str) -> Callable[[Any], Any]:
    """Open a folder: what is returned answers images, uint8 [B,S,S,3], with logits, float32 [1,B,K]."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def answer(pixels: Any) -> Any:
        view = processor(
            images=list(pixels), return_tensors="pt", do_resize=False, do_center_crop=False
        )
        return model(**view).logits[None].numpy()

    return answer


def load_files(folder: str) -> tuple[Callable[[Any], Any], list[str]]:
    """Open a folder: what is returned answers the names of B files, with logits, float32 [2,B,K], and the classes' names."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processors = (
        AutoImageProcessor.from_pretrained(folder, backend="pil"),
        AutoImageProcessor.from_pretrained(folder),
    )

    @torch.no_grad()
    def answer(files: Any) -> Any:
        images = [load_image(file) for file in files]
        return torch.stack(
            [model(**see(images=images, return_tensors="pt")).logits for see in processors]
        ).numpy()

    return answer, [model.config.id2label[i] for i in range(model.config.num_labels)]


def main(folder: str, given: str, answers: str) -> None:
    """Answer the first image alone, the others sixteen at a time."""
    images: Any
    if Path(given).is_dir():
        images = sorted(str(file) for file in Path(given).iterdir())
        network, labels = load_files(folder)
        Path(answers).with_name("labels.json").write_text(json.dumps(labels), encoding="utf-8")
    else:
        images, network = np.load(given), load(folder)
    batches = [images[:1], *(images[i : i + 16] for i in range(1, len(images), 16))]
    np.save(answers, np.concatenate([network(batch) for batch in batches], axis=1))


if __name__ == "__main__":
    main(*sys.argv[1:])

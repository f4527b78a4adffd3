"""Run a transformers folder on pictures in a process of its own, with transformers and without deitctl.

    python -I run_transformers.py FOLDER IN OUT.npy

Where IN is a file, uint8 [N,S,S,3], OUT becomes float32 [1,N,K], logits. Where IN is a folder of N pictures, the image
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


@torch.no_grad()
def main(folder: str, given: str, answers: str) -> None:
    """Answer the first picture alone, the others sixteen at a time."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)

    def answer(images: Any, load: Callable[[Any], Any], see: Any, **how: Any) -> Any:
        batches = [images[:1], *(images[i : i + 16] for i in range(1, len(images), 16))]
        views = (see(images=[load(image) for image in batch], return_tensors="pt", **how) for batch in batches)
        return torch.cat([model(**view).logits for view in views])

    if Path(given).is_dir():
        files = sorted(str(file) for file in Path(given).iterdir())
        with_pillow = AutoImageProcessor.from_pretrained(folder, backend="pil")
        found = [answer(files, load_image, see) for see in (with_pillow, processor)]
        labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
        Path(answers).with_name("labels.json").write_text(json.dumps(labels), encoding="utf-8")
    else:
        found = [answer(np.load(given), np.asarray, processor, do_resize=False, do_center_crop=False)]
    np.save(answers, torch.stack(found).numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])

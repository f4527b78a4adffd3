"""Compare deitctl with a direct timm forward on the same weights and files: logits and top-1, on labeled images.

    python benchmarks/parity_with_timm.py imagenet/val deit_tiny --weights deit_tiny.safetensors

Last figures (200 images of ten ImageNet classes, deit_tiny, torch 2.15, timm 1.0.31, CPU): see docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from deitctl.data.batch_transforms import normalize
from deitctl.data.decode import read_image
from deitctl.data.eval_transform import eval_transform
from deitctl.data.open import open_for_evaluation
from deitctl.events import SilentReporter
from deitctl.models.catalog import find, load_imagenet_classes
from deitctl.models.checkpoint_io import load_tensors
from deitctl.models.factory import load_model
from deitctl.models.heads import choose_head, forward_heads, fuse_heads


@torch.inference_mode()
def main() -> None:
    """Print the largest difference of the logits and both top-1 counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("model")
    parser.add_argument("--weights", required=True)
    given = parser.parse_args()
    arch = find(given.model)
    assert arch is not None
    loaded = load_model(given.model, weights=given.weights, reporter=SilentReporter())
    theirs = timm.create_model(arch.name).eval()
    theirs.load_state_dict(load_tensors(Path(given.weights)))
    transform = create_transform(**resolve_model_data_config(theirs), is_training=False)
    dataset = open_for_evaluation(given.data, SilentReporter())
    rows = {name: i for i, name in enumerate(load_imagenet_classes()[0])}
    how = choose_head("auto", loaded.model_config.head, loaded.model)
    worst, right, seconds = 0.0, [0, 0], [0.0, 0.0]
    for index, label in enumerate(dataset.labels.tolist()):
        start = time.perf_counter()
        view = eval_transform(
            read_image(Path(dataset.name(index))), loaded.model_config.preprocessing
        )
        images = normalize(torch.from_numpy(view)[None], loaded.model_config.preprocessing)
        ours = fuse_heads(forward_heads(loaded.model, images), how)
        middle = time.perf_counter()
        reference = theirs(transform(Image.open(dataset.name(index)).convert("RGB"))[None])
        seconds[0] += middle - start
        seconds[1] += time.perf_counter() - middle
        worst = max(worst, float((ours - reference).abs().max()))
        target = rows[dataset.class_names[label]]
        right[0] += int(ours.argmax()) == target
        right[1] += int(reference.argmax()) == target
    count = len(dataset.labels)
    print(f"{count} images; largest difference of logits {worst:.3g}")
    print(
        f"top-1: deitctl {right[0]}, timm {right[1]}; time of an image, deitctl / timm: {seconds[0] / seconds[1]:.2f}"
    )


if __name__ == "__main__":
    main()

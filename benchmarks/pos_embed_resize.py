"""Compare position embeddings resized as here and in timm (antialiased) with the released code's (not antialiased).

    python benchmarks/pos_embed_resize.py imagenet/val deit_tiny --weights deit_tiny.safetensors --img-size 384

Prints the relative difference of the embeddings, and what it does to logits and top-1 on labeled images. Last figures:
docs/results/evaluation.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from deitctl.data.batch_transforms import normalize
from deitctl.data.decode import read_image
from deitctl.data.eval_transform import eval_transform
from deitctl.data.open import open_for_evaluation
from deitctl.events import SilentReporter
from deitctl.models.catalog import load_imagenet_classes
from deitctl.models.checkpoint_io import load_tensors
from deitctl.models.factory import load_model
from deitctl.models.vit import VisionTransformer, resize_pos_embed


def resize_as_released(pos_embed: Tensor, grid: int, num_prefix_tokens: int) -> Tensor:
    """Return positions [1,P+G*G,D] as deit/main.py resizes them to `grid` x `grid` patches."""
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    old = round(patches.shape[1] ** 0.5)
    square = patches.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([prefix, square.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


@torch.inference_mode()
def main() -> None:
    """Print the differences."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("model")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--img-size", type=int, default=384)
    parser.add_argument("--num-images", type=int, default=100)
    options = parser.parse_args()
    loaded = load_model(
        options.model,
        weights=options.weights,
        img_size=options.img_size,
        reporter=SilentReporter(),
    )
    model, preprocessing = loaded.model, loaded.model_config.preprocessing
    assert isinstance(model, VisionTransformer)
    published = load_tensors(Path(options.weights))["pos_embed"]
    prefix, grid = model.num_prefix_tokens, options.img_size // model.arch.patch_size
    ours = resize_pos_embed(published, grid, num_prefix_tokens=prefix)
    released = resize_as_released(published, grid, prefix)
    difference = (ours - released)[:, prefix:].norm() / released[:, prefix:].norm()
    print(f"{grid} x {grid} patches; relative difference of the positions {100 * difference:.1f} %")
    dataset = open_for_evaluation(options.data, SilentReporter())
    rows = {name: i for i, name in enumerate(load_imagenet_classes()[0])}
    step = max(1, len(dataset.labels) // options.num_images)
    correct, equal, largest, count = [0, 0], 0, 0.0, 0
    for index in range(0, len(dataset.labels), step):
        view = eval_transform(read_image(Path(dataset.name(index))), preprocessing)
        images = normalize(torch.from_numpy(view)[None], preprocessing)
        logits = []
        for pos_embed in (ours, released):
            model.pos_embed.copy_(pos_embed)
            logits.append(model(images).cls)
        predictions = [int(row.argmax()) for row in logits]
        target = rows[dataset.class_names[dataset.labels[index]]]
        correct = [c + (p == target) for c, p in zip(correct, predictions, strict=True)]
        equal += predictions[0] == predictions[1]
        largest = max(largest, float((logits[0] - logits[1]).abs().max()))
        count += 1
    print(
        f"{count} images: largest difference of a logit {largest:.2f}, same top-1 class of {equal}; "
        f"correct here {correct[0]}, as released {correct[1]}"
    )


if __name__ == "__main__":
    main()

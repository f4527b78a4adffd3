"""Is `deitctl eval` what timm's validation and Hugging Face's preprocessing say, to the last image?

    python benchmarks/eval_parity.py imagenet/val --weights deit_tiny.safetensors

timm's side is its own data set, loader, transform and model with the steps of its validate.py (batches, cross-entropy
averaged over images); labels are given by WordNet id, because that script numbers the folders it finds. Hugging
Face's side is DeiTImageProcessorPil with the values of facebook/deit-*-patch16-224 (256 x 256, crop 224, ImageNet's
mean and deviation) before the same model; it needs `pip install transformers`.

Last figures: see docs/results/evaluation.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_data_config
from torch import Tensor, nn

import deitctl
from deitctl.models.catalog import find, load_imagenet_classes
from deitctl.models.checkpoint_io import load_tensors
from deitctl.models.model_config import IMAGENET_MEAN, IMAGENET_STD

Batches = Iterator[tuple[Tensor, Tensor]]
BATCH = 50


def timm_batches(model: nn.Module, data: str, crop_pct: float) -> Batches:
    """Yield timm's own batches, labels by WordNet id."""
    classes = {name: row for row, name in enumerate(load_imagenet_classes()[0])}
    here = sorted(p.name for p in Path(data).iterdir() if p.is_dir())
    config = resolve_data_config({"crop_pct": crop_pct}, model=model)
    loader = create_loader(
        create_dataset("", data, class_map={n: classes[n] for n in here}),
        config["input_size"],
        BATCH,
        is_training=False,
        use_prefetcher=False,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        num_workers=0,
    )
    yield from loader


def hf_batches(data: str) -> Batches:
    """Yield batches as Hugging Face's processor makes them."""
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

    processor = DeiTImageProcessorPil(
        size={"height": 256, "width": 256},
        crop_size={"height": 224, "width": 224},
        resample=3,
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    )
    classes = {name: row for row, name in enumerate(load_imagenet_classes()[0])}
    files = sorted(p for p in Path(data).rglob("*") if p.is_file())
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        pixels = processor([Image.open(p).convert("RGB") for p in part], return_tensors="pt")[
            "pixel_values"
        ]
        yield pixels, torch.tensor([classes[p.parent.name] for p in part])


@torch.inference_mode()
def validate(model: nn.Module, batches: Batches) -> tuple[int, int, int, float]:
    """Return images, top-1 hits, top-5 hits and the loss, as timm's validate.py counts them."""
    count, first, five, loss = 0, 0, 0, 0.0
    for images, labels in batches:
        logits = model(images)
        best = logits.topk(5, dim=1).indices == labels[:, None]
        count, first, five = (
            count + len(labels),
            first + int(best[:, :1].sum()),
            five + int(best.sum()),
        )
        loss += float(F.cross_entropy(logits, labels)) * len(labels)
    return count, first, five, loss / count


def main() -> None:
    """Print a line for each protocol."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="folder of class folders called by WordNet id")
    parser.add_argument("--model", default="deit_tiny")
    parser.add_argument("--weights", required=True)
    given = parser.parse_args()
    arch = find(given.model)
    assert arch is not None
    model = timm.create_model(arch.name).eval()
    model.load_state_dict(load_tensors(Path(given.weights)))
    rivals: dict[str, Callable[[], Batches]] = {
        "timm": lambda: timm_batches(model, given.data, arch.crop_pct),
        "deit": lambda: timm_batches(model, given.data, 0.875),
        "hf": lambda: hf_batches(given.data),
    }
    print(
        "| protocol | images | top-1 correct | original | top-5 correct | original | loss | original | difference |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for protocol, batches in rivals.items():
        ours = deitctl.evaluate(
            given.data, model=given.model, weights=given.weights, protocol=protocol
        )
        count, first, five, loss = validate(model, batches())
        hits, hits5 = round(ours.top1 * count / 100), round(ours.top5 * count / 100)
        print(
            f"| {protocol} | {ours.num_images} | {hits} | {first} | {hits5} | {five} | {ours.loss:.6f} | {loss:.6f} | "
            f"{abs(ours.loss - loss):.1e} |"
        )


if __name__ == "__main__":
    main()

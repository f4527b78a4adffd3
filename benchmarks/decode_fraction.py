"""What changes where training decodes JPEGs at a fraction of their size: pixels, CPU time, predictions, accuracy?

    python benchmarks/decode_fraction.py pixels PHOTOS [--short-side 1200] [--rounds 8] [--img-size 96 224]
    python benchmarks/decode_fraction.py predictions PHOTOS --weights FILE
    python benchmarks/decode_fraction.py training DATA --weights FILE --img-size 64 --oversampling 1 1.5

Every part compares views decoded in full with views whose reduced crop keeps 1, 1.5, 2 or 3 pixels a side for one of
the view (`lazy_jpeg.OVERSAMPLING`). `pixels`: levels of 255, and CPU time in turns. `predictions`: what DeiT-tiny makes
of the same crops, of class folders or files named by WordNet id. `training`: fine-tuning from the same seeds, evaluated
as always, on images decoded in full. `--short-side` encodes the images again that large.
Last figures: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from data_path import list_jpegs, read_jpegs

import deitctl
from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data import lazy_jpeg
from deitctl.data.lazy_jpeg import Box, LazyJpeg, open_image
from deitctl.data.transforms import resized_crop, sample_crop_box
from deitctl.models.catalog import load_imagenet_classes

FACTORS = (1.0, 1.5, 2.0, 3.0)
PAPER = AugmentConfig(crop_scale=(0.08, 1.0), hflip=0.5)
MILD = AugmentConfig(crop_scale=(0.35, 1.0), hflip=0.5)
"""As fine-tuning crops."""
IN_FULL = math.inf
"""No crop has so many pixels, so all are decoded in full."""
CROPS = 8
"""Of every image, for `predictions`."""


@contextmanager
def decoding(factor: float) -> Iterator[None]:
    """Reduce no crop below `factor` pixels a side for one of the view."""
    usual = lazy_jpeg.OVERSAMPLING
    lazy_jpeg.OVERSAMPLING = factor
    try:
        yield
    finally:
        lazy_jpeg.OVERSAMPLING = usual


class Views(NamedTuple):
    """The same crops of all images, decoded one way."""

    pixels: np.ndarray
    """uint8 [N,S,S,3]."""
    reduced: np.ndarray
    """Which of them were decoded at a fraction, [N]."""
    cpu_s: float


def cut_views(
    images: list[bytes], augment: AugmentConfig, size: int, rounds: int, factor: float
) -> Views:
    """Open, decode and resize `rounds` crops of every image, timed together."""
    pixels, reduced = [], []
    with decoding(factor):
        start = time.process_time()
        for turn in range(rounds):
            for index, data in enumerate(images):
                image = open_image(data, "image")
                draw = rng.generator(0, "view", turn, index)
                box = sample_crop_box(image.size, augment, draw)
                pixels.append(np.asarray(resized_crop(image, box, size)))
                reduced.append(is_reduced(image, box, size))
        taken = time.process_time() - start
    return Views(np.stack(pixels), np.array(reduced), taken)


def is_reduced(image: object, box: Box, size: int) -> bool:
    """Say whether this crop is decoded at a fraction."""
    width, height = box[2] - box[0], box[3] - box[1]
    return isinstance(image, LazyJpeg) and image.choose_shrink(width, height, size) > 1


def compare_pixels(images: list[bytes], rounds: int, sizes: list[int]) -> None:
    """Print how far reduced views are from those decoded in full, and what both cost."""
    print(
        "| area of crops | view | oversampling | at a fraction | mean | worst view | largest | CPU, of full |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for augment in (PAPER, MILD):
        for size in sizes:
            ratios: dict[float, list[float]] = {factor: [] for factor in FACTORS}
            views = {}
            for _ in range(3):  # in turns, because other work disturbs the clock
                full = cut_views(images, augment, size, rounds, IN_FULL)
                for factor in FACTORS:
                    views[factor] = cut_views(images, augment, size, rounds, factor)
                    ratios[factor].append(views[factor].cpu_s / full.cpu_s)
            for factor, (pixels, reduced, _) in views.items():
                levels = np.abs(pixels[reduced].astype(int) - full.pixels[reduced])
                each = levels.mean(axis=(1, 2, 3))
                figures = (
                    f"{each.mean():.2f} | {each.max():.2f} | {levels.max()}"
                    if reduced.any()
                    else " | | "
                )
                print(
                    f"| {augment.crop_scale[0]} to 1 | {size} | {factor:g} | {100 * reduced.mean():.0f} % | {figures} "
                    f"| {statistics.median(ratios[factor]):.2f} |",
                    flush=True,
                )


def compute_logits(classifier: deitctl.Classifier, views: np.ndarray) -> torch.Tensor:
    """Return the logits of views [N,S,S,3], fp32 [N,classes]."""
    pixels = np.ascontiguousarray(views.transpose(0, 3, 1, 2))
    parts = (classifier.backend.logits(pixels[at : at + 16]) for at in range(0, len(pixels), 16))
    return torch.from_numpy(np.concatenate([np.asarray(part) for part in parts]))


def compare_predictions(
    images: list[bytes], labels: list[int], weights: Path, sizes: list[int]
) -> None:
    """Print what DeiT-tiny makes of reduced views and of the same views decoded in full."""
    print(
        "| view | oversampling | crops at a fraction | mean difference of the logits | KL divergence "
        "| other top-1 | top-1 correct | in full |\n|---|---|---|---|---|---|---|---|"
    )
    augment, targets = MILD, torch.tensor(labels).repeat(CROPS)
    for size in sizes:
        classifier = deitctl.load(weights, img_size=size)
        expected = compute_logits(
            classifier, cut_views(images, augment, size, CROPS, IN_FULL).pixels
        )
        for factor in FACTORS:
            pixels, reduced, _ = cut_views(images, augment, size, CROPS, factor)
            if not reduced.any():
                continue
            logits, full, classes = (
                compute_logits(classifier, pixels[reduced]),
                expected[reduced],
                targets[reduced],
            )
            kl = F.kl_div(logits.log_softmax(1), full.softmax(1), reduction="batchmean")
            preds, full_preds = logits.argmax(1), full.argmax(1)
            print(
                f"| {size} | {factor:g} | {len(logits)} of {len(reduced)} "
                f"| {(logits - full).abs().mean():.3f} | {kl:.4f} | {(preds != full_preds).sum()} "
                f"| {(preds == classes).sum()} | {(full_preds == classes).sum()} |",
                flush=True,
            )


def compare_training(options: argparse.Namespace, size: int) -> None:
    """Print validation accuracy and loss after training on reduced views and on full ones."""
    print("| view | oversampling | seed | top-1, % | loss |\n|---|---|---|---|---|")
    results: dict[float, list[tuple[float, float]]] = {}
    for seed in range(options.seeds):
        for factor in (IN_FULL, *options.oversampling):
            with decoding(factor), tempfile.TemporaryDirectory() as folder:
                result = deitctl.train(
                    options.folder,
                    model="deit_tiny",
                    weights=options.weights,
                    recipe="finetune",
                    img_size=size,
                    epochs=options.epochs,
                    batch_size=16,
                    lr=1e-4,
                    seed=seed,
                    workers=0,  # views are cut in this process, where `decoding` holds
                    output=Path(folder, "run"),
                    **{"optim.lr_base_size": 16},
                ).evaluation
            results.setdefault(factor, []).append((result.top1, result.loss))
            print(
                f"| {size} | {factor:g} | {seed} | {result.top1:.1f} | {result.loss:.4f} |",
                flush=True,
            )
    for factor in options.oversampling:
        gaps = np.array(results[factor]) - results[IN_FULL]
        top1, loss = gaps.mean(axis=0)
        top1_std, loss_std = gaps.std(axis=0, ddof=1)
        print(
            f"{factor:g} against in full: top-1 {top1:+.2f} ± {top1_std:.2f}, "
            f"loss {loss:+.4f} ± {loss_std:.4f} (mean and deviation over seeds)"
        )


def read_labels(folder: Path) -> list[int]:
    """Read the ImageNet class of every JPEG from the WordNet id in its path."""
    rows = {wnid: row for row, wnid in enumerate(load_imagenet_classes()[0])}
    return [rows[re.findall(r"n\d{8}", str(path))[-1]] for path in list_jpegs(folder)]


def main() -> None:
    """Measure what is asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("pixels", "predictions", "training"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--short-side", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--img-size", type=int, nargs="+", default=[64, 96, 128, 160, 224])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--oversampling", type=float, nargs="+", default=[1.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "training":
        for size in options.img_size:
            compare_training(options, size)
        return
    images = read_jpegs(options.folder, options.short_side)
    if options.part == "pixels":
        compare_pixels(images, options.rounds, options.img_size)
    else:
        compare_predictions(images, read_labels(options.folder), options.weights, options.img_size)


if __name__ == "__main__":
    main()

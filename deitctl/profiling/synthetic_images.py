"""Synthetic images of ImageNet's size, for a benchmark without data."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from deitctl import rng
from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.subsets import Subset
from deitctl.models.catalog import load_imagenet_classes

WIDTH, HEIGHT = 500, 375
"""The most frequent size of ImageNet's images, in pixels."""
MEAN_BYTES = 115_000
"""Of ImageNet's training images: 147.9 GB of them in their tar."""
GRAIN_STD, QUALITY = 34.0, 90
"""Gray levels, and JPEG quality, that together give `MEAN_BYTES`."""
NUM_FILES = 64
NUM_TRAIN, NUM_VAL = 1_281_167, 50_000
"""ImageNet's; each file stands for many of them."""


def write_synthetic_dataset(folder: Path) -> tuple[ImageDataset, ImageDataset]:
    """Write `NUM_FILES` JPEGs, and return training and validation sets that repeat them.

    The same bytes every time. Repeated reads come from the page cache, as those of a data set that
    fits into memory do.
    """
    paths = []
    for number in range(NUM_FILES):
        path = folder / f"{number}.jpg"
        path.write_bytes(synthesize_jpeg(number))
        paths.append(str(path))
    class_names, _ = load_imagenet_classes()
    files = FileDataset(paths, np.arange(NUM_FILES, dtype=np.int64), class_names)
    return _repeat(files, NUM_TRAIN), _repeat(files, NUM_VAL)


def synthesize_jpeg(number: int) -> bytes:
    """Return a JPEG of a gradient with grain, as large and as slow to decode as a photograph."""
    draw = rng.generator("made-up image", number)
    x, y = np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT)[:, None]
    phases, waves = draw.uniform(0, 2 * np.pi, 3), draw.uniform(1, 6, (3, 2))
    slow = np.stack([np.sin(phases[c] + waves[c, 0] * x + waves[c, 1] * y) for c in range(3)], -1)
    grain = draw.normal(0, GRAIN_STD, (HEIGHT, WIDTH, 1))  # of brightness alone, as film has it
    pixels = np.clip(128 + 90 * slow + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _repeat(dataset: FileDataset, count: int) -> Subset:
    """Repeat a data set's images, under labels that go through all classes."""
    labels = np.arange(count, dtype=np.int64) % len(dataset.class_names)
    indices = np.arange(count, dtype=np.int64) % NUM_FILES
    return Subset(dataset, indices, labels, dataset.class_names)

"""Images as large as ImageNet's, made up, for a speed that does not depend on which data is at hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from deitctl import rng
from deitctl.data.dataset import FileSource, Source, Subset
from deitctl.models.catalog import imagenet_classes

WIDTH, HEIGHT = 500, 375
"""Pixels: the commonest size of ImageNet's images."""
BYTES = 115_000
"""About as many as ImageNet's training images have in the mean: their tar has 147.9 GB."""
GRAIN, QUALITY = 34.0, 90
"""Gray levels of the grain's deviation, and the JPEG quality: together they give `BYTES`."""
FILES = 64
TRAIN, VALIDATION = 1_281_167, 50_000
"""ImageNet's images; each file stands for many of them."""


def imagenet_like(folder: Path) -> tuple[Source, Source]:
    """Write `FILES` JPEGs into a folder and return training and validation images, as many as ImageNet's.

    The same bytes every time. What is read again and again comes from the system's cache of files, as does a data set
    that fits into memory.
    """
    paths = []
    for number in range(FILES):
        path = folder / f"{number}.jpg"
        path.write_bytes(synthetic_images(number))
        paths.append(str(path))
    names, _ = imagenet_classes()
    whole = FileSource(paths, np.arange(FILES, dtype=np.int64), names)
    return _many(whole, TRAIN), _many(whole, VALIDATION)


def synthetic_images(number: int) -> bytes:
    """Return a JPEG of a colored gradient with grain, which makes it as long as a photograph, and as slow to decode."""
    draw = rng.generator("made-up image", number)
    x, y = np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT)[:, None]
    phases, waves = draw.uniform(0, 2 * np.pi, 3), draw.uniform(1, 6, (3, 2))
    slow = np.stack([np.sin(phases[c] + waves[c, 0] * x + waves[c, 1] * y) for c in range(3)], -1)
    grain = draw.normal(0, GRAIN, (HEIGHT, WIDTH, 1))  # of brightness alone, as film has it
    pixels = np.clip(128 + 90 * slow + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _many(source: FileSource, count: int) -> Subset:
    """Repeat a source's images, under labels that go through all classes."""
    labels = np.arange(count, dtype=np.int64) % len(source.class_names)
    return Subset(source, np.arange(count, dtype=np.int64) % FILES, labels, source.class_names)

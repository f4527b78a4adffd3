"""Which copies of an image does `deitctl check` know again, and how far apart are different images?

    python benchmarks/near_duplicates.py PHOTOS

PHOTOS is any data set without near copies. Prints the share of copies within each distance for each way to change a
image, then the number of pairs of different images within each. Last figures: docs/results/check.md.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from deitctl.data.near_duplicates import MAX_DISTANCE, difference_hash
from deitctl.data.open import open_dataset
from deitctl.events import SilentReporter

DISTANCES = (3, 6, MAX_DISTANCE, 12, 16, 20, 24)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Compress and decode again."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def shrunk(image: Image.Image, share: float) -> Image.Image:
    """Resize both sides to a share."""
    return image.resize(
        (round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC
    )


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Cut a share of each side away, half of it at either end."""
    x, y = round(image.width * share / 2), round(image.height * share / 2)
    return image.crop((x, y, image.width - x, image.height - y))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG at quality 90": lambda i: jpeg(i, 90),
    "JPEG at quality 50": lambda i: jpeg(i, 50),
    "JPEG at quality 20": lambda i: jpeg(i, 20),
    "half the size": lambda i: shrunk(i, 0.5),
    "half the size, JPEG at quality 50": lambda i: jpeg(shrunk(i, 0.5), 50),
    "a quarter of the size": lambda i: shrunk(i, 0.25),
    "20 % lighter": lambda i: i.point(lambda v: min(255, round(v * 1.2))),
    "greyscale": lambda i: i.convert("L").convert("RGB"),
    "2 % of each side cut off": lambda i: cropped(i, 0.02),
    "5 % of each side cut off": lambda i: cropped(i, 0.05),
    "10 % of each side cut off": lambda i: cropped(i, 0.10),
    "mirrored": lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def bits(images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes as bits [N,128], and which images have one [N]."""
    hashes = [difference_hash(p) for p in images]
    rows = [np.unpackbits(np.frombuffer(h or bytes(16), np.uint8)) for h in hashes]
    return np.stack(rows), np.array([bool(h) for h in hashes])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos")
    data = open_dataset(parser.parse_args().photos, SilentReporter())
    datasets = [s for s in (data.train, data.val, data.test, data.unsplit) if s is not None]
    images = [s.read(i) for s in datasets for i in range(len(s.labels))]
    own, known = bits(images)
    print(f"{len(images)} images, {len(images) - known.sum()} too plain or small for a hash")
    print("within".ljust(36), *(f"{d:>8}" for d in DISTANCES))
    for name, change in COPIES.items():
        copies, found = bits([change(p) for p in images])
        apart = np.where(known & found, (own ^ copies).sum(axis=1), 999)
        print(name.ljust(36), *(f"{100 * (apart <= d).mean():7.1f}%" for d in DISTANCES))
    sure = own[known].astype(np.float32)
    once = sure @ (1 - sure).T
    apart = (once + once.T)[np.triu_indices(len(sure), 1)]
    print(f"of {len(apart)} pairs".ljust(36), *(f"{int((apart <= d).sum()):>8}" for d in DISTANCES))
    print(f"the two most alike are {int(apart.min())} apart")


if __name__ == "__main__":
    main()

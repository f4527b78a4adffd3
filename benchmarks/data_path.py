"""What does a training view cost beside timm's? Decoding and the whole DeiT recipe, of the same JPEGs, on one thread.

    python benchmarks/data_path.py FOLDER [--short-side 400] [--rounds 20]

Rounds over the images are ours, from files and from packed shards, and timm's by turns, in CPU time; the ratio is of
the same round. With `--short-side` the images are first encoded again that large, at quality 90. What decoding
at a fraction changes: decode_fraction.py. Last figures: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import timm.data
import torch
from PIL import Image

from deitctl import rng
from deitctl.data.dataset import ImageDataset
from deitctl.data.decode import decode
from deitctl.data.eval_transform import to_chw
from deitctl.data.lazy_jpeg import open_image
from deitctl.data.open import open_dataset
from deitctl.data.rand_augment import parse_rand_augment
from deitctl.data.transforms import resized_crop, sample_crop_box, train_transform
from deitctl.events import SilentReporter
from deitctl.packing.pack import pack
from deitctl.recipes import RECIPES

T = TypeVar("T")
AUGMENT = RECIPES["paper"].augment
SIZE = 224
PACKS: dict[str, dict[str, Any]] = {
    "shards": {},
    "shards of 256": {"max_size": 256},
    "one of pixels": {"max_size": 256, "raw": True},
}


def list_jpegs(folder: Path) -> list[Path]:
    """List the folder's JPEGs in order."""
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]


def read_jpegs(folder: Path, short_side: int) -> list[bytes]:
    """Read the folder's JPEGs, made as large as asked."""
    images = [path.read_bytes() for path in list_jpegs(folder)]
    return [enlarge(data, short_side) for data in images] if short_side else images


def enlarge(data: bytes, short_side: int) -> bytes:
    """Encode an image again with a short side of so many pixels."""
    image, buffer = decode(data, "image"), io.BytesIO()
    scale = short_side / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


class Clock:
    """CPU milliseconds, kept by name."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, work: Callable[..., T], *arguments: object) -> T:
        start = time.process_time()
        result = work(*arguments)
        self.times[name].append(1e3 * (time.process_time() - start))
        return result

    def mean(self, name: str) -> float:
        return statistics.fmean(self.times[name])


def ours(dataset: ImageDataset, turn: int, index: int) -> object:
    """Read, decode and render one of our views."""
    return train_transform(dataset.open(index), AUGMENT, SIZE, 0, turn, index)


def whole_views(images: list[bytes], rounds: int, recipe: Any) -> None:
    """Time our views against timm's, round by round, from a folder and from shards of it."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "folder")
        for number, data in enumerate(images):
            path = folder / f"class{number % 2}" / f"{number:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        paths = sorted(folder.rglob("*.jpg"))
        datasets = {
            "files": folder,
            **{name: Path(root, name.replace(" ", "")) for name in PACKS},
        }
        for name, options in PACKS.items():
            pack(str(folder), str(datasets[name]), workers=0, **options)
        opened = {
            name: open_dataset(str(path), SilentReporter()).unsplit
            for name, path in datasets.items()
        }
        for turn in range(rounds + 1):
            for name, dataset in opened.items():
                clock(
                    name,
                    lambda turn=turn, dataset=dataset: [
                        ours(dataset, turn, n) for n in range(len(paths))
                    ],
                )
            clock("timm", lambda: [recipe(Image.open(path).convert("RGB")) for path in paths])
    # the first warms up
    times = {name: np.array(taken[1:]) / len(images) for name, taken in clock.times.items()}
    print(
        f"{len(images)} images, {rounds} rounds; timm, from files: {np.median(times['timm']):.2f} ms\n"
    )
    print("| a view from | ms | timm's time is | of 80 % of the rounds |\n|---|---|---|---|")
    for name in opened:
        low, middle, high = np.percentile(times["timm"] / times[name], [10, 50, 90])
        print(
            f"| {name} | {np.median(times[name]):.2f} | {middle:.2f} times that | {low:.2f} to {high:.2f} |"
        )
    print()


def decoded(data: bytes) -> Image.Image:
    """Decode as timm's data sets do."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def stages(images: list[bytes], rounds: int, recipe: Any) -> None:
    """Time each stage of both; timm's recipe is crop, flip, RandAugment, and the way to a tensor."""
    mine, theirs, augment = Clock(), Clock(), parse_rand_augment(AUGMENT.rand_augment)
    crop, flip, their_augment, *to_tensor = recipe.transforms
    names = (
        "header, limits",
        "draw a crop",
        "decode",
        "crop, resize",
        "RandAugment",
        "to channels first",
    )
    for turn in range(rounds):
        for index, data in enumerate(images):
            img = mine(names[0], open_image, data, "image")
            draw = rng.generator(0, "view", turn, index)
            box = mine(names[1], sample_crop_box, img.size, AUGMENT, draw)
            mine(names[2], img.crop, (0, 0, 1, 1))  # all of it is decoded for one pixel
            image = mine(names[3], resized_crop, img, box, SIZE)
            image = mine(names[4], augment, image, draw)
            mine(names[5], to_chw, image)
            image = theirs(names[3], crop, theirs(names[2], decoded, data))
            tensor = theirs(names[4], their_augment, flip(image))
            for step in to_tensor:
                tensor = step(tensor)
    print("| stage | ours, ms | timm, ms |\n|---|---|---|")
    for name in names:
        print(
            f"| {name} | {mine.mean(name):.2f} | {f'{theirs.mean(name):.2f}' if theirs.times[name] else ''} |"
        )
    print()


def main() -> None:
    """Measure what is asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--short-side", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = read_jpegs(options.folder, options.short_side)
    recipe = timm.data.create_transform(
        input_size=SIZE,
        is_training=True,
        color_jitter=0.3,
        auto_augment=AUGMENT.rand_augment,
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )
    for measure in (whole_views, stages):
        measure(images, options.rounds, recipe)


if __name__ == "__main__":
    main()

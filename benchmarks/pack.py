"""What does an image cost from a folder, a tar and packed shards; what do smaller ones change, how soon are they open?

    python benchmarks/pack.py speed PHOTOS [--count 300] [--side 400] [--rounds 9]
    python benchmarks/pack.py predictions PHOTOS --weights FILE
    python benchmarks/pack.py start [--images 1280000]

PHOTOS is a folder of JPEGs. `speed` makes others of them by crops and flips, and reads all in a drawn order, one
storage after the other in every round, from the system's cache.
Last figures: docs/results/data.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

from deitctl.data.dataset import ImageDataset
from deitctl.data.decode import decode, read_image
from deitctl.data.open import open_dataset
from deitctl.events import SilentReporter
from deitctl.packing.pack import pack

FORMS: dict[str, dict[str, object]] = {
    "shards": {},
    "shards-256": {"max_size": 256},
    "shards-raw": {"raw": True},
    "parquet": {"to": "parquet"},
}

OPEN = """
import sys, time
from pathlib import Path
from deitctl.data.readers.packed_shards import open_packed

def own():
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])

before, begun = own(), time.process_time()
source = open_packed(Path(sys.argv[1]))["train"]
source.read_bytes(7)
print(f"{time.process_time() - begun:.3f} s of CPU time, {(own() - before) / 1024:.1f} MiB")
"""


def make_images(photos: Path, folder: Path, count: int, side: int) -> None:
    """Write images of a short side, ten classes of them."""
    draw = np.random.default_rng(0)
    for number, path in enumerate(islice(cycle(sorted(photos.iterdir())), count)):
        image = read_image(path)
        width, height = (int(length * draw.uniform(0.8, 1)) for length in image.size)
        left, top = (
            int(draw.integers(0, a - b + 1))
            for a, b in zip(image.size, (width, height), strict=True)
        )
        cut = image.crop((left, top, left + width, top + height))
        scale = side / min(width, height)
        cut = cut.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        target = folder / f"class{number % 10}" / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        (cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number % 2 else cut).save(
            target, quality=92
        )


def storages(photos: Path, root: Path, count: int, side: int) -> dict[str, Path]:
    """Put the same images into a folder, a tar and shards."""
    make_images(photos, root / "folder", count, side)
    with tarfile.open(root / "x.tar", "w") as archive:
        archive.add(root / "folder", ".")
    found = {"folder": root / "folder", "tar": root / "x.tar"}
    for name, options in FORMS.items():
        pack(str(root / "folder"), str(root / name), **options)  # type: ignore[arg-type]
        found[name] = root / name
    return found


def files_of(path: Path) -> list[Path]:
    """List the files that a storage is made of."""
    return [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]


def forget(path: Path) -> None:
    """Have the system give back the pages of a storage, so that it is read from the disk."""
    for file in files_of(path):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def seconds_of(work: Callable[[int], object], order: list[int]) -> float:
    """Return the CPU time of a piece of work for each image."""
    begun = time.process_time()
    for index in order:
        work(index)
    return (time.process_time() - begun) / len(order)


def speed(options: argparse.Namespace) -> None:
    """Print milliseconds of CPU time an image, and what they are of the folder's."""
    with tempfile.TemporaryDirectory() as folder:
        paths = storages(options.photos, Path(folder), options.count, options.side)
        datasets: dict[str, ImageDataset] = {}
        for name, path in paths.items():
            whole = open_dataset(str(path), SilentReporter()).unsplit
            assert whole is not None
            datasets[name] = whole
        ways = ("bytes", "pixels")
        times: dict[tuple[str, str], list[float]] = {
            (way, name): [] for way in ways for name in datasets
        }
        for turn in range(options.rounds + 1):
            order = np.random.default_rng(turn).permutation(options.count).tolist()
            for way in ways:
                for name, dataset in datasets.items():
                    work = dataset.read_bytes if way == "bytes" else dataset.read
                    seconds = seconds_of(work, order)
                    times[way, name] += [seconds] * bool(turn)  # the first round warms up
        sizes = {
            name: sum(f.stat().st_size for f in files_of(path)) for name, path in paths.items()
        }
        print("| | MB | " + " | ".join(ways) + " |\n|---|---|" + "---|" * len(ways))
        for name in datasets:
            cells = [_cell(times[way, name], times[way, "folder"]) for way in ways]
            print(f"| {name} | {sizes[name] / 1e6:.1f} | " + " | ".join(cells) + " |")


def _cell(seconds: list[float], others: list[float]) -> str:
    ratio = statistics.median(a / b for a, b in zip(seconds, others, strict=True))
    return f"{1e3 * statistics.median(seconds):.3f} ms ({ratio:.2f})"


def predictions(options: argparse.Namespace) -> None:
    """Print how a model's predictions change with the size, quality and subsampling of packed images."""
    import torch

    from deitctl.data.eval_transform import eval_transform
    from deitctl.models.factory import load_model
    from deitctl.packing import encode as packing

    loaded = load_model(options.model, weights=options.weights, reporter=SilentReporter())
    pre = loaded.model_config.preprocessing
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (pre.mean, pre.std))
    with tempfile.TemporaryDirectory() as folder:
        make_images(options.photos, Path(folder), options.count, options.side)
        images = [read_image(path) for path in sorted(Path(folder).rglob("*.jpg"))]

    def logs(imgs: list[Image.Image]) -> torch.Tensor:
        views = [(torch.from_numpy(eval_transform(p, pre)) / 255 - mean) / std for p in imgs]
        with torch.inference_mode():
            return torch.cat(
                [loaded.model(torch.stack(views[n : n + 32])).cls for n in range(0, len(views), 32)]
            ).log_softmax(1)

    expected = logs(images)
    print(
        "| short side | JPEG | kB an image | KL divergence | different top-1 |\n|---|---|---|---|---|"
    )
    for side in (pre.resize_to, 256, 292):
        for quality, subsampling in [
            (0, "none"),
            *((q, s) for q in (85, 90, 95) for s in ("4:2:0", "4:4:4")),
        ]:
            packing.QUALITY, packing.SUBSAMPLING = quality, subsampling
            files = [packing._encode(i, packing.Encoding(side, raw=not quality)) for i in images]
            found = logs([decode(f, "made") for f in files if f])
            apart = float((expected.exp() * (expected - found)).sum(1).mean())
            other = int((found.argmax(1) != expected.argmax(1)).sum())
            kind = f"{quality}, {subsampling}" if quality else "pixels"
            kilobytes = sum(len(f or b"") for f in files) / len(files) / 1e3
            print(f"| {side} | {kind} | {kilobytes:.1f} | {apart:.4f} | {other} |")


def start(options: argparse.Namespace) -> None:
    """Print how long packed shards of many images take to open, and the memory of it, in a fresh process each."""
    from deitctl.data.arrays import StringArray
    from deitctl.data.index import Listing
    from deitctl.data.readers.packed_shards import INDEX, write_index
    from deitctl.data.shard_files import Spans

    count, classes, per_shard = options.images, 1000, 1000
    numbers = np.arange(count)
    labels = numbers * classes // count
    with tempfile.TemporaryDirectory() as folder:
        names = StringArray.from_strings(
            f"n{label:08}/n{label:08}_{n}.JPEG" for n, label in enumerate(labels.tolist())
        )
        spans = Spans(
            (numbers // per_shard).astype(np.int32),
            numbers % per_shard * 4096 + 2560,
            np.full(count, 1024, np.int64),
            # of zeros, which the holes of the shards are
            np.full(count, zlib.crc32(bytes(2560 + 1024)), np.uint32),
            np.ones(count, np.uint64),
            np.full(count, 2560, np.uint32),
        )
        part = Listing(names, labels, tuple(f"n{label:08}" for label in range(classes)), spans)
        shards = [(f"train-{n:06}.tar", per_shard * 4096) for n in range(-(-count // per_shard))]
        for name, size in shards:
            with Path(folder, name).open("wb") as file:
                file.truncate(size)
        with Path(folder, INDEX).open("wb") as file:
            write_index(file, {"train": part}, {"train": shards}, value_range=None, is_rgb=False)
            size = file.tell()
        print(f"{count:,} images in {len(shards):,} shards: the index has {size / 1e6:.0f} MB")
        for _ in range(options.rounds):
            for what in ("from disk", "cached"):
                if what == "from disk":
                    forget(Path(folder, INDEX))
                done = subprocess.run(
                    [sys.executable, "-c", OPEN, folder], capture_output=True, text=True, check=True
                )
                print(f"open, {what}: {done.stdout.strip()}")


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("speed", "predictions", "start"))
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--side", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=1_280_000)
    parser.add_argument("--model", default="deit_tiny")
    parser.add_argument("--weights", default="")
    options = parser.parse_args()
    {"speed": speed, "predictions": predictions, "start": start}[options.what](options)


if __name__ == "__main__":
    main()

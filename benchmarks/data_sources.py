"""Do shards, Parquet and tables train as fast as a folder, and as timm's and webdataset's loaders of the same images?

    python benchmarks/data_sources.py FOLDER [--images 400] [--rounds 5] [--workers 2] [--source wds "timm wds" ...]
    python benchmarks/data_sources.py --memory DATA [--workers 8] [--epochs 4] [--steps 50]

FOLDER has train/ and val/ of class folders. So many of its training images, evenly from every class, are written in
each form by the library of that form. Rounds are epochs of every source by turns: its bytes alone, its training batches
in one process (CPU time), and its training batches from loader processes (CPU time of all processes, and images/s by
the clock). A ratio is that to our folder in the same round. timm and webdataset have timm's transforms of the same
recipe: what differs between theirs and ours is the decoder, the transforms and the loader, between two rows of one
library the source. `--memory` prints the MiB that a parent and its loaders hold together in each epoch, shared pages
by their share. Last figures: docs/results/data.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import same_from_every_source
import torch
from names_in_memory import everyone
from same_from_every_source import WRITERS, choose_images, list_samples

from deitctl.config import AugmentConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.epoch_steps import steps_per_epoch
from deitctl.data.loader import build_train_loader, build_view_loader
from deitctl.data.open import open_dataset
from deitctl.data.samplers import TrainBatches
from deitctl.events import SilentReporter
from deitctl.recipes import RECIPES

SIZE, BATCH_SIZE = 224, 64
AUGMENT = RECIPES["paper"].augment
Epochs = Callable[[int, int, int], int]
"""Makes the batches of some epochs (the first, how many) with so many loaders; returns how many images they had."""


def open_train(data: Path) -> ImageDataset:
    """Open the training images of a source."""
    splits = open_dataset(str(data), SilentReporter())
    dataset = splits.unsplit or splits.train
    assert dataset is not None
    return dataset


def make_epochs(dataset: ImageDataset, first: int, count: int, workers: int) -> int:
    """Make the training batches of some epochs of ours."""
    batch_size = min(BATCH_SIZE, len(dataset.labels))
    steps = steps_per_epoch(len(dataset.labels), batch_size)
    batches = TrainBatches(
        len(dataset.labels), batch_size, seed=0, epochs=first + count, first_step=first * steps
    )
    loader = build_train_loader(dataset, AUGMENT, SIZE, batches, workers=workers, pin_memory=False)
    return sum(len(batch.keys) for batch in loader)


def read_epoch(dataset: ImageDataset, epoch: int) -> int:
    """Read the bytes of every image, in the order of an epoch."""
    keys = TrainBatches(len(dataset.labels), len(dataset.labels), seed=epoch, epochs=1)
    return sum(len(dataset.read_bytes(key.index)) > 0 for batch in keys for key in batch)


def open_theirs(root: Path, count: int) -> dict[str, Epochs]:
    """Return epochs of timm's loaders, and of plain webdataset's, of what was written below `root`."""
    import timm.data
    import webdataset

    options: dict[str, Any] = {
        "input_size": (3, SIZE, SIZE),
        "is_training": True,
        "color_jitter": AUGMENT.color_jitter or 0.3,
        "auto_augment": AUGMENT.rand_augment,
        "interpolation": "bicubic",
    }
    transform = timm.data.create_transform(**options, use_prefetcher=True)
    shards = sorted(str(path) for path in (root / "wds").glob("train-*.tar"))

    def load_timm(name: str, folder: Path, _: int, epochs: int, workers: int) -> int:
        dataset = timm.data.create_dataset(
            name, str(folder), split="train", is_training=True, batch_size=BATCH_SIZE
        )
        loader = timm.data.create_loader(
            dataset,
            batch_size=BATCH_SIZE,
            num_workers=workers,
            use_prefetcher=True,
            device=torch.device("cpu"),
            persistent_workers=workers > 0,
            **options,
        )
        # Without what it does on the device, which ours leaves to the device too.
        return sum(len(images) for _ in range(epochs) for images, _ in loader.loader)

    def load_webdataset(_: int, epochs: int, workers: int) -> int:
        pipeline = (
            webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0)
            .shuffle(1000)
            .decode("pil")
            .to_tuple("jpg", "cls")
            .map_tuple(lambda image: transform(image.convert("RGB")), int)
            .batched(BATCH_SIZE)
        )
        loader = webdataset.WebLoader(
            pipeline, batch_size=None, num_workers=workers, persistent_workers=workers > 0
        )
        return sum(len(images) for _ in range(epochs) for images, _ in loader)

    write_timm_info(root / "wds", count)
    return {
        "timm folder": functools.partial(load_timm, "", root / "folder"),
        "timm wds": functools.partial(load_timm, "wds/", root / "wds"),
        "timm hfds": functools.partial(load_timm, f"hfds/{root / 'parquet'}", root / "hf-cache"),
        "webdataset": load_webdataset,
    }


def write_timm_info(folder: Path, count: int) -> None:
    """Write what timm's reader wants to know of shards."""
    import tarfile

    names = sorted(path.name for path in folder.glob("train-*.tar"))
    lengths = []
    for name in names:
        with tarfile.open(folder / name) as archive:
            lengths.append(sum(member.endswith(".jpg") for member in archive.getnames()))
    assert sum(lengths) == count
    train = {"name": "train", "filenames": names, "shard_lengths": lengths, "num_samples": count}
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": train}}))


def read_cpu_seconds() -> float:
    """Return what this process and its processes that ended have taken."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Meter:
    """What epochs cost, by measure and source, an image."""

    def __init__(self) -> None:
        self.taken: dict[tuple[str, str], list[float]] = defaultdict(list)

    def __call__(self, measure: str, source: str, epoch: Callable[[], int]) -> None:
        """Run an epoch; note CPU seconds of all processes, and seconds by the clock, an image."""
        start, clock = read_cpu_seconds(), time.perf_counter()
        count = epoch()  # timm fills the last batch of shards
        self.taken[measure, source].append((read_cpu_seconds() - start) / count)
        self.taken[f"{measure}, clock", source].append((time.perf_counter() - clock) / count)

    def describe(self, measure: str, source: str, base: str) -> tuple[float, float]:
        """Return the median seconds, and the median ratio to another source's of the same round."""
        ours, others = (np.array(self.taken[measure, name][1:]) for name in (source, base))
        return float(np.median(ours)), float(np.median(ours / others))


def measure(options: argparse.Namespace, root: Path) -> None:
    """Write the sources, run the rounds, print the table."""
    # Shards for every loader of webdataset's, which share out whole ones.
    same_from_every_source.PER_SHARD = max(1, options.images // (2 * max(1, options.workers)))
    choose_images(options.folder / "train", options.images, root / "folder" / "train")
    choose_images(options.folder / "val", 10, root / "folder" / "val")
    for name, write in WRITERS.values():
        for split in ("train", "val"):
            write(list_samples(root / "folder" / split), root / name, split)
    count = len(list_samples(root / "folder" / "train"))
    places = {"folder": "folder"} | {title: name for title, (name, _) in WRITERS.items()}
    wanted = options.source or [*places, "timm folder", "timm wds", "timm hfds", "webdataset"]
    ours = {name: open_train(root / place) for name, place in places.items() if name in wanted}
    ours = {"folder": ours.get("folder") or open_train(root / "folder"), **ours}
    theirs = {name: epoch for name, epoch in open_theirs(root, count).items() if name in wanted}
    epochs: dict[str, Epochs] = {
        name: functools.partial(make_epochs, dataset) for name, dataset in ours.items()
    } | theirs
    meter = Meter()
    for number in range(options.rounds + 1):  # the first warms up
        for name, dataset in ours.items():
            meter("bytes", name, functools.partial(read_epoch, dataset, number))
        for name, epoch in epochs.items():
            meter("views", name, functools.partial(epoch, number, 1, 0))
        for name, epoch in epochs.items():
            if options.workers:
                meter(
                    "loaders",
                    name,
                    functools.partial(epoch, number, options.epochs, options.workers),
                )
        print(f"round {number} of {options.rounds}", file=sys.stderr)
    print(f"{count} images of {SIZE} pixels, {options.rounds} rounds\n")
    print_table(meter, list(epochs), options)


def print_table(meter: Meter, names: Iterable[str], options: argparse.Namespace) -> None:
    """Print what an image of each source costs."""
    head = ["source", "bytes, µs", "ratio", "view, ms", "ratio"]
    if options.workers:
        head += [f"{options.workers} loaders, ms", "ratio", "images/s", "ratio"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name in names:
        row = ["", ""]
        if ("bytes", name) in meter.taken:
            seconds, ratio = meter.describe("bytes", name, "folder")
            row = [f"{1e6 * seconds:.0f}", f"{ratio:.2f}"]
        for kind in ("views", "loaders") if options.workers else ("views",):
            seconds, ratio = meter.describe(kind, name, "folder")
            row += [f"{1e3 * seconds:.2f}", f"{ratio:.2f}"]
        if options.workers:
            seconds, ratio = meter.describe("loaders, clock", name, "folder")
            row += [f"{1 / seconds:.0f}", f"{1 / ratio:.2f}"]
        print("| " + " | ".join((name, *row)) + " |")


def measure_memory(dataset: ImageDataset, workers: int, epochs: int, steps: int) -> list[float]:
    """Return the MiB of this process and its loaders together after some batches of each epoch.

    Images are resized to 16 pixels: what grows is names, labels, index and order, not pixels.
    """
    count, memory = len(dataset.labels), list[float]()
    per_epoch = steps_per_epoch(count, BATCH_SIZE)
    steps = min(steps, per_epoch)
    first_steps = (epoch * per_epoch for epoch in range(epochs))
    keys = (
        batch
        for first in first_steps
        for batch in islice(
            TrainBatches(count, BATCH_SIZE, seed=0, epochs=epochs, first_step=first), steps
        )
    )
    augment = AugmentConfig(crop_scale=(0.2, 1.0), hflip=0.5)
    loader = build_view_loader(dataset, augment, 16, 0, keys, workers=workers, pin_memory=False)
    for number, _ in enumerate(loader, start=1):
        if number % steps == steps - 1:  # the loaders end with the last batch
            memory.append(everyone())
    return memory


def main() -> None:
    """Measure what is asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--source", nargs="*")
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        dataset = open_train(options.memory)
        values = measure_memory(dataset, options.workers, options.epochs, options.steps)
        print(", ".join(f"{value:.0f}" for value in values), "MiB")
        return
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"HF_HOME": f"{scratch}/hf", "DEITCTL_CACHE": f"{scratch}/cache"}
        measure(options, Path(scratch))


if __name__ == "__main__":
    main()

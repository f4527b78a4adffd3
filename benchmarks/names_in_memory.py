"""What do a million file names cost? Time to list them, to start with the index, and memory with loader processes.

    python benchmarks/names_in_memory.py [--classes 1000] [--images 1300] [--workers 8] [--start fork|spawn]

Makes that many hard links to one small image a class in a temporary folder, and removes them. Memory is the
proportional set size (Linux: /proc/PID/smaps_rollup) of the parent and all its loaders together, after each epoch's
first batches through the real loader; what the same run takes on a hundred images is subtracted, so that the
difference is names, labels, index and order. Last figures: docs/results/data.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

MIB = 1 << 20


def make(root: Path, classes: int, num_images: int) -> None:
    """Make class folders named like ImageNet's, each of hard links to one file.

    A file system allows 65,000 links to a file.
    """
    from PIL import Image

    for number in range(classes):
        folder = root / f"n{number:08d}"
        folder.mkdir(parents=True)
        first = folder / f"{folder.name}_0.JPEG"
        Image.new("RGB", (16, 16), (number % 256, 80, 120)).save(first)
        for other in range(1, num_images):
            os.link(first, folder / f"{folder.name}_{other}.JPEG")


def memory(pid: int | str, field: str = "Pss") -> float:
    """Return the MiB of a process that are its own, shared pages by their share; `VmHWM`: the most it ever held."""
    path = f"/proc/{pid}/status" if field.startswith("Vm") else f"/proc/{pid}/smaps_rollup"
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"{path} has no {field}.")


def everyone() -> float:
    """Return the MiB of this process and its loaders."""
    return sum(
        memory(pid)
        for pid in (os.getpid(), *(child.pid or 0 for child in multiprocessing.active_children()))
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Open the data, run some batches of every epoch, return seconds and MiB."""
    from deitctl.config import AugmentConfig
    from deitctl.data.loader import build_view_loader
    from deitctl.data.readers.folder import open_folder
    from deitctl.data.samplers import SampleKey, TrainBatches
    from deitctl.events import SilentReporter

    before, start = memory("self"), time.perf_counter()
    dataset = open_folder(Path(options.measure), SilentReporter())
    record: dict[str, Any] = {
        "start": time.perf_counter() - start,
        "parent": memory("self") - before,
    }
    record["peak"] = memory("self", "VmHWM") - before
    if options.tuple:
        dataset = replace(dataset, paths=tuple(dataset.paths))  # type: ignore[type-var]
    batches = TrainBatches(len(dataset.labels), 64, seed=0, epochs=options.epochs)
    record["together"], steps = [], options.steps

    def some() -> Iterator[list[SampleKey]]:
        for epoch in range(options.epochs):
            keys = TrainBatches(
                len(dataset.labels),
                64,
                seed=0,
                epochs=1 << 20,
                first_step=epoch * batches.steps_per_epoch,
            )
            yield from islice(keys, steps)

    workers = options.workers
    stream = build_view_loader(
        dataset,
        AugmentConfig(crop_scale=(0.2, 1.0), hflip=0.5),
        16,
        0,
        some(),
        workers=workers,
        pin_memory=False,
    )
    for number, _ in enumerate(stream, start=1):
        if number % steps == steps - 1:  # the loaders end with the last batch
            record["together"].append(everyone())
    return record


def child(folder: Path, cache: Path, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--measure",
        str(folder),
        "--workers",
        str(options.workers),
        "--start",
        options.start,
        "--epochs",
        str(options.epochs),
        "--steps",
        str(options.steps),
        *more,
    ]
    environment = {**os.environ, "DEITCTL_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def report(options: argparse.Namespace, temporary: Path) -> None:
    """Make the data, measure, print a table."""
    large, tiny, cache = temporary / "large", temporary / "tiny", temporary / "cache"
    begun = time.perf_counter()
    make(large, options.classes, options.images)
    make(tiny, 10, 10)
    count = options.classes * options.images
    print(
        f"{count:,} names in {options.classes:,} folders, made in {time.perf_counter() - begun:.0f} s"
    )
    time.sleep(2.5)  # an index is not made of what has changed a moment ago
    base = child(tiny, cache, options)
    runs = {
        "listed, index written": child(large, cache, options),
        "index read": child(large, cache, options),
    }
    size = sum(f.stat().st_size for f in cache.rglob("*.index"))
    if not options.short:
        runs["a tuple of strings"] = child(large, cache, options, "--tuple")
    print(f"index: {size / MIB:.0f} MiB; {options.workers} loaders ({options.start})\n")
    print(
        "| | start, s | parent, MiB | at its peak | parent and loaders over the epochs, MiB |\n|---|---|---|---|---|"
    )
    for name, run in runs.items():
        costs = ", ".join(
            f"{a - b:.0f}" for a, b in zip(run["together"], base["together"], strict=True)
        )
        parent = [f"{run[k] - base[k]:.0f}" for k in ("parent", "peak")]
        print(f"| {name} | {run['start']:.2f} | {parent[0]} | {parent[1]} | {costs} |")
    print(f"\nsubtracted, of 100 images: {', '.join(f'{v:.0f}' for v in base['together'])} MiB")


def main() -> None:
    """Measure as a child, or have children measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1300, help="of each class")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument(
        "--start", choices=("fork", "spawn"), default="fork", help="how loaders are started"
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200, help="batches of 64 of each epoch")
    parser.add_argument("--short", action="store_true", help="without the tuple of strings")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--tuple", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    multiprocessing.set_start_method(options.start)
    if options.measure:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        report(options, Path(folder))


if __name__ == "__main__":
    main()

"""Index of a data set of ImageNet's size in WebDataset shards: seconds, bytes, memory of loaders.

`python benchmarks/shard_index.py --samples 1280000 --shards 1281`: writes synthetic shards, whose images
are 110 KB of mostly holes, then opens them by headers and by the index, compares a part with webdataset's own
pass, and reads at random in processes whose memory it measures. All that it writes is deleted.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from deitctl.data.index import get_index_path
from deitctl.data.open import open_dataset
from deitctl.data.training_data import Source, open_for_training
from deitctl.events import SilentReporter

IMAGE_BYTES = 110_000
NUM_LOADERS = 8
NUM_COMPARED = 20
"""Shards that webdataset goes through, too."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=1_280_000)
    parser.add_argument("--shards", type=int, default=1281)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--reads", type=int, default=20_000, help="a loader and epoch")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shard-index-"))
    os.environ["DEITCTL_CACHE"] = str(folder / "cache")
    try:
        for shard in range(args.shards):
            numbers = range(shard, args.samples, args.shards)
            write_shard(folder / "x" / f"x-{shard:06d}.tar", numbers)
        time.sleep(2.1)  # an index is made of files that rest
        measure(folder / "x", args)
    finally:
        shutil.rmtree(folder)


def make_image() -> bytes:
    """Return a JPEG, which zeros may follow."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (90, 120, 60)).save(file, "jpeg")
    return file.getvalue()


def write_shard(path: Path, numbers: range) -> None:
    """Write a shard by its headers: `.cls`, an image that is a hole, `.json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = make_image()
    with path.open("wb") as file:
        at = 0
        for number in numbers:
            key, label = f"n{number % 1000:08d}_{number}", number % 1000
            info = json.dumps({"filename": f"n{label:08d}/{key}.JPEG", "label": label}).encode()
            for suffix, data in (("cls", b"%d" % label), ("jpg", image), ("json", info)):
                header = tarfile.TarInfo(f"{key}.{suffix}")
                header.size = IMAGE_BYTES if suffix == "jpg" else len(data)
                file.seek(at)
                file.write(header.tobuf(tarfile.USTAR_FORMAT) + data)
                at += 512 + -(-header.size // 512) * 512
        file.truncate(at + 1024)


def seconds_of_all_processes() -> float:
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measure(folder: Path, args: argparse.Namespace) -> None:
    results: dict[str, object] = {"samples": args.samples, "shards": args.shards}
    for name in ("headers", "index"):
        start, wall = seconds_of_all_processes(), time.perf_counter()
        dataset = open_dataset(str(folder), SilentReporter()).unsplit
        results[f"open_by_{name}_process_s"] = round(seconds_of_all_processes() - start, 2)
        results[f"open_by_{name}_wall_s"] = round(time.perf_counter() - wall, 2)
    start = time.process_time()
    open_for_training(Source(str(folder)), reporter=SilentReporter())
    results["open_for_training_process_s"] = round(time.process_time() - start, 2)
    assert dataset is not None
    assert len(dataset.labels) == args.samples
    (index,) = get_index_path(folder).parent.iterdir()
    results["index_bytes"] = index.stat().st_size
    names = (
        sum(len(os.fsencode(dataset.relative_path(n))) for n in range(0, args.samples, 100)) * 100
    )
    results["index_bytes_a_sample_beside_names"] = round(
        (index.stat().st_size - names) / args.samples, 1
    )
    results["pickle_bytes"] = len(pickle.dumps(dataset))
    results["webdataset_to_deitctl"] = compare(folder)
    results["pss_mib"] = measure_loaders(dataset, args)
    print(json.dumps(results, indent=1))


def compare(folder: Path) -> float:
    """Return how much longer webdataset takes to go through some shards than deitctl to list them."""
    import webdataset

    from deitctl.data.open_file import OpenFile
    from deitctl.data.readers.shard_contents import scan_tar

    shards = sorted(folder.iterdir())[:NUM_COMPARED]
    start = time.process_time()
    ours = sum(scan_tar(OpenFile(str(path)), (".jpg",)).num_samples for path in shards)
    middle = time.process_time()
    pipeline = webdataset.WebDataset([str(path) for path in shards], shardshuffle=False)
    theirs = sum(1 for _ in pipeline)
    assert ours == theirs
    return round((time.process_time() - middle) / (middle - start), 1)


def read_at_random(dataset, loader: int, args, barrier, results) -> None:  # type: ignore[no-untyped-def]
    for epoch in range(args.epochs):
        random = np.random.default_rng((loader, epoch))
        for number in random.integers(0, args.samples, args.reads).tolist():
            dataset.read_bytes(number)
            dataset.relative_path(number)
        with open("/proc/self/smaps_rollup") as file:
            pss = next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        barrier.wait()
        results.put((epoch, pss / 1024))
        barrier.wait()


def measure_loaders(dataset: object, args: argparse.Namespace) -> list[float]:
    """Return the memory of all loaders after each epoch, in MiB, shared pages counted once."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(NUM_LOADERS), context.SimpleQueue()
    loaders = [
        context.Process(target=read_at_random, args=(dataset, number, args, barrier, results))
        for number in range(NUM_LOADERS)
    ]
    for loader in loaders:
        loader.start()
    totals = [0.0] * args.epochs
    for _ in range(NUM_LOADERS * args.epochs):
        epoch, pss = results.get()
        totals[epoch] += pss
    for loader in loaders:
        loader.join()
    return [round(total, 1) for total in totals]


if __name__ == "__main__":
    main()

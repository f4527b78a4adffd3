"""The start of a run of several processes: what each of them does to the files of the data before its first batch.

    python benchmarks/startup.py
    python benchmarks/startup.py --processes 8 --images 20000 --split

Makes JPEGs of two classes, and starts `deitctl train` on them with torchrun. Each process counts the folders that it
lists, the files that it opens and stats below the data (an audit hook, and a wrapper of os.stat), its CPU time up to
the first batch, and the memory that its copy of the names and labels takes. Last figures: docs/results/data.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TINY = [
    *(
        "--no-pretrained",
        "--img-size",
        "32",
        "--epochs",
        "1",
        "--workers",
        "0",
        "--batch-size",
        "64",
    ),
    *("--set", "model.depth=1", "--set", "model.embed_dim=48", "--set", "model.num_heads=2"),
]
KINDS = {"os.listdir": "listed", "os.scandir": "listed", "open": "opened", "stat": "stats"}


def main() -> None:
    """Make the data, start the processes, print what each did."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--split", action="store_true", help="with validation images of its own")
    parser.add_argument("--child", nargs=2, metavar=("OUT", "DATA"), help=argparse.SUPPRESS)
    options, _ = parser.parse_known_args()
    if options.child:
        count_start(Path(options.child[0]), options.child[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = make_images(root / "data", options.images, has_split=options.split)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start = time.monotonic()
        subprocess.run(
            [
                *torchrun,
                "--nproc-per-node",
                str(options.processes),
                __file__,
                "--child",
                folder,
                str(data),
            ],
            check=True,
            cwd=root,
            env=os.environ | {"DEITCTL_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        seconds = time.monotonic() - start
        print(f"{options.images:,} images, {options.processes} processes: {seconds:.1f} s in all")
        print("rank  folders listed  files opened      stats    CPU s  own MiB of the data")
        for rank in range(options.processes):
            record = json.loads((root / f"rank{rank}.json").read_text())
            numbers = (record.get(kind, 0) for kind in ("listed", "opened", "stats"))
            print(
                f"{rank:4}  {'{:14,}  {:12,}  {:9,}'.format(*numbers)}  {record['cpu_s']:7.2f}"
                f"  {record['data_mib']:19.2f}"
            )


def make_images(folder: Path, count: int, *, has_split: bool) -> Path:
    """Write small JPEGs of two classes, a tenth of them for validation where there is a split."""
    draw = np.random.default_rng(0)
    for number in range(count):
        part = ("val" if number % 10 == 9 else "train") if has_split else ""
        path = folder / part / "ab"[number % 2] / f"an_image_with_a_usual_name_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return folder


def count_start(out: Path, data: str) -> None:
    """Train in this process of several up to the first batch, and write what it did to the data's files."""
    counts: Counter[str] = Counter()
    stat = os.stat

    def add(event: str, path: Any) -> None:
        if event in KINDS and isinstance(path, str | os.PathLike) and str(path).startswith(data):
            counts[KINDS[event]] += 1

    def count_stat(path: Any, **options: Any) -> os.stat_result:
        add("stat", path)
        return stat(path, **options)

    from deitctl.cli.app import main as run
    from deitctl.training.trainer import Trainer

    def stop(trainer: Any) -> None:
        record = counts | {
            "cpu_s": time.process_time() - begin,
            "data_mib": measure_own_data(trainer),
        }
        (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(record))
        trainer.setup.context.world.barrier()
        os._exit(0)

    Trainer.fit = stop  # type: ignore[method-assign, assignment]
    sys.addaudithook(lambda event, args: add(event, args[0] if args else None))
    os.stat = count_stat
    sys.argv = ["deitctl", "train", data, "--model", "deit_tiny", *TINY, "--quiet"]
    begin = time.process_time()
    run()


def measure_own_data(trainer: Any) -> float:
    """Return the MiB of the names' and labels' pages that this process shares with no other."""
    dataset = trainer.setup.train
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    address = dataset.paths.blob.__array_interface__["data"][0]
    size, is_there = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and ":" not in first:
            begin, end = (int(part, 16) for part in first.split("-"))
            is_there = begin <= address < end
            is_shared = "deitctl-data" in rest
            size = 0 if is_there and is_shared else size
            if is_there and not is_shared:
                return (
                    float(
                        dataset.paths.blob.nbytes
                        + dataset.paths.ends.nbytes
                        + dataset.labels.nbytes
                    )
                    / 2**20
                )
        elif is_there and first in ("Private_Dirty:", "Private_Clean:"):
            size += int(rest.split()[0]) * 1024
    return size / 2**20


if __name__ == "__main__":
    main()

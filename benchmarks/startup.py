"""The start of a run of several processes: what each of them does to the files of the data before its first batch.

    python benchmarks/startup.py
    python benchmarks/startup.py --images 60000 --split --teacher
    python benchmarks/startup.py --images 60000 --split --teacher --processes 2 --delay 1

Makes JPEGs of two classes, and starts `deitctl train` (or `distill`) on them with torchrun. Each process counts the
folders that it lists, the files that it opens and stats below the data (an audit hook, and a wrapper of os.stat), its
CPU time up to the first batch (the teacher), and the memory that its copy of the names and labels takes. With --delay
each stat takes so many milliseconds more, as on a file server. Last figures: docs/results/data.md.
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
HEAD = "rank  folders listed  files opened      stats  seconds    CPU s  own MiB of the data"
ROW = "{:4}  {:14,}  {:12,}  {:9,}  {:7.1f}  {:7.2f}  {:19.2f}"


def main() -> None:
    """Make the data, start the processes, print what each did."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--split", action="store_true", help="with validation images of its own")
    parser.add_argument("--teacher", action="store_true", help="`distill`, up to the teacher")
    parser.add_argument("--delay", type=float, default=0.0, help="of each stat, in ms")
    parser.add_argument("--child", nargs=2, metavar=("OUT", "DATA"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        out, data = options.child
        count_start(Path(out), data, options.delay / 1000, has_teacher=options.teacher)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = make_images(root / "data", options.images, has_split=options.split)
        start_processes(root, data, options)
        print(f"{options.images:,} images, {options.processes} processes")
        print(HEAD)
        for rank in range(options.processes):
            record = json.loads((root / f"rank{rank}.json").read_text())
            counts = (record.get(kind, 0) for kind in ("listed", "opened", "stats"))
            print(ROW.format(rank, *counts, record["seconds"], record["cpu_s"], record["data_mib"]))


def make_images(folder: Path, count: int, *, has_split: bool) -> Path:
    """Write small JPEGs of two classes, a tenth of them for validation where there is a split."""
    draw = np.random.default_rng(0)
    for number in range(count):
        part = ("val" if number % 10 == 9 else "train") if has_split else ""
        path = folder / part / "ab"[number % 2] / f"an_image_with_a_usual_name_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return folder


def start_processes(root: Path, data: Path, options: argparse.Namespace) -> None:
    """Start the processes, and wait for their end."""
    environ = os.environ | {"DEITCTL_CACHE": f"{root}/cache", "OMP_NUM_THREADS": "1"}
    if options.teacher:  # any weights: they are read, and not used
        command = ["-m", "deitctl", "train", "digits", "--model", "deit_tiny", *TINY, "--quiet"]
        command = [sys.executable, *command, "--output", f"{root}/teacher"]
        subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(options.processes)]
    child = [__file__, "--child", str(root), str(data), "--delay", str(options.delay)]
    child += ["--teacher"] if options.teacher else []
    command = [*torchrun, *child]
    subprocess.run(command, check=True, cwd=root, env=environ, stderr=subprocess.DEVNULL)


def count_start(out: Path, data: str, delay_s: float, *, has_teacher: bool) -> None:
    """Train in this process of several up to the first batch, and write what it did to the data's files."""
    counts: Counter[str] = Counter()
    stat = os.stat

    def add(event: str, path: Any) -> bool:
        is_of_data = isinstance(path, str | os.PathLike) and str(path).startswith(data)
        if event in KINDS and is_of_data:
            counts[KINDS[event]] += 1
        return is_of_data

    def count_stat(path: Any, **options: Any) -> os.stat_result:
        if add("stat", path) and delay_s:
            time.sleep(delay_s)
        return stat(path, **options)

    from deitctl.cli.app import main as run
    from deitctl.distillation.distillation_teacher import DistillationTeacher
    from deitctl.training.trainer import Trainer

    def stop(dataset: Any, world: Any) -> None:
        record = counts | {
            "seconds": time.monotonic() - begin_s,
            "cpu_s": time.process_time() - begin,
            "data_mib": measure_own_data(dataset),
        }
        (out / f"rank{world.rank}.json").write_text(json.dumps(record))
        world.barrier()
        os._exit(0)

    Trainer.fit = lambda own: stop(own.setup.train, own.setup.context.world)  # type: ignore[method-assign]
    words = ["train", data, "--model", "deit_tiny"]
    if has_teacher:
        # Which is called when the cache of targets is open, that the fingerprint names.
        DistillationTeacher._read_preflight = lambda own: stop(own.train, own.world)  # type: ignore[method-assign]
        words = ["distill", data, "--student", "deit_tiny", "--teacher", f"{out}/teacher"]
        words += ["--teacher-input", "unmixed"]
    sys.addaudithook(lambda event, args: add(event, args[0]) if event in KINDS else None)
    os.stat = count_stat
    sys.argv = ["deitctl", *words, *TINY, "--quiet"]
    begin, begin_s = time.process_time(), time.monotonic()
    run()


def measure_own_data(dataset: Any) -> float:
    """Return the MiB of names and labels that this process shares with no other."""
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    own, is_there = 0, False
    address = dataset.paths.blob.__array_interface__["data"][0]
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):  # a mapping, of which the next lines speak
            begin, end = (int(part, 16) for part in first.split("-"))
            is_there = begin <= address < end
            if is_there and "deitctl-data" not in rest:  # of the process's own heap
                arrays = dataset.paths.blob, dataset.paths.ends, dataset.labels
                return float(sum(array.nbytes for array in arrays)) / 2**20
        elif is_there and first.startswith("Private_"):
            own += 1024 * int(rest.split()[0])
    return own / 2**20


if __name__ == "__main__":
    main()

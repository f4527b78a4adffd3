"""Fine-tuning on few images: `deitctl train` beside a plain timm loop on the same images, over seeds.

    python benchmarks/finetune.py --weights deit_tiny.safetensors --flowers DIR --imagenette DIR
        [--seeds 3] [--epochs 3] [--settings flowers flowers-96 nette-10 nette-30 nette-100]
        [--before CHECKOUT] [--loop benchmarks/plain_finetune.py] [--output finetune.jsonl]

FLOWERS is a folder of class folders without a split; IMAGENETTE has train/ and val/, of which 10, 30 and 100 images a
class are taken under neutral class names, so that no head row is kept. Every run is a process of one thread, one after
the other, in turns; seconds are CPU seconds of whole processes. With --before, another checkout of this repository
trains on the same images too. Results of an earlier call that are in OUTPUT are not measured again.
Last figures: docs/results/finetuning.md.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ("flowers", "flowers-96", "nette-10", "nette-30", "nette-100")


def link_subset(imagenette: Path, count: int, into: Path) -> Path:
    """Link `count` training images a class, and all validation images, under neutral names."""
    for part in ("train", "val"):
        for number, folder in enumerate(sorted((imagenette / part).iterdir())):
            files = sorted(folder.iterdir())
            if part == "train":
                random.Random(7).shuffle(files)
                files = files[:count]
            target = into / part / f"class{number}"
            target.mkdir(parents=True, exist_ok=True)
            for file in files:
                (target / file.name).symlink_to(file.resolve())
    return into


def run(command: list[str], **variables: str) -> tuple[str, float, float]:
    """Return what a command prints, its seconds and its CPU seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, time.monotonic() - start, cpu


def train(
    checkout: Path, data: Path, split: Path | None, args: argparse.Namespace, seed: int, size: int
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "deitctl", "train", str(data), "--model", "deit_tiny"]
        command += ["--weights", str(args.weights), "--epochs", str(args.epochs)]
        command += ["--seed", str(seed), "--workers", "0", "--device", "cpu", "--format", "json"]
        command += ["--img-size", str(size), "--output", str(output)]
        environment = {"PYTHONPATH": str(checkout), "DEITCTL_CACHE": f"{folder}/cache"}
        printed, seconds, cpu = run(command, **environment)
        if split is not None and (output / "split.csv").exists():
            shutil.copy(output / "split.csv", split)
        result = json.loads(printed)
    return {"top1": result["final"]["top1"], "seconds": seconds, "cpu_seconds": cpu}


def train_plain(
    data: Path, split: Path | None, args: argparse.Namespace, seed: int, size: int
) -> dict[str, float]:
    where = [str(data), "--split", str(split)] if split else [str(data / "train")]
    command = [sys.executable, str(args.loop), str(args.weights), *where]
    if not split:
        command += ["--val", str(data / "val")]
    command += ["--epochs", str(args.epochs), "--seed", str(seed), "--img-size", str(size)]
    printed, seconds, cpu = run(command)
    top1 = float(printed.splitlines()[-1].split()[1])
    return {"top1": top1, "seconds": seconds, "cpu_seconds": cpu}


def split_into_folders(data: Path, split: Path, into: Path) -> Path:
    """Link the images of a split.csv below train/ and val/, for a checkout that would split otherwise."""
    with split.open(newline="") as file:
        for row in csv.DictReader(file):
            target = into / row["split"] / row["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_symlink():
                target.symlink_to((data / row["path"]).resolve())
    return into


def measure(args: argparse.Namespace, work: Path) -> list[dict[str, object]]:
    """Train what OUTPUT lacks, and return all rows."""
    rows = []
    if args.output.exists():
        rows = [json.loads(line) for line in args.output.read_text().splitlines()]
    for seed, setting in itertools.product(range(args.seeds), args.settings):
        size, data, split = 96 if setting.endswith("-96") else 224, args.flowers, None
        if setting.startswith("nette"):
            data = work / setting
            if not data.exists():
                link_subset(args.imagenette, int(setting.rpartition("-")[2]), data)
        else:
            split = args.output.with_suffix(f".{setting}.csv").resolve()
        for way in ("now", "before", "loop"):
            key = {"setting": setting, "seed": seed, "way": way, "epochs": args.epochs}
            if (way == "before" and not args.before) or any(
                key.items() <= row.items() for row in rows
            ):
                continue
            if way == "loop":
                measured = train_plain(data, split, args, seed, size)
            elif way == "now":
                measured = train(ROOT, data, split, args, seed, size)
            else:
                same = split_into_folders(data, split, work / f"{setting}-parts") if split else data
                measured = train(args.before, same, None, args, seed, size)
            rows.append({**key, **measured})
            print(rows[-1], file=sys.stderr, flush=True)
            args.output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def print_table(rows: list[dict[str, object]], settings: list[str]) -> None:
    ways = [way for way in ("before", "now", "loop") if any(row["way"] == way for row in rows)]
    print(
        "| setting |" + "".join(f" {way}: top-1 of the seeds, % | mean | CPU s |" for way in ways)
    )
    print("|---|" + "---|---|---|" * len(ways))
    for setting in settings:
        cells = []
        for way in ways:
            mine = [row for row in rows if row["way"] == way and row["setting"] == setting]
            top1 = [float(row["top1"]) for row in mine]  # type: ignore[arg-type]
            seconds = statistics.mean(float(row["cpu_seconds"]) for row in mine)  # type: ignore[arg-type]
            cells.append(
                f" {', '.join(f'{x:.1f}' for x in top1)} | {statistics.mean(top1):.1f} | {seconds:.0f} |"
            )
        print(f"| {setting} |" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--flowers", type=Path, required=True)
    parser.add_argument("--imagenette", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--loop", type=Path, default=ROOT / "benchmarks" / "plain_finetune.py")
    parser.add_argument("--output", type=Path, default=Path("finetune.jsonl"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        rows = measure(args, Path(work))
    print_table(rows, args.settings)


if __name__ == "__main__":
    main()

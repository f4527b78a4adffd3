"""Does making it faster cost accuracy? The same epochs by this checkout, in several precisions, and by an older one.

    git worktree add OLD COMMIT
    python benchmarks/equal_epochs.py OUT --old OLD --images IMAGES [--seeds 3] [--epochs 20]

IMAGES (`train` and `val` with class folders) are learned from scratch at 64 pixels, and the digits that deitctl comes
with from a teacher. Each is done with every seed; runs that are in OUT are not done again.
Last figures: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]
PLAIN = ("--recipe", "small", "--no-pretrained", "--img-size", "64")


def deitctl(checkout: Path, out: Path, words: list[str]) -> dict[str, float]:
    """Run a checkout's deitctl, unless `out` has its result; return its best top-1 and its last loss."""
    if not (out / "result.json").exists():
        env = {
            **os.environ,
            "PYTHONPATH": str(checkout),
            "DEITCTL_CACHE": str(out.parent / f"cache-{commit_of(checkout)}"),
        }
        command = [
            sys.executable,
            "-m",
            "deitctl",
            *words,
            "--output",
            str(out),
            "--format",
            "json",
        ]
        subprocess.run(command, env=env, cwd=checkout, check=True, stdout=subprocess.DEVNULL)
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    epochs = [r for r in log if r["kind"] == "epoch"]
    return {"top1": max(r["top1"] for r in epochs), "loss": epochs[-1]["train"]["loss"]}


def commit_of(checkout: Path) -> str:
    """Name the commit of a checkout, and whether it has changes."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> None:
    """Learn with every seed in every way; print means and deviations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    said = parser.parse_args()
    out, old = said.out.resolve(), said.old.resolve()
    out.mkdir(parents=True, exist_ok=True)
    teacher = out / "teacher"
    deitctl(
        HERE,
        teacher,
        [
            "train",
            "digits",
            "--model",
            "regnety_002",
            "--recipe",
            "digits-convnet",
            "--no-pretrained",
        ],
    )
    images = ["train", str(said.images.resolve()), "--model", "deit_tiny", *PLAIN]
    digits = [
        "distill",
        "digits",
        "--teacher",
        str(teacher),
        "--student",
        "deit_tiny",
        "--no-pretrained",
    ]
    sides = (("older", old, ()), ("now", HERE, ()), ("now, fp32", HERE, ("--precision", "fp32")))
    print(
        "| | of | top-1 of each seed, % | mean | deviation | last loss |\n|---|---|---|---|---|---|"
    )
    for job, words in (("images", images), ("digits", digits)):
        for name, checkout, more in sides:
            results = [
                deitctl(
                    checkout,
                    out / f"{job}-{commit_of(checkout)}{''.join(more)}-{said.epochs}-{seed}",
                    [*words, *more, "--epochs", str(said.epochs), "--seed", str(seed)],
                )
                for seed in range(said.seeds)
            ]
            top1 = [r["top1"] for r in results]
            spread = statistics.stdev(top1) if len(top1) > 1 else 0.0
            shown = " ".join(f"{t:.2f}" for t in top1)
            loss = statistics.fmean(r["loss"] for r in results)
            print(
                f"| {job} | {name} | {shown} | {statistics.fmean(top1):.2f} | {spread:.2f} | {loss:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

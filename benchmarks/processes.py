"""One process, two, and gradients that add up: how far apart are the weights after an epoch?

    python benchmarks/processes.py

Trains deit_tiny distilled from a convnet on digits, with mixup, cutmix, erasing, repeated augmentation and stochastic
depth, in fp32 on the CPU: whole batches; two processes; two and four micro-batches; both. Prints the largest and the
mean difference of a weight from the first, beside how far the weights moved in the epoch. Last figures:
docs/results/reliability.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

TRAIN = (
    "distill",
    "digits",
    "--student",
    "deit_tiny",
    "--img-size",
    "16",
    "--epochs",
    "1",
    "--batch-size",
    "64",
    "--workers",
    "0",
    "--precision",
    "fp32",
    "--set",
    "augment.mixup=0.8",
    "--set",
    "augment.cutmix=1.0",
    "--set",
    "augment.repeated_aug=2",
    "--set",
    "augment.random_erase_prob=0.25",
    "--set",
    "drop_path_rate=0.1",
    "--teacher-cache",
    "off",
    "--quiet",
    "--format",
    "json",
)
WAYS = {
    "whole batches": (1, ()),
    "2 processes": (2, ()),
    "2 micro-batches": (1, ("--micro-batch-size", "32")),
    "4 micro-batches": (1, ("--micro-batch-size", "16")),
    "2 processes, 2 micro-batches": (2, ("--micro-batch-size", "16")),
}


def deitctl(*options: str, processes: int = 1) -> None:
    """Run the command line."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        if processes > 1
        else []
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *launcher, "-m", "deitctl", *options],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )


def main() -> None:
    """Train in every way and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        teacher = root / "teacher"
        deitctl(
            "train",
            "digits",
            "--model",
            "regnety_002",
            "--img-size",
            "32",
            "--epochs",
            "2",
            "--output",
            str(teacher),
            "--quiet",
        )
        deitctl(
            *TRAIN,
            "--teacher",
            str(teacher),
            "--output",
            str(root / "no steps"),
            "--lr",
            "1e-12",
            "--set",
            "optim.warmup_lr=0",
            "--set",
            "optim.min_lr=0",
            "--set",
            "optim.weight_decay=0",
        )
        start = load_file(root / "no steps" / "checkpoint" / "model.safetensors")
        reference = None
        for way, (processes, options) in WAYS.items():
            deitctl(
                *TRAIN,
                "--teacher",
                str(teacher),
                "--output",
                str(root / way),
                *options,
                processes=processes,
            )
            weights = load_file(root / way / "checkpoint" / "model.safetensors")
            reference = reference or weights
            moved = torch.cat([(weights[k] - start[k]).flatten().abs() for k in weights])
            apart = torch.cat([(weights[k] - reference[k]).flatten().abs() for k in weights])
            print(
                f"{way:30} moved: mean {moved.mean():.1e}, largest {moved.max():.1e}   "
                f"from whole batches: mean {apart.mean():.1e}, largest {apart.max():.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""A training while memory is really short, for test_trainer.py: python short_of_memory.py OUT MEGABYTES (0: no limit)

The limit is on the address space, and on the steps alone, so that what is loaded before and after them does not count.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from deitctl.config import TrainConfig
from deitctl.data.readers.digits import load_digits
from deitctl.data.subsets import select
from deitctl.events import SilentReporter, Task
from deitctl.recipes import DIGITS
from deitctl.training import trainer
from deitctl.training.launch import run_training


class Limits(SilentReporter):
    """Limits the address space to so many bytes more than there are while the steps of an epoch are taken."""

    def __init__(self, more: int) -> None:
        self.more = more
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    @contextmanager
    def task(self, label: str, total: int | None, unit: str = "images") -> Iterator[Task]:
        with super().task(label, total, unit) as task:
            if not self.more or label != "epoch 1/1":
                yield task
                return
            import resource  # not everywhere

            before = resource.getrlimit(resource.RLIMIT_AS)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(
                resource.RLIMIT_AS, (pages * resource.getpagesize() + self.more, before[1])
            )
            try:
                yield task
            finally:
                resource.setrlimit(resource.RLIMIT_AS, before)


def train(out: str, megabytes: int) -> dict[str, object]:
    """Take one step of 256 images and score 10; return the warnings and the losses."""
    train, val = load_digits()
    recipe = replace(DIGITS, img_size=48, epochs=1, batch_size=256)
    config = TrainConfig(
        model="deit_tiny",
        data="digits",
        recipe=recipe,
        precision="fp32",
        workers=0,
        output_dir=out,
        micro_batch_size=256,
    )
    reporter = Limits(megabytes * 2**20)
    result = run_training(
        config, datasets=(select(train, range(256)), select(val, range(10))), reporter=reporter
    )
    step = json.loads((result.run / "metrics.jsonl").read_text().splitlines()[0])
    numbers = {
        "train": step["loss"],
        "grad_norm": step["grad_norm"],
        "loss": result.evaluation.loss,
    }
    return {"warnings": reporter.warnings, **numbers}


if __name__ == "__main__":
    torch.set_num_threads(1)
    # What the measurement before the first step leaves behind would count as free.
    trainer.estimate_seconds = lambda setup, *, pause: None
    print(json.dumps(train(sys.argv[1], int(sys.argv[2]))))  # noqa: T201

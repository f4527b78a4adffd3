"""What saving the state costs: the seconds of the copy, in which training stands still, and of the write beside it.

    python benchmarks/saving_cost.py

For each DeiT, after one real step (so that the optimizer has its moments), the median of five saves; then the share of
five minutes, the default interval, if the writing thread took its time wholly from the training. By its own rule the
clock saves less often where that is over a hundredth. Last figures: docs/results/reliability.md.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from deitctl.device import choose_device
from deitctl.events import SilentReporter
from deitctl.models.build import build_model
from deitctl.recipes import PAPER
from deitctl.training.checkpointer import AsyncCheckpointer
from deitctl.training.ema import ExponentialMovingAverage
from deitctl.training.optim import build_optimizer
from deitctl.training.run_dir import Run
from deitctl.training.state import Progress, TrainState

INTERVAL = 300.0


def state_of(name: str) -> TrainState:
    """Build a model for a thousand classes and take a step."""
    model = build_model(
        name,
        class_names=tuple(map(str, range(1000))),
        descriptions=None,
        img_size=224,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=True,
        reporter=SilentReporter(),
    ).model
    optimizer = build_optimizer(model, PAPER.optim)
    sum(head.square().mean() for head in model(torch.randn(2, 3, 224, 224))).backward()
    optimizer.step()
    ema = ExponentialMovingAverage(model, decay=0.999)
    return TrainState(
        model, optimizer, choose_device("cpu", "fp32").grad_scaler(), ema, Progress(step=1)
    )


def main() -> None:
    """Measure and print a row a model."""
    for name in ("deit_tiny", "deit_small", "deit_base"):
        state = state_of(name)
        with tempfile.TemporaryDirectory() as folder:
            checkpointer, copies, writes = AsyncCheckpointer(Run(Path(folder)), "5m"), [], []
            for _ in range(5):
                start = time.monotonic()
                checkpointer.stage(state)
                copied = time.monotonic()
                checkpointer.write()
                checkpointer.finish()
                copies.append(copied - start)
                writes.append(time.monotonic() - copied)
            size = sum(f.stat().st_size for f in (Path(folder) / "checkpoint").iterdir()) / 2**20
        copy, write = statistics.median(copies), statistics.median(writes)
        print(
            f"{name:10} {size:7.0f} MiB   copy {copy:.3f} s   write {write:.2f} s   share of {INTERVAL:.0f} s: "
            f"{100 * copy / INTERVAL:.3f} % standing still, {100 * (copy + write) / INTERVAL:.2f} % in all",
            flush=True,
        )


if __name__ == "__main__":
    main()

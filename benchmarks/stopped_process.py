"""Stop one of two processes for good (SIGSTOP) in the middle of a run; torchrun restarts it, and it must end equal.

    python benchmarks/stopped_process.py

Trains deit_tiny on digits in two processes, undisturbed and with rank 1 stopped before step 12, under a timeout of
5 s instead of minutes. Prints how long the disturbed run took and whether the weights are the same bytes. torchrun
itself waits 30 s after SIGTERM before it kills.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TIMEOUT_S, AT_STEP = 5.0, 12
OPTIONS = "train digits --model deit_tiny --img-size 32 --epochs 1 --workers 0 --device cpu --precision fp32 --quiet"


def train() -> None:
    """Be one process of the run; rank 1 of the first attempt stops itself."""
    from deitctl import distributed
    from deitctl.cli.app import main as run_command
    from deitctl.training import ddp_engine, trainer

    distributed.STEP_TIMEOUT_S = ddp_engine.STEP_TIMEOUT_S = TIMEOUT_S
    stops = os.environ["STOPS"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    original = trainer.optimizer_step

    def step(context, state, lr, grad_norm):  # type: ignore[no-untyped-def]
        if stops and os.environ["RANK"] == "1" and state.progress.step == AT_STEP:
            os.kill(os.getpid(), signal.SIGSTOP)
        original(context, state, lr, grad_norm)

    trainer.optimizer_step = step
    sys.argv = ["deitctl", *OPTIONS.split(), *sys.argv[2:]]
    run_command()


def launch(run: Path, *, stops: bool) -> float:
    """Train by torchrun; return the seconds."""
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1"
    command = [sys.executable, *launcher.split(), __file__, "process", "--save-every", "5"]
    environment = os.environ | {"STOPS": str(int(stops)), "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    subprocess.run([*command, "--output", str(run)], env=environment, check=True, timeout=300)
    return time.monotonic() - start


def main() -> None:
    """Train twice, and compare."""
    with tempfile.TemporaryDirectory(prefix="deitctl-stopped-") as folder:
        runs = [Path(folder) / name for name in ("whole", "stopped")]
        seconds = [launch(run, stops=run.name == "stopped") for run in runs]
        weights = [(run / "checkpoint" / "model.safetensors").read_bytes() for run in runs]
    is_equal = weights[0] == weights[1]
    print(
        f"undisturbed {seconds[0]:.0f} s, stopped {seconds[1]:.0f} s, {'equal' if is_equal else 'DIFFERENT'}"
    )
    sys.exit(not is_equal)


if __name__ == "__main__":
    train() if sys.argv[1:2] == ["process"] else main()

"""A training whose data does not come ends within seconds of a signal, with its state saved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
TRAIN = (
    *("train", "digits", "--model", "deit_tiny", "--img-size", "16", "--epochs", "100"),
    *("--batch-size", "64", "--save-every", "1h", "--output", "run"),
)


def start(*arguments: str, cwd: Path, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "deitctl", *arguments]
    settings: dict[str, object] = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=cwd, **(settings | options))  # type: ignore[call-overload, no-any-return]


def wait_for_steps(run: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until the run has logged its first steps."""
    log = run / "metrics.jsonl"
    for _ in range(1200):
        if log.exists() and log.read_text().count('"step"') >= 2:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no step within a minute")


def steps_saved(run: Path) -> int:
    return int(json.loads((run / "checkpoint" / "state.json").read_text())["step"])


def list_children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@LINUX
def test_a_signal_while_no_data_comes_saves_and_ends(tmp_path: Path) -> None:
    """Stopped loaders stand for a mount that no longer answers."""
    process = start(*TRAIN, "--workers", "2", cwd=tmp_path)
    wait_for_steps(tmp_path / "run", process)
    loaders = list_children(process.pid)
    assert len(loaders) == 2
    for loader in loaders:
        os.kill(loader, signal.SIGSTOP)
    time.sleep(0.5)  # what they have prepared is used up
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - sent < 10  # two on a quiet machine
    assert process.returncode == 143
    step = steps_saved(tmp_path / "run")
    lines = errors.decode().splitlines()
    assert lines[-2].startswith(f"interrupted. The last checkpoint, of step {step} ")
    assert lines[-1] == "deitctl train --resume run"
    deadline = time.monotonic() + 10
    while any(map(is_running, loaders)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, loaders))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

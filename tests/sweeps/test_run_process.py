"""A run's process: its command, its end with the sweep, and why it failed."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deitctl.sweeps.run_process import (
    ENDS_WITH_STDIN,
    RunProcess,
    read_error,
    spell_command,
    write_waiting,
)


@pytest.fixture
def waiting(make_sweep):
    """The configuration of a run whose folder is written."""
    config = make_sweep("smoothing=0.1").runs[0].config
    write_waiting(config)
    return config


def test_a_run_is_begun_and_continued_by_one_command(waiting) -> None:
    command = ["train", "--resume", waiting.output_dir, "--format", "json"]
    assert spell_command(waiting) == command
    elsewhere = replace(waiting, device="cpu", workers=3, compile="on")
    assert spell_command(elsewhere) == [
        *command,
        *("--workers", "3", "--device", "cpu", "--compile", "on"),
    ]


def test_settings_without_an_option_are_set(waiting) -> None:
    changed = replace(waiting, loss_spike_factor=0.0, grad_checkpointing=True)
    words = spell_command(changed)[5:]
    assert words == ["--grad-checkpointing", "--set", "loss_spike_factor=0.0"]
    write_waiting(changed)
    assert spell_command(waiting)[5:] == ["--no-grad-checkpoint", "--set", "loss_spike_factor=3.0"]


def test_the_process_of_a_run_ends_when_the_sweep_does() -> None:
    """As of a sweep that is killed: the pipe that it held ends."""
    code = (
        "import os, sys, time\n"
        "from deitctl.cli import interrupts\n"
        "from deitctl.errors import Signalled\n"
        "interrupts.install()\n"
        "interrupts.end_with_stdin()\n"
        f"assert '{ENDS_WITH_STDIN}' not in os.environ\n"
        "try:\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "except Signalled as stop: sys.exit(stop.signum)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={ENDS_WITH_STDIN: "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        process.stdin.close()
        assert process.wait(30) == signal.SIGTERM


def test_why_a_run_failed_is_its_own_error_line(waiting, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "a.log"
    log.parent.mkdir()
    log.write_text("error: of an earlier process\n")
    process = RunProcess.__new__(RunProcess)
    process.log, process._log_begin = log, log.stat().st_size
    assert process.explain_failure(1) == f"It ended with exit code 1; see {log}."
    with log.open("a") as file:
        file.write("epoch 1/2\nerror: There is no memory.\nmore\n")
    assert process.explain_failure(1) == "There is no memory."
    assert process.explain_failure(-9) == (
        "Its process was ended by SIGKILL. Perhaps memory was short."
    )
    assert process.explain_failure(130) == "It was interrupted (exit code 130)."


def test_of_a_log_without_an_error_line_the_last_line_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"Traceback\n" + b"x" * 10**6 + b"\nValueError: \xff\n\n")
    assert read_error(log) == "ValueError: \ufffd"
    assert read_error(tmp_path / "gone") == ""

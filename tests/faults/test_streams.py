"""A training outlives whoever listens to it, and every command works without standard streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEITCTL = [sys.executable, "-m", "deitctl"]
SMALL = ("--model", "deit_tiny", "--no-pretrained", "--img-size", "32", "--batch-size", "16")
SHALLOW = ("--set", "model.depth=2")


@pytest.fixture
def data(image_folder) -> Path:
    return image_folder({"a": 20, "b": 20})


def train(data: Path, *options: str, epochs: int = 2) -> list[str]:
    fixed = ("--epochs", str(epochs), "--workers", "0", "--save-every", "1h", "--output", "r")
    return [*DEITCTL, "train", str(data), *SMALL, *SHALLOW, *fixed, *options]


@pytest.mark.parametrize("lost", ["2>/dev/full", "2>&1 | true", ">&- 2>&- <&-"])
def test_a_training_that_nobody_listens_to_is_finished(lost, data, tmp_path):
    subprocess.run(
        ["bash", "-c", f'"$@" {lost}', "bash", *train(data)],
        cwd=tmp_path,
        timeout=60,
        capture_output=True,
    )
    assert json.loads((tmp_path / "r" / "result.json").read_text())["epochs"] == 2


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_signal_saves_the_step_that_was_done_and_says_so(name, data, tmp_path):
    command = train(data, epochs=500)
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        wait_for_log(tmp_path / "r", process)
        process.send_signal(getattr(signal, name))
        _, messages = process.communicate(timeout=30)
    assert process.returncode == 128 + getattr(signal, name)
    assert "deitctl train --resume r" in messages
    assert json.loads((tmp_path / "r" / "checkpoint" / "state.json").read_text())["step"] > 0


def test_a_training_under_nohup_outlives_its_terminal(data, tmp_path):
    command = ["nohup", *train(data, epochs=15)]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        wait_for_log(tmp_path / "r", process)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_a_prediction_works_without_a_stream(closed, data, saved, tmp_path):
    command = [*DEITCTL, "predict", data / "a", "--model", saved, "--quiet"]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {closed}', "bash", *command],
        cwd=tmp_path,
        timeout=60,
        capture_output=True,
    )
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) <= 1
    assert len(done.stdout.splitlines()) == (0 if closed == ">&-" else 20)


def wait_for_log(run: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while (
        not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < end
    ):
        time.sleep(0.02)
    assert process.poll() is None
    assert os.path.exists(run / "metrics.jsonl")

"""A container's limits: no name and no home, a cache that cannot be written, process 1, and too few threads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.training.launch import run_training

TINY = ("--model", "deit_tiny", "--no-pretrained", "--img-size", "16", "--batch-size", "256")
TRAIN = ("train", "digits", *TINY, "--workers", "0", "--quiet")
RUN_AS_NOBODY = """
import json, pwd, sys
def find_nobody(uid): raise KeyError(uid)
pwd.getpwuid = find_nobody
from deitctl.cli.app import main
codes = []
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try: main()
    except SystemExit as end: codes.append(end.code)
sys.stderr.write(f"codes {codes}")
"""
"""Runs commands as Docker's `--user 12345` does, in one process."""


def test_without_a_name_and_a_home_commands_work_and_write_no_folder_named_tilde(
    tmp_path: Path, saved: Path
) -> None:
    commands = [
        [*TRAIN, "--epochs", "1", "--output", "run"],
        ["eval", "digits", "--model", str(saved), "--report", "report.html", "--workers", "0"],
        ["models"],
        ["doctor"],
        ["predict", "~/a.png", "~nobody-of-this-name/b.png", "--model", str(saved)],
    ]
    work, temp = tmp_path / "work", tmp_path / "tmp"
    work.mkdir()
    temp.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    ended = subprocess.run(
        [sys.executable, "-c", RUN_AS_NOBODY, json.dumps(commands)],
        env={**kept, "TMPDIR": str(temp), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=work,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert "Traceback" not in ended.stderr
    # the last has two images that are not there, each a row with its error
    assert ended.stderr.endswith("codes [0, 0, None, None, 3]"), ended.stderr
    assert {path.name for path in work.iterdir()} == {"run", "report.html"}
    assert "home directory" not in ended.stderr  # matplotlib's warning


@pytest.mark.unprivileged
def test_a_cache_that_cannot_be_written_is_read_and_what_is_new_goes_elsewhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    distilled: Callable[..., TrainConfig],
    little: tuple[ImageDataset, ImageDataset],
    reporter,
) -> None:
    cache = tmp_path / "cache"
    run_training(distilled("first"), datasets=little, reporter=reporter)
    (baked,) = (cache / "teacher_targets").iterdir()
    before = {path.name: path.read_bytes() for path in baked.iterdir()}
    for folder in (baked, baked.parent, cache):
        folder.chmod(0o555)
    try:
        # Nothing is missing: the baked targets are used, and nothing is said.
        run_training(distilled("second"), datasets=little, reporter=reporter)
        assert not [text for text in reporter.warnings if "cache" in text]
        # Other targets: in a private folder, said once.
        run_training(distilled("third", view_seed=5), datasets=little, reporter=reporter)
    finally:
        for folder in (cache, baked.parent, baked):
            folder.chmod(0o755)
    assert {path.name: path.read_bytes() for path in baked.iterdir()} == before
    assert len([text for text in reporter.warnings if f"{cache} cannot be written" in text]) == 1


def can_be_process_1() -> bool:
    """Whether a namespace of process numbers can be made here."""
    command = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "true"]
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(command, capture_output=True).returncode
    )


@pytest.mark.skipif(not can_be_process_1(), reason="namespaces are not on this machine")
def test_process_1_of_a_container_saves_when_it_is_stopped(tmp_path: Path) -> None:
    """The kernel drops signals that process 1 does not handle; what `docker stop` sends is handled."""
    program = [
        sys.executable,
        "-m",
        "deitctl",
        *TRAIN,
        "--workers",
        "2",
        "--epochs",
        "200",
        "--output",
        "run",
    ]
    outer = subprocess.Popen(
        ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", *program],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 300
    while not (log.exists() and '"step"' in log.read_text()):
        assert outer.poll() is None
        assert time.monotonic() < end, "no step"
        time.sleep(0.05)
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
    (first,) = map(int, children)
    assert Path(f"/proc/{first}/status").read_text().split("NSpid:")[1].split()[1] == "1"
    os.kill(first, signal.SIGTERM)
    _, errors = outer.communicate(timeout=60)
    assert outer.returncode == 143
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "checkpoint" / "state.json").exists()


def test_too_few_threads_and_no_temporary_folder_are_one_line() -> None:
    """In the words of Python, which depend on no limit that a user who is root would pass."""
    from deitctl.cli.app import _describe_limit

    threads = _describe_limit(RuntimeError("can't start new thread"))
    assert threads is not None
    assert "--pids-limit" in str(threads)
    folder = _describe_limit(
        FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")
    )
    assert folder is not None
    assert "$TMPDIR" in str(folder)
    assert _describe_limit(FileNotFoundError(2, "No such file or directory")) is None
    assert _describe_limit(RuntimeError("something else")) is None

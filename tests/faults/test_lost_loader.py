"""Every command that loads images in processes ends in one line when one of these is lost, or cannot start."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS has no /proc")
SMALL = ("--model", "deit_tiny", "--no-pretrained", "--img-size", "16", "--batch-size", "16")
DISTILL = ("--teacher", "teacher", "--student", *SMALL[1:])
COMMANDS = {
    "eval": ("eval", "digits", "--model", "teacher"),
    "train": ("train", "digits", *SMALL, "--epochs", "1", "--output", "r"),
    "cache-teacher": ("cache-teacher", "digits", *DISTILL[:-4]),
    "distill": ("distill", "digits", *DISTILL, "--epochs", "1", "--output", "r"),
    "check": ("check", "images"),
    "pack": ("pack", "images", "out", "--raw"),
}
PROGRAM = """
import resource, sys, time
from deitctl.cli.app import main
from deitctl.data import loader_process

load = loader_process.make_batch

def load_slowly(*arguments):
    time.sleep(60)  # it is killed before
    return load(*arguments)

loader_process.make_batch = load_slowly
if descriptors := int(sys.argv.pop(1)):
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
sys.argv[0] = "deitctl"
main()
"""


class Ended(NamedTuple):
    code: int
    errors: list[str]
    seconds: float


class Command:
    """A command in a folder of its own, whose loaders take a minute for a batch."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], *, descriptors: int = 0) -> None:
        options = (*arguments, "--workers", "2", "--quiet")
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(descriptors), *options],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "DEITCTL_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        )

    def wait_for_loaders(self) -> list[int]:
        pid = self.process.pid
        for _ in range(12_000):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            if len(children.split()) == 2:
                return [int(number) for number in children.split()]
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)
        raise AssertionError("no loaders within two minutes")

    def wait_for_end(self, limit: float = 30) -> Ended:
        """Return how it ends; `TimeoutExpired` if it hangs."""
        start = time.monotonic()
        _, errors = self.process.communicate(timeout=limit)
        return Ended(self.process.returncode, errors.splitlines(), time.monotonic() - start)


@pytest.fixture
def start(
    tmp_path: Path, digits_teacher: Path, image_folder: Callable[..., Path]
) -> Iterator[Callable[..., Command]]:
    image_folder({"a": 150, "b": 150})
    commands: list[Command] = []

    def start_command(name: str, descriptors: int = 0) -> Command:
        folder = tmp_path / f"{name}-{descriptors}"
        folder.mkdir()
        shutil.copytree(digits_teacher, folder / "teacher")
        (folder / "images").symlink_to(tmp_path / "images")
        commands.append(Command(folder, COMMANDS[name], descriptors=descriptors))
        return commands[-1]

    yield start_command
    for command in commands:
        with command.process:
            command.process.kill()


def test_a_killed_loader_ends_any_command_in_one_line(start):
    commands = {name: start(name) for name in COMMANDS}  # at once, because starting takes longest
    for name, command in commands.items():
        os.kill(command.wait_for_loaders()[0], signal.SIGKILL)
        code, errors, seconds = command.wait_for_end()
        assert code == 1, name
        assert errors[-1].startswith("error: A loader process was ended by SIGKILL"), name
        assert "--workers 0" in errors[-1], name
        assert not [line for line in errors[:-1] if not line.startswith("warning: ")], name
        assert seconds < 10, name  # one on a quiet machine
        if name in ("train", "distill"):
            assert errors[-1].endswith("deitctl train --resume r --workers 0")


def test_too_few_descriptors_end_a_command_in_one_line(start):
    commands = {name: start(name, descriptors=12) for name in ("eval", "distill")}
    for name, command in commands.items():
        code, errors, _ = command.wait_for_end(60)
        assert code == 1, name
        assert "oo many open files" in errors[-1], name
        assert "ulimit -n" in errors[-1], name
        assert not [line for line in errors[:-1] if not line.startswith("warning: ")], name

"""Loader processes end with their parent, whatever ends it, and never keep it waiting."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from deitctl.data import loader_pool, loader_process
from deitctl.data.loader_pool import Loader
from deitctl.data.stream import batched_range, stream_batches

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no such signals")


def load(number: int) -> int:
    return number


def start(workers: int = 2) -> Generator[list[int]]:
    """Return a stream of 999 further batches whose loaders are all at work."""
    batches = stream_batches(load, list, batched_range(4 * (999 + workers), 4), workers=workers)
    for _ in range(workers):
        next(batches)
    return batches


def list_loaders() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid]


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; a hang is an error."""
    path = folder / "program.py"
    path.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=environment,
    )


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def start_in_child() -> Iterator[Callable[[], tuple[int, list[int]]]]:
    """Start a process with two loaders; return its number and theirs."""
    parents: list[int] = []
    loaders: list[int] = []

    def start_child() -> tuple[int, list[int]]:
        receiver, sender = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                batches = start()
                os.write(sender, " ".join(map(str, list_loaders())).encode())
                time.sleep(60)
                batches.close()
            finally:
                os._exit(0)
        os.close(sender)
        parents.append(pid)
        pids = [int(word) for word in os.read(receiver, 100).split()]
        os.close(receiver)
        loaders.extend(pids)
        assert len(pids) == 2
        return pid, pids

    yield start_child
    for pid in parents:
        os.waitpid(pid, 0)
    for pid in filter(is_alive, loaders):  # one that is stopped would keep pytest's output open
        os.kill(pid, signal.SIGKILL)


def kill_and_wait(parent: int, loaders: list[int]) -> None:
    assert all(map(is_alive, loaders))
    os.kill(parent, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(map(is_alive, loaders)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, loaders))


@pytest.mark.skipif(sys.platform != "linux", reason="macOS: stopped loaders outlive a kill")
@pytest.mark.parametrize("loaders_are_stopped", [False, True])
def test_loaders_end_when_their_parent_is_killed(loaders_are_stopped, start_in_child):
    parent, loaders = start_in_child()
    if loaders_are_stopped:
        for pid in loaders:
            os.kill(pid, signal.SIGSTOP)
    kill_and_wait(parent, loaders)


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no /proc")
def test_elsewhere_than_on_linux_loaders_end_when_their_parents_socket_does(
    start_in_child, monkeypatch
):
    monkeypatch.setattr(loader_process, "_die_with_parent", lambda parent: None)
    kill_and_wait(*start_in_child())


@pytest.mark.skipif(sys.platform != "linux", reason="what watches a parent is Linux's")
def test_loaders_outlive_the_thread_that_started_them():
    streams: list[Generator[list[int]]] = []
    thread = threading.Thread(target=lambda: streams.append(start()))
    thread.start()
    thread.join()
    with closing(streams[0]) as batches:
        time.sleep(0.1)
        assert len(list(batches)) == 999


def test_signals_of_the_whole_group_are_the_parents():
    with closing(start()) as batches:
        for pid in list_loaders():
            for signum in loader_process.GROUP_SIGNALS:
                os.kill(pid, signum)
        assert len(list(batches)) == 999
    assert {"SIGINT", "SIGTERM", "SIGHUP"} <= {s.name for s in loader_process.GROUP_SIGNALS}


def test_a_signal_while_loaders_start_is_the_parents(monkeypatch):
    """They have its handlers until they ignore it; and what was started is ended."""
    start_loader, parent = loader_pool._start_loader, os.getpid()

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        if os.getpid() == parent:
            raise Stop
        os._exit(8)

    def start_and_signal(*arguments: object) -> Loader:
        loader = start_loader(*arguments)  # type: ignore[arg-type]
        assert loader.process.pid is not None
        os.kill(loader.process.pid, signal.SIGTERM)
        os.kill(parent, signal.SIGTERM)
        return loader

    monkeypatch.setattr(loader_pool, "_start_loader", start_and_signal)
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Stop):
            start()
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert list_loaders() == []


def test_loaders_may_be_spawned(tmp_path):
    """As on macOS and Windows: what they load is pickled."""
    program = """
import multiprocessing
from test_loader_process import start

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    print(sum(1 for _ in start(workers=1)))
"""
    done = run(program, tmp_path)
    assert (done.stdout, done.stderr) == ("999\n", "")


def test_an_exception_of_the_callers_ends_a_training_in_python(tmp_path):
    """Python ends processes at its exit with SIGTERM, which loaders ignore, and then waits for them."""
    program = f"""
from dataclasses import replace
from deitctl.config import TrainConfig
from deitctl.data.subsets import Subset, select
from deitctl.data.readers.digits import load_digits
from deitctl.events import SilentReporter
from deitctl.recipes import DIGITS
from deitctl.training.launch import run_training

class Failing(Subset):
    def open(self, index):
        if index == 30:
            raise LookupError("of the data set")
        return super().open(index)

class Loud(SilentReporter):
    def note(self, message):
        if message.startswith("epoch 1"):
            raise LookupError("of the reporter")

def train(name, kind):
    recipe = replace(DIGITS, img_size=16, epochs=4, batch_size=16)
    config = TrainConfig(model="deit_tiny", data="digits", recipe=recipe, precision="fp32", workers=2,
                         output_dir=f"{tmp_path}/{{name}}")
    images, val = load_digits()
    images = select(images, range(64))
    images = kind(images, images.indices, images.labels, images.class_names)
    run_training(config, datasets=(images, select(val, range(16))), reporter=Loud())

try:
    train("a", Failing)
except LookupError as error:
    print(error)
train("b", Subset)
"""
    done = run(program, tmp_path)
    assert done.returncode == 1
    assert done.stdout == "of the data set\n"
    assert "LookupError: of the reporter" in done.stderr
    assert done.stderr.count("Traceback") == 1

"""The queue: as many runs at once as there are jobs, locked ones awaited, signals passed on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from deitctl.errors import Interrupted, Signalled
from deitctl.events import SilentReporter
from deitctl.settings import write_toml
from deitctl.sweeps.run_queue import QueuedRun, RunQueue, make_environ

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


class Process:
    """Runs for some polls; the signals that it gets end it."""

    def __init__(self, polls: int) -> None:
        self.polls, self.signals, self.code = polls, [], None

    def poll(self) -> int | None:
        self.polls -= 1
        if self.code is None and self.polls < 0:
            self.code = 1
        return self.code

    def stop(self, signum: int) -> None:
        self.signals.append(signum)
        self.code = 128 + signum

    def kill(self) -> None:
        self.code = -9

    def explain_failure(self, code: int) -> str:
        return f"code {code}"


class Harness:
    """A queue of runs that are never trained, and what it did."""

    def __init__(self, tmp_path: Path, config, polls: list[int]) -> None:
        self.waiting = []
        for n in range(len(polls)):
            root = tmp_path / f"r{n}"
            root.mkdir()
            (root / "run.toml").write_text(write_toml(config))
            self.waiting.append(QueuedRun(root.name, replace(config, output_dir=str(root))))
        self.polls = dict(zip((run.name for run in self.waiting), polls, strict=True))
        self.started: dict[str, Process] = {}
        self.ended: list[tuple[str, str]] = []
        self.most_at_once = 0

    def start(self, config, log: Path, environ) -> Process:
        name = Path(config.output_dir).name
        self.started[name] = Process(self.polls[name])
        running = [p for p in self.started.values() if p.code is None]
        self.most_at_once = max(self.most_at_once, len(running))
        return self.started[name]

    def train(self, num_jobs: int, tmp_path: Path) -> None:
        reporter = SilentReporter()
        queue = RunQueue(
            lambda: self.waiting.pop(0) if self.waiting else None,
            lambda run, error: self.ended.append((run.name, error)),
            start=self.start,
            logs=tmp_path / "logs",
            num_jobs=num_jobs,
            num_gpus=0,
            reporter=reporter,
        )
        with reporter.task("sweep", None) as task:
            queue.train(task)


@pytest.fixture
def harness(tmp_path: Path, make_sweep, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Harness]:
    monkeypatch.setattr("deitctl.sweeps.run_queue.POLL_S", 0.001)
    config = make_sweep("smoothing=0.1").runs[0].config
    return lambda *polls: Harness(tmp_path, config, list(polls))


def test_a_free_job_takes_the_next_run(harness, tmp_path: Path) -> None:
    queue = harness(9, 1, 1, 1)
    queue.train(2, tmp_path)
    assert queue.most_at_once == 2
    assert [name for name, _ in queue.ended] == ["r1", "r2", "r3", "r0"]
    assert all(error == "code 1" for _, error in queue.ended)


def test_a_run_that_another_process_trains_is_awaited(harness, tmp_path: Path) -> None:
    queue = harness(1, 1)
    lock = FileLock(tmp_path / "r0" / "lock", fallback_to_soft=False)
    lock.acquire()
    start = queue.start

    def start_and_free(*arguments):
        lock.release()
        return start(*arguments)

    queue.start = start_and_free
    queue.train(1, tmp_path)
    assert [name for name, _ in queue.ended] == ["r1", "r0"]


def test_a_run_that_another_process_finishes_is_not_started(
    harness, tmp_path: Path, write_result
) -> None:
    queue = harness(1, 1)
    lock = FileLock(tmp_path / "r0" / "lock", fallback_to_soft=False)
    lock.acquire()
    start = queue.start

    def finish_and_start(*arguments):
        write_result(tmp_path / "r0", 90.0)
        lock.release()
        return start(*arguments)

    queue.start = finish_and_start
    queue.train(1, tmp_path)
    assert list(queue.started) == ["r1"]
    assert sorted(queue.ended) == [("r0", ""), ("r1", "code 1")]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_the_runs_are_awaited(signum, harness, tmp_path: Path) -> None:
    queue = harness(10**9, 10**9, 1)
    start = queue.start

    def start_and_signal(*arguments):
        process = start(*arguments)
        if len(queue.started) == 2:
            os.kill(os.getpid(), signum)
        return process

    queue.start = start_and_signal
    with pytest.raises(Signalled):
        queue.train(2, tmp_path)
    assert [process.signals for process in queue.started.values()] == [[signum], [signum]]
    assert list(queue.started) == ["r0", "r1"]


def test_an_interrupted_sweep_says_what_is_kept(make_sweep, monkeypatch) -> None:
    monkeypatch.setattr("deitctl.sweeps.run_queue.POLL_S", 0.001)
    sweep = make_sweep("smoothing=0.2,0.3")

    def start(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        return Process(10**9)

    with pytest.raises(Interrupted) as stop:
        sweep.train(num_jobs=1, num_gpus=0, start=start)
    assert (stop.value.exit_code, stop.value.saved) == (
        143,
        "0 of 4 runs are finished, the others go on from their checkpoints.",
    )


def test_jobs_share_gpus_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("deitctl.sweeps.run_queue.count_cores", lambda: 16)
    devices = [make_environ(job, 3, 2)["CUDA_VISIBLE_DEVICES"] for job in range(3)]
    assert devices == ["0", "1", "0"]
    assert make_environ(0, 3, 0) == {"LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": "5"}
    assert make_environ(0, 1, 8) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert make_environ(1, 2, 2)["CUDA_VISIBLE_DEVICES"] == "6"

"""Runs that processes train, one after another or some at once, until all are done or a signal comes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deitctl.config import TrainConfig
from deitctl.cores import count_cores
from deitctl.errors import Signalled
from deitctl.events import Reporter, Task
from deitctl.lock import is_locked
from deitctl.sweeps.run_info import count_epochs
from deitctl.training.run_dir import Run
from deitctl.training.signals import StopRequest, hold_signals

POLL_S = 0.2
PATIENCE_S = 60.0
"""From a signal to the end of a run that does not obey it."""

MAX_NAMES = 60
"""Characters of the names beside the bar."""


@dataclass(frozen=True)
class QueuedRun:
    """A run that is to be trained."""

    name: str
    """Of its folder."""
    config: TrainConfig


class Process(Protocol):
    """See `RunProcess`."""

    def poll(self) -> int | None: ...
    def stop(self, signum: int) -> None: ...
    def kill(self) -> None: ...
    def explain_failure(self, code: int) -> str: ...


StartRun = Callable[[TrainConfig, Path, Mapping[str, str]], Process]
"""Starts the process of a run, by its configuration, the file for its messages and additions to the environment."""


class RunQueue:
    """Trains what `take` returns, `num_jobs` at once."""

    def __init__(
        self,
        take: Callable[[], QueuedRun | None],
        end: Callable[[QueuedRun, str], None],
        *,
        start: StartRun,
        logs: Path,
        num_jobs: int,
        num_gpus: int,
        reporter: Reporter,
    ) -> None:
        """Train nothing yet.

        Args:
            take: returns the next run, None if there is none at this moment.
            end: receives each run that ended, with why it failed, empty if it did not.
            start: see `StartRun`.
            logs: folder for the runs' messages.
            num_jobs: runs at once.
            num_gpus: devices that they are distributed over; below 2: each may use all.
            reporter: receives notes.
        """
        self._take, self._end, self._start = take, end, start
        self._logs, self._reporter = logs, reporter
        self._environs = [make_environ(job, num_jobs, num_gpus) for job in range(num_jobs)]
        self._active: dict[int, tuple[QueuedRun, Process]] = {}
        self._locked: list[QueuedRun] = []
        self._epochs: dict[str, int] = {}

    def train(self, task: Task) -> None:
        """Train all.

        Raises:
            Signalled: a signal came; the runs were stopped, and saved what they had.
        """
        stop = StopRequest()
        with hold_signals(stop):
            try:
                while self._fill() or self._active or self._locked:
                    time.sleep(POLL_S)
                    stop.raise_if_set()
                    self._collect(task)
            except BaseException as error:
                self._stop(error)
                raise

    def _fill(self) -> bool:
        """Start runs for the jobs that have none; return whether there was one to start."""
        has_started = False
        for job in range(len(self._environs)):
            if job in self._active or (run := self._next()) is None:
                continue
            log = self._logs / f"{run.name}.log"
            self._epochs[run.name] = count_epochs(Run(Path(run.config.output_dir)))
            self._active[job] = run, self._start(run.config, log, self._environs[job])
            has_started = True
        return has_started

    def _next(self) -> QueuedRun | None:
        """Return a run that no other process trains."""
        for run in list(self._locked):
            if _is_taken(run):
                continue
            self._locked.remove(run)
            if Run(Path(run.config.output_dir)).result() is None:
                return run
            self._end(run, "")
        while (new := self._take()) is not None:
            if not _is_taken(new):
                return new
            self._reporter.note(f"{new.name} is trained by another process: its end is awaited.")
            self._locked.append(new)
        return None

    def _collect(self, task: Task) -> None:
        """Report what has ended, and the epochs that were trained since the last look."""
        num_epochs, names = 0, ", ".join(run.name for run, _ in self._active.values())
        for job, (run, process) in list(self._active.items()):
            code = process.poll()
            done = count_epochs(Run(Path(run.config.output_dir)))
            num_epochs += max(0, done - self._epochs[run.name])
            self._epochs[run.name] = done
            if code is not None:
                del self._active[job]
                # those of a run that failed, or that patience ended, do not come
                task.skip(max(0, run.config.recipe.epochs - done))
                is_finished = Run(Path(run.config.output_dir)).result() is not None
                self._end(run, "" if is_finished else process.explain_failure(code))
        task.advance(
            num_epochs, now=names if len(names) <= MAX_NAMES else f"{names[:MAX_NAMES]}..."
        )

    def _stop(self, error: BaseException) -> None:
        """Pass a signal on, and wait until the runs have saved; a second signal does not wait."""
        running = [process for _, process in self._active.values() if process.poll() is None]
        if running and not getattr(error, "insists", False):
            for process in running:
                process.stop(getattr(error, "signum", signal.SIGTERM))
            self._reporter.note("Stopping: the runs save what they have.")
            deadline = time.monotonic() + PATIENCE_S
            with suppress(Signalled):
                while time.monotonic() < deadline and any(p.poll() is None for p in running):
                    time.sleep(POLL_S)
        for process in running:
            if process.poll() is None:
                process.kill()


def _is_taken(run: QueuedRun) -> bool:
    return is_locked(Run(Path(run.config.output_dir)).lock_file)


def make_environ(job: int, num_jobs: int, num_gpus: int) -> dict[str, str]:
    """Return what a job's processes have in their environment: a GPU, and their share of the cores."""
    environ: dict[str, str] = {}
    if num_jobs > 1 and num_gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        devices = visible.split(",") if visible else [str(n) for n in range(num_gpus)]
        environ["CUDA_VISIBLE_DEVICES"] = devices[job % len(devices)]
    if num_jobs > 1:
        # by which loader processes and threads are counted, see `count_cores`
        environ["LOCAL_WORLD_SIZE"] = str(num_jobs)
        if "OMP_NUM_THREADS" not in os.environ:
            environ["OMP_NUM_THREADS"] = str(max(1, count_cores() // num_jobs))
    return environ

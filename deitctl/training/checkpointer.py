"""Saves the state while training continues: it waits for a copy in memory, which a thread writes."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deitctl.errors import ConfigError
from deitctl.paths import DiskError
from deitctl.training.run_dir import Run
from deitctl.training.signals import StopRequest
from deitctl.training.state import Snapshot, TrainState

if TYPE_CHECKING:
    from deitctl.training.sharded_checkpoint import ShardedSnapshot

MAX_TIME_FRACTION = 0.01  # of the run that saving may take where it goes by the clock
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class AsyncCheckpointer:
    """Saves a run's state every so many steps or minutes, and on request.

    A state is staged (copied to memory) after one step and written after the next one has gone
    well: weights that a step broke look like any others until a loss has been computed with them.
    """

    def __init__(self, run: Run, every: str) -> None:
        """Save to `run.checkpoint`, in the main process alone; `every` as in `parse_interval`."""
        self.run = run
        self.steps, self.seconds = parse_interval(every)
        self.requested = False
        """Whether the next state that may be saved is to be, whatever the interval."""
        self.last_time = time.monotonic()
        self.cost_s = 0.0
        """Duration of the last save, in both threads together."""
        self.saved_step = self.staged_step = -1
        self._staged: Snapshot | ShardedSnapshot | None = None
        self._is_sharded = False
        """Whether every process writes its part, and none can without the others."""
        self._staging_s = 0.0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def should_save(self, step: int) -> bool:
        """Return whether a state is due after `step` steps."""
        if self.steps:  # once a step: the end of an epoch asks again after its last one
            return step % self.steps == 0 and step != self.staged_step
        elapsed = time.monotonic() - self.last_time
        return elapsed >= max(self.seconds, self.cost_s / MAX_TIME_FRACTION)

    def maybe_save(self, state: TrainState, verify: Callable[[], bool]) -> None:
        """Write the staged state, and stage this one if it is due.

        Args:
            state: between two steps.
            verify: reads the losses of all steps so far, and returns whether they are good; else
                nothing is written. Not called where there is nothing to write or to stage.

        Raises:
            DeitctlError: the previous write failed; the checkpoint before it is intact.
        """
        self.requested = self.requested or self.should_save(state.progress.step)
        if state.sharding is not None:  # each process saves its part, by clocks that differ
            self.requested = state.sharding.agree(self.requested)
        if (self.requested or self._staged is not None) and verify():
            self.write()
            if self.requested:
                self.stage(state)

    def stage(self, state: TrainState) -> None:
        """Copy the state to memory, to be written by the next `write`."""
        self.requested = False
        self._is_sharded = state.sharding is not None
        if not (self.run.writes or self._is_sharded):
            return
        # Counted from here, so that the next save is not due before this one is written.
        start = self.last_time = time.monotonic()
        self.staged_step = state.progress.step
        state.progress.log_bytes = self.run.measure_log()
        self._staged = state.snapshot()
        self._staging_s = time.monotonic() - start

    def write(self) -> None:
        """Start to write the staged state, if there is one; raise as `finish`."""
        if self._staged is None:
            return
        self.finish()
        snapshot, self._staged = self._staged, None
        thread = threading.Thread(
            target=self._write_snapshot,
            args=(snapshot,),
            name="write the checkpoint",
            daemon=self._is_sharded,  # a process that fails must not wait for the others' parts
        )
        thread.start()
        self._thread = thread

    def save(self, state: TrainState, *, wait_s: float | None = None) -> None:
        """Stage the state, write it and wait until it is on the disk; raise as `finish`.

        Args:
            state: after a whole step.
            wait_s: seconds that the other processes have to come here too, where each writes its part;
                else nothing is written. None: all come.
        """
        sharding, step = state.sharding, state.progress.step
        if wait_s is not None and sharding is not None and not sharding.meet(step, wait_s):
            return
        self.stage(state)
        self.write()
        self.finish()

    def finish(self) -> None:
        """Wait for the write in progress.

        Raises:
            DeitctlError: it failed; the checkpoint before it is intact.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if error := self._error:
            self._error = None
            if not isinstance(error, DiskError):
                raise error
            raise self.run.explain_full_disk(error) from error

    def _write_snapshot(self, snapshot: Snapshot | ShardedSnapshot) -> None:
        start = time.monotonic()
        try:
            if self.run.writes:
                self._sync_log()
            snapshot.write(self.run.checkpoint)
            self.saved_step = int(snapshot.record["step"])
        except BaseException as error:  # raised in the main thread, by `finish`
            self._error = error
        self.last_time = time.monotonic()
        self.cost_s = self._staging_s + self.last_time - start

    def _sync_log(self) -> None:
        # The checkpoint says how long the log was: the log must not be shorter after a power
        # failure.
        log = self.run.metrics_file
        try:
            if log.exists():
                with log.open("rb+") as file:
                    os.fsync(file.fileno())
        except OSError as error:
            raise DiskError.from_os_error(log, error) from error


@dataclass(frozen=True)
class SaveOrStop:
    """Handles signals between two batches of work that does not change the state, as validation."""

    signals: StopRequest
    checkpointer: AsyncCheckpointer
    state: TrainState
    verify: Callable[[], bool]
    """As of `AsyncCheckpointer.maybe_save`."""

    def raise_if_set(self) -> None:
        """Save if SIGUSR1 came; raise `Signalled` if SIGINT or SIGTERM did."""
        if self.signals.save_requested:
            self.signals.save_requested = False
            if self.state.sharding is not None:  # after the validation, with the other processes
                self.checkpointer.requested = True
            else:
                # A save that is interrupted would leave the next one nothing.
                with self.signals.hold():
                    if self.verify():
                        self.checkpointer.save(self.state)
        self.signals.raise_if_set()


def parse_interval(text: str) -> tuple[int, float]:
    """Parse `500` (steps), `90s`, `10m` or `1h`; return steps and seconds, one of which is 0.

    Raises:
        ConfigError: it is none of these, or zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    number = float(match[1]) if match else 0.0
    if not match or not number or (not match[2] and not number.is_integer()):
        raise ConfigError(
            f"save_every = {text!r} is no interval.", "Examples: 500 (steps), 90s, 10m, 1h."
        )
    return (0, number * SECONDS[match[2]]) if match[2] else (int(number), 0.0)

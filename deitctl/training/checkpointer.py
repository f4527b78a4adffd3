"""When the state is saved, and how that costs the training next to nothing: a copy in memory, written by another thread."""

from __future__ import annotations

import os
import re
import shlex
import threading
import time
from pathlib import Path

from deitctl.errors import ConfigError, DeitctlError
from deitctl.paths import DiskError
from deitctl.training.state import Snapshot, TrainState

LARGEST_SHARE = 0.01
"""Of the time that saving may take where it goes by the clock."""
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class AsyncCheckpointer:
    """Saves a run's state every so many steps or minutes."""

    def __init__(self, folder: Path, log: Path, every: str) -> None:
        """Save into `folder`; `log` is made safe before a state that counts its bytes; `every` as in `parse_interval`."""
        self.folder, self.log = folder, log
        self.steps, self.seconds = parse_interval(every)
        self.last = time.monotonic()
        self.cost = 0.0
        """Seconds the last save took, in both threads together."""
        self.saved_step = -1
        self._copy: Snapshot | None = None
        self._copying = 0.0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def due(self, step: int) -> bool:
        """Say whether a state is to be saved after `step` steps."""
        if self.steps:
            return step % self.steps == 0
        waited = time.monotonic() - self.last
        return waited >= max(self.seconds, self.cost / LARGEST_SHARE)

    def copy(self, state: TrainState) -> None:
        """Copy the state, to be written once it has proved good: weights that the last step broke look like any others."""
        start = self.last = time.monotonic()  # until it is written the next is not due
        self._copy = state.snapshot()
        self._copying = time.monotonic() - start

    def write_copy(self) -> None:
        """Begin to write the copy, if there is one, because the step after it went well.

        Raises:
            DeitctlError: the save before could not be written; the one before that is whole.
        """
        if self._copy is None:
            return
        self.finish()
        snapshot, self._copy = self._copy, None
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="save the state")
        self._thread.start()

    def save(self, state: TrainState) -> None:
        """Copy the state and write it now; raise as `finish`."""
        self.copy(state)
        self.write_copy()
        self.finish()

    def _write(self, snapshot: Snapshot) -> None:
        start = time.monotonic()
        try:
            self._sync_log()
            snapshot.write(self.folder)
            self.saved_step = int(snapshot.record["step"])
        except BaseException as error:
            self._error = error
        self.last = time.monotonic()
        self.cost = self._copying + self.last - start

    def _sync_log(self) -> None:
        try:
            if self.log.exists():
                with self.log.open("rb+") as file:
                    os.fsync(file.fileno())
        except OSError as error:
            raise DiskError.from_os_error(self.log, error) from error

    def finish(self) -> None:
        """Wait for the write under way; raise what went wrong in it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if error := self._error:
            self._error = None
            if not isinstance(error, DeitctlError):
                raise error
            run = self.folder.parent
            left = (
                "The last good state is untouched"
                if self.folder.exists()
                else "Nothing was saved before"
            )
            raise DeitctlError(
                f"{error.message} {left}.",
                f"{error.hint} Then: deitctl train --resume {shlex.quote(str(run))}",
            ) from error


def parse_interval(text: str) -> tuple[int, float]:
    """Read `500` (steps), `90s`, `10m` or `1h`; return steps and seconds, one of which is 0.

    Raises:
        ConfigError: it is none of these, or nothing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    number = float(found[1]) if found else 0.0
    if not found or not number or (not found[2] and not number.is_integer()):
        raise ConfigError(
            f"save_every = {text!r} is no interval.", "Examples: 500 (steps), 90s, 10m, 1h."
        )
    return (0, number * UNITS[found[2]]) if found[2] else (int(number), 0.0)

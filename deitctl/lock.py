"""Locks that a killed process lets go: one writer of a run, one trainer of a teacher."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

from deitctl.errors import DeitctlError


class Busy(DeitctlError):
    """Somebody else holds the lock."""


@contextmanager
def locked(path: Path, *, what: str, when_busy: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of a file for a block; the kernel lets it go when the process ends, however it ends.

    Args:
        path: the lock's file, made if need be, which holds the number of the process that has it.
        what: what is locked, for the message.
        when_busy: called before waiting for who has it; None: do not wait.

    Raises:
        Busy: another process has it, and `when_busy` is None.
        OSError: the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            import fcntl
        except ImportError:  # Windows: nothing is locked there
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if when_busy is None:
                file.seek(0)
                holder = file.read(20).strip()
                raise Busy(
                    f"{what} is being written by another process{f' (number {holder})' if holder.isdigit() else ''}.",
                    "Wait for it or end it, or name another --output.",
                ) from None
            when_busy()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            yield
            return
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        with _kept_from_children(file):
            yield


_held: set[IO[str]] = set()


@contextmanager
def _kept_from_children(file: IO[str]) -> Iterator[None]:
    """Have processes that are forked meanwhile, loaders for example, close the file: a lock lasts as long as anybody has it."""
    if not _held:
        _at_fork()
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)


@cache
def _at_fork() -> None:
    def close_in_child() -> None:
        for file in _held:
            os.close(file.fileno())

    os.register_at_fork(after_in_child=close_in_child)

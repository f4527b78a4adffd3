"""Reads in flight: threads of a process that read ahead, and what they have read so far."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from queue import SimpleQueue

from deitctl.data.stores.stores import IN_FLIGHT

MAX_BYTES = 96 * 2**20
"""That are read ahead, a process: three batches of 256 images of ImageNet."""
STALE_S = 60.0
"""After which what was read ahead, and not read, is not waited for: an epoch was left, for example."""


@dataclass
class _Read:
    """A read that was started, and its result."""

    size: int
    """In bytes that it holds."""
    is_kept: bool
    """Whether its result stays when it is done."""
    future: Future[bytes] = field(default_factory=Future)
    started_s: float = field(default_factory=time.monotonic)
    is_used: bool = False


class ReadsAhead:
    """Reads by key, which threads do while something else is computed."""

    def __init__(self) -> None:
        """Start nothing: threads are started by the reads that need them."""
        self._tasks = SimpleQueue[tuple[Hashable, _Read, Callable[[], bytes]]]()
        self._reads = OrderedDict[Hashable, _Read]()
        self._lock = threading.Lock()
        self._num_bytes = self._num_threads = 0

    def start(
        self, key: Hashable, size: int, read: Callable[[], bytes], *, is_kept: bool = True
    ) -> bool:
        """Start a read, unless it was; return whether there was room for its bytes.

        Args:
            key: names what is read.
            size: of it, in bytes.
            read: called in a thread.
            is_kept: whether its result stays here; else it is to be waited for, and lies elsewhere.
        """
        with self._lock:
            if key in self._reads:
                return True
            if not self._make_room(size):
                return False
            entry = _Read(size, is_kept)
            self._reads[key] = entry
            self._num_bytes += size
            if self._num_threads < IN_FLIGHT:
                self._num_threads += 1
                # Not an executor's, which the interpreter waits for at its exit.
                threading.Thread(target=self._work, name="deitctl-read", daemon=True).start()
        self._tasks.put((key, entry, read))
        return True

    def get(self, key: Hashable) -> bytes | None:
        """Return what was read ahead, waiting for it; None if it was not started.

        Raises:
            Exception: what the read has raised; the next one of this key starts again.
        """
        with self._lock:
            entry = self._reads.get(key)
            if entry is None:
                return None
            entry.is_used = True
        try:
            return entry.future.result()
        except BaseException:
            with self._lock:
                self._forget(key)
            raise

    def _make_room(self, size: int) -> bool:
        """Forget what was used, oldest first, then what is stale; return whether that is enough."""
        if self._num_bytes + size <= MAX_BYTES:
            return True
        stale_s = time.monotonic() - STALE_S
        for key, entry in list(self._reads.items()):
            if entry.future.done() and (entry.is_used or entry.started_s < stale_s):
                self._forget(key)
                if self._num_bytes + size <= MAX_BYTES:
                    return True
        return False

    def _forget(self, key: Hashable) -> None:
        if (entry := self._reads.pop(key, None)) is not None:
            self._num_bytes -= entry.size

    def _work(self) -> None:
        while True:
            key, entry, read = self._tasks.get()
            try:
                entry.future.set_result(read())
            except BaseException as error:
                entry.future.set_exception(error)
                continue
            if not entry.is_kept:
                with self._lock:
                    self._forget(key)


def get_reads_ahead() -> ReadsAhead:
    """Return the reads of this process: threads do not survive a fork."""
    return _make_reads_ahead(os.getpid())


@cache
def _make_reads_ahead(pid: int) -> ReadsAhead:
    return ReadsAhead()

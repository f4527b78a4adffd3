"""Threads whose work nobody waits for at the end.

`concurrent.futures` joins its threads when a block, and again when the interpreter ends: an interrupted
command would wait for a slow server, a dead mount or an image that takes minutes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 16
"""Items that `map` submits before they are needed, a thread."""


class DaemonThreads:
    """Threads that apply functions; at the end of the block they are left to themselves."""

    def __init__(self, size: int) -> None:
        """Start `size` threads at most, as they are needed."""
        self._size, self._threads = size, 0
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def __enter__(self) -> DaemonThreads:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        try:
            while True:
                task = self._tasks.get_nowait()
                if task is not None:
                    task[0].cancel()
        except Empty:
            for _thread in range(self._threads):
                self._tasks.put(None)

    def submit(self, function: Callable[[T], R], item: T) -> Future[R]:
        """Apply a function to an item in a thread."""
        future: Future[R] = Future()
        self._tasks.put((future, lambda: function(item)))
        if self._threads < self._size:
            self._threads += 1
            threading.Thread(target=_work, args=(self._tasks,), daemon=True).start()
        return future

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the results in the order of the items, of which some are taken ahead."""
        remaining = iter(items)
        pending = deque(
            self.submit(function, item) for item in islice(remaining, AHEAD * self._size)
        )
        while pending:
            result = pending.popleft().result()
            pending.extend(self.submit(function, item) for item in islice(remaining, 1))
            yield result


def _work(tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    while (task := tasks.get()) is not None:
        future, apply = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(apply())
        except BaseException as error:  # raised again where the result is read
            future.set_exception(error)
        del future, apply, task  # the result is not kept until the next one

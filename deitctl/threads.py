"""Threads whose work nobody waits for at the end.

`concurrent.futures` joins its threads when a block, and again when the interpreter ends: an interrupted
command would wait for a slow server, a dead mount or an image that takes minutes.
"""

from __future__ import annotations

import threading
import time
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
NUM_TRIED = 64
"""Items after which `map_patiently` looks how long it waited for them."""
SLOW_S = 200e-6
"""Waiting for an item, from which on it is a file server that is waited for: a local disk's cache answers
in a few microseconds."""
MOSTLY = 3
"""Times as long as it computes an item is waited for, if that is waiting: on a busy machine a function that waits
for nothing waits for the processor, about as long as it computes for each process beside it."""
NUM_WAITING = 32
"""Threads that wait for a file server at a time, whatever the cores."""


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


def map_patiently(
    function: Callable[[T], R], items: Iterable[T], *, num_threads: int = 1, num_units: int = 1
) -> Iterator[R]:
    """Yield the results in the order of the items, by `NUM_WAITING` threads where most of the time is waiting.

    Args:
        function: applied to each item.
        items: what it is applied to.
        num_threads: where there is no waiting; 1: none but this one, as those that read what is at hand get
            in each other's way.
        num_units: what an item consists of, each of which may be waited for.
    """
    remaining = iter(items)
    while some := list(islice(remaining, max(1, NUM_TRIED // num_units))):
        start_s, start_cpu_s = time.perf_counter(), time.thread_time()
        results = [function(item) for item in some]
        computed_s = time.thread_time() - start_cpu_s
        waited_s = time.perf_counter() - start_s - computed_s
        yield from results
        is_slow = waited_s > max(SLOW_S * num_units * len(some), MOSTLY * computed_s)
        if is_slow or num_threads > 1:
            with DaemonThreads(NUM_WAITING if is_slow else num_threads) as threads:
                yield from threads.map(function, remaining)


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

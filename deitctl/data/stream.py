"""Streams of batches that loader processes prepare: their order, how they are waited for and pinned.

Every stream of the program is one of these: training views, views for a teacher, evaluation, `check`,
`pack`. The same batches in the same order for any number of processes.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import torch

from deitctl.data.loader_pool import LoaderPool, Promise
from deitctl.data.loader_process import (
    END_S,
    MORE_FILES,
    NO_LOADERS,
    POLL_S,
    Failure,
    Loading,
    make_batch,
)
from deitctl.device import ran_out_of_memory
from deitctl.errors import LoaderLost
from deitctl.events import Reporter

Key = TypeVar("Key")
Sample = TypeVar("Sample")
Batch = TypeVar("Batch")

WARN_AFTER_S = 60.0
"""Without a batch, after which there is a warning."""
MAX_WAIT_S = 600.0
"""Without an image, after which the loaders count as lost."""


@dataclass(frozen=True)
class Functions(Generic[Key, Sample, Batch]):
    """Batches that are made by two functions, of which nothing is to be read ahead."""

    load: Callable[[Key], Sample]
    join: Callable[[Sequence[Sample]], Batch]

    def __getitem__(self, key: Key) -> Sample:
        return self.load(key)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        return self.join(samples)

    def prefetch(self, keys: Sequence[Key]) -> None:
        pass


def stream_batches(
    load: Callable[[Key], Sample],
    collate: Callable[[Sequence[Sample]], Batch],
    batches: Iterable[Sequence[Key]],
    *,
    workers: int,
    ahead: int = 2,
    pin: Callable[[Batch], Batch] | None = None,
    pause: Callable[[], None] = lambda: None,
    reporter: Reporter | None = None,
) -> Generator[Batch]:
    """Yield `collate` of the loaded keys of each batch, in order; from processes that end with the generator.

    Args:
        load: returns the sample of a key.
        collate: joins samples; like `load` it is picklable where processes are spawned.
        batches: as for `stream_from`, like what follows.
        workers: loader processes; 0: none.
        ahead: batches that each of them prepares before they are needed.
        pin: copies a batch into memory from which an accelerator reads.
        pause: called about once a second while no batch comes; may raise to stop.
        reporter: gets a warning when nothing comes for a minute.

    Raises:
        LoaderLost: see `stream_from`.
    """
    loading = Functions(load, collate)
    with closing(LoaderPool([loading], workers)) as pool:
        yield from stream_from(
            pool, loading, batches, ahead=ahead, pin=pin, pause=pause, reporter=reporter
        )


def stream_from(
    pool: LoaderPool,
    loading: Loading[Key, Sample, Batch],
    batches: Iterable[Sequence[Key]],
    *,
    ahead: int = 2,
    pin: Callable[[Batch], Batch] | None = None,
    pause: Callable[[], None] = lambda: None,
    reporter: Reporter | None = None,
) -> Generator[Batch]:
    """Yield the batches of some keys, in order, from processes that other streams may use at the same time.

    Args:
        pool: the processes, which start at the first batch if they do not run.
        loading: one of the pool's.
        batches: keys of each batch, read as far ahead as batches are prepared.
        ahead: batches that each process prepares before they are needed; they wait while another stream is
            read.
        pin: copies a batch into memory from which an accelerator reads, in a thread.
        pause: called about once a second while no batch comes; may raise to stop.
        reporter: gets a warning when nothing comes for a minute.

    Raises:
        LoaderLost: a loader ended, or has no memory or no file descriptors; none could be started;
            or nothing comes for ten minutes.
    """
    if not pool.workers:
        for batch in _load_here(loading, batches):
            yield pin(batch) if pin else batch
        return
    patience = Patience(pause, reporter)
    with _explain_shortage():
        if pin is None:
            yield from _receive_in_order(pool, loading, batches, ahead, patience, patience.check)
        else:
            pool.start()  # in this thread: the processes end with the one that starts them
            yield from _pin_in_thread(
                partial(_receive_in_order, pool, loading, batches, ahead, patience), pin, patience
            )


def _load_here(
    loading: Loading[Key, Sample, Batch], batches: Iterable[Sequence[Key]]
) -> Iterator[Batch]:
    """Yield batches made in this process."""
    following = iter(batches)
    keys = next(following, None)
    while keys is not None:
        next_keys = next(following, None)
        yield make_batch(loading, keys, next_keys=next_keys or ())
        keys = next_keys


def batched_range(count: int, size: int) -> Iterator[range]:
    """Yield the numbers below `count` in ranges of `size`, of which the last may be shorter."""
    return (range(first, min(first + size, count)) for first in range(0, count, size))


class Patience:
    """How long nothing has come, and what follows from it."""

    def __init__(self, pause: Callable[[], None], reporter: Reporter | None) -> None:
        self.pause, self.reporter = pause, reporter
        self.renew()

    def renew(self) -> None:
        """Count from now: something came, or the waiting begins."""
        self.since, self.warned = time.monotonic(), False

    def check(self) -> None:
        """Let signals be obeyed; warn once, and raise `LoaderLost` at last."""
        self.pause()
        waited = time.monotonic() - self.since
        if waited > MAX_WAIT_S:
            raise LoaderLost(
                f"No image came from the loader processes for {MAX_WAIT_S:.0f} s: they wait for the data, "
                "or were stopped.",
                "See whether its disk or mount answers (`ls` in its folder).",
            )
        if waited > WARN_AFTER_S and not self.warned and self.reporter is not None:
            self.warned = True
            self.reporter.warn(
                f"No image came from the loader processes for {waited:.0f} s: they wait for the data (does its "
                f"disk or mount answer?), or were stopped. This ends after {MAX_WAIT_S:.0f} s."
            )


def _receive_in_order(
    pool: LoaderPool,
    loading: Loading[Any, Any, Any],
    batches: Iterable[Any],
    ahead: int,
    patience: Patience,
    wait: Callable[[], None],
) -> Generator[Any]:
    """Send the keys of batches to the loaders in turn, and yield the batches in that order."""
    loaders, stream = pool.start(), pool.number_stream()
    keys, turns, pending = iter(batches), cycle(loaders), deque[Promise]()

    def send(count: int) -> None:
        for batch_keys in islice(keys, count):
            pending.append(pool.send(next(turns), stream, loading, list(batch_keys), wait))

    try:
        send(ahead * len(loaders))
        while pending:
            patience.renew()
            batch = pool.receive(pending.popleft(), patience.renew, wait)
            if isinstance(batch, Failure):
                raise batch.error
            send(1)
            yield batch
    finally:
        if pending:  # other streams would wait for them
            pool.drop(stream)


def _pin_in_thread(
    receive: Callable[[Callable[[], None]], Generator[Any]],
    pin: Callable[[Any], Any],
    patience: Patience,
) -> Iterator[Any]:
    """Receive and pin a batch in a thread while the one before is used."""
    # A place is for a batch that waits. Simple queues, whose locks no signal's exception leaves held.
    pinned, places = SimpleQueue[Any](), SimpleQueue[bool]()
    places.put(True)
    closed, end = threading.Event(), object()
    device = torch.accelerator.current_device_index() if torch.accelerator.is_available() else None

    def raise_if_closed() -> None:  # signals are the main thread's
        if closed.is_set():
            raise GeneratorExit

    def put(item: object) -> None:
        while not closed.is_set():
            if _get(places):
                pinned.put(item)
                return

    def run() -> None:
        try:
            if device is not None:  # a thread begins with the first one
                torch.accelerator.set_device_index(device)
            with closing(receive(raise_if_closed)) as batches:
                for batch in batches:
                    raise_if_closed()
                    put(_pin(batch, pin))
            put(end)
        except BaseException as error:
            put(Failure(error))

    thread = threading.Thread(target=run, name="deitctl-pin", daemon=True)
    thread.start()
    try:
        while True:
            patience.renew()
            while (batch := _get(pinned)) is None:
                patience.check()
            places.put(True)
            if batch is end:
                return
            if isinstance(batch, Failure):
                raise batch.error
            yield batch
    finally:
        closed.set()
        thread.join(END_S)  # a driver that hangs may keep it


def _pin(batch: Batch, pin: Callable[[Batch], Batch]) -> Batch:
    try:
        return pin(batch)
    except Exception as error:
        if ran_out_of_memory(error):
            raise LoaderLost("Memory ran out while a batch was pinned.", NO_LOADERS) from error
        raise


def _get(queue: SimpleQueue[Any]) -> Any:
    """Return the next item, None if there is none for a second."""
    try:
        return queue.get(timeout=POLL_S)
    except Empty:
        return None


@contextmanager
def _explain_shortage() -> Iterator[None]:
    """Turn a want of memory, descriptors, threads or processes, here or in a loader, into `LoaderLost`."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise LoaderLost("Too many open files for loader processes.", MORE_FILES) from error
        if "can't start new thread" in str(error):
            raise LoaderLost("A loader process cannot start a thread.", NO_LOADERS) from error
        if ran_out_of_memory(error):
            raise LoaderLost("Memory ran out in a loader process.", NO_LOADERS) from error
        raise

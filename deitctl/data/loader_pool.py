"""Loader processes that several streams share: how they start, are sent keys, hand over batches, and end."""

from __future__ import annotations

import atexit
import errno
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from deitctl.data.channel import Channel, encode
from deitctl.data.loader_process import (
    END_S,
    GROUP_SIGNALS,
    MORE_FILES,
    NO_LOADERS,
    POLL_S,
    Loading,
    StreamEnd,
    Task,
    explain_end,
    work,
)
from deitctl.errors import LoaderLost


class LoaderPool:
    """Loader processes that start at the first batch, and make batches of several kinds until they are closed.

    They have every kind from their start, so that a forked one has its data set without a copy.
    """

    def __init__(self, loadings: Sequence[Loading[Any, Any, Any]], workers: int) -> None:
        """Start nothing yet.

        Args:
            loadings: how each kind of batches is made.
            workers: processes; 0: none, the batches are made where they are used.
        """
        self.loadings, self.workers = tuple(loadings), workers
        self._loaders: list[Loader] = []
        self._processes = ExitStack()
        self._is_broken = False
        """Whether a message to or from a process has broken off, so that none of them can be used again."""
        self._streams = count()

    def __contains__(self, loading: Loading[Any, Any, Any]) -> bool:
        """Return whether the processes make these batches."""
        return loading in self.loadings

    def start(self) -> list[Loader]:
        """Return the processes, which start if they do not run.

        Raises:
            LoaderLost: one cannot be started.
        """
        if self._is_broken:
            self.close()
        if not self._loaders:
            self._loaders = self._processes.enter_context(
                _start_loaders(self.loadings, self.workers)
            )
        return self._loaders

    def number_stream(self) -> int:
        """Return a number for a stream, which no other one has."""
        return next(self._streams)

    def close(self) -> None:
        """Kill the processes; a stream that is read later starts others."""
        self._loaders, self._is_broken = [], False
        self._processes.close()

    def send(
        self,
        loader: Loader,
        stream: int,
        loading: Loading[Any, Any, Any],
        keys: Sequence[Any],
        wait: Callable[[], None],
    ) -> Promise:
        """Send the keys of a batch to a process.

        Args:
            loader: the process.
            stream: number of the stream that the batch is for.
            loading: makes it.
            keys: of its samples.
            wait: called about once a second, and may raise.
        """
        try:
            return loader.send(Task(stream, self.loadings.index(loading), keys), wait)
        except BaseException:
            self._is_broken = True
            raise

    def drop(self, stream: int) -> None:
        """Have the processes make none of the batches that a stream has sent for and not received."""
        deadline = time.monotonic() + END_S

        def wait() -> None:
            if time.monotonic() > deadline:
                raise TimeoutError

        try:
            for loader in self._loaders:
                if not self._is_broken:  # else all are replaced
                    loader.drop(stream, wait)
        except (LoaderLost, TimeoutError):
            self._is_broken = True
        except BaseException:
            self._is_broken = True
            raise

    def receive(
        self, promise: Promise, note_alive: Callable[[], None], wait: Callable[[], None]
    ) -> Any:
        """Return the batch of a promise.

        Args:
            promise: of the batch.
            note_alive: called at every sign of life before it.
            wait: called about once a second, and may raise.

        Raises:
            LoaderLost: a process ended.
        """
        for loader in self._loaders:
            # Also of those whose turn it is not yet: a step may take long.
            if not loader.process.is_alive():
                raise explain_end(loader.process.exitcode)
        try:
            promise.loader.receive(promise, note_alive, wait)
        except BaseException:
            # The rest of a message would be read as the next one.
            self._is_broken |= promise.loader.channel.is_within_message
            raise
        return promise.batch


@dataclass(frozen=True)
class Loader:
    """A loader process, and the socket to it."""

    process: BaseProcess
    channel: Channel
    promises: deque[Promise] = field(default_factory=deque)
    """Of the batches that were sent for, in the order in which they come."""
    sending: threading.Lock = field(default_factory=threading.Lock)
    receiving: threading.Lock = field(default_factory=threading.Lock)

    def send(self, task: Task, wait: Callable[[], None]) -> Promise:
        """Send for a batch; `wait` is called about once a second, and may raise."""
        promise = Promise(self)
        with self.sending, self._explain_end():
            self.promises.append(promise)
            self._send(task, wait)
        return promise

    def drop(self, stream: int, wait: Callable[[], None]) -> None:
        """Let batches of a stream be empty that are not made yet; `wait` as in `send`."""
        with self.sending, self._explain_end():
            self._send(StreamEnd(stream), wait)

    def _send(self, message: Task | StreamEnd, wait: Callable[[], None]) -> None:
        # in the socket: the loader may have no descriptor left for a file
        self.channel.send_message(encode(message), may_use_file=False, wait=wait)

    def receive(
        self, promise: Promise, note_alive: Callable[[], None], wait: Callable[[], None]
    ) -> None:
        """Receive until a batch is there; those before it go to whom they were promised.

        Args:
            promise: of the batch.
            note_alive: called at every sign of life before it.
            wait: called about once a second, and may raise.

        Raises:
            LoaderLost: the process ended.
        """
        while not promise.is_kept:
            # Streams may wait in threads of their own: whoever is first receives for the others.
            with self.receiving, self._explain_end():
                if not promise.is_kept:
                    batch = self.channel.receive(note_alive, wait)
                    self.promises.popleft().keep(batch)
                    note_alive()

    @contextmanager
    def _explain_end(self) -> Iterator[None]:
        try:
            yield
        except EOFError:
            self.process.join(END_S)
            raise explain_end(self.process.exitcode) from None


class Promise:
    """A batch whose keys were sent to a loader."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.is_kept = False
        self.batch: Any = None

    def keep(self, batch: Any) -> None:
        """Store the batch, which has come."""
        self.batch, self.is_kept = batch, True


@contextmanager
def _start_loaders(
    loadings: Sequence[Loading[Any, Any, Any]], count: int
) -> Iterator[list[Loader]]:
    """Start processes that make the batches of the keys they are sent; kill them at the end of the block.

    They send the batches back in the order in which they are sent the tasks. They are killed at the
    interpreter's exit too, before multiprocessing waits for them there.

    Raises:
        LoaderLost: one cannot be started.
    """
    loaders: list[Loader] = []

    def kill() -> None:
        for loader in loaders:
            loader.process.kill()  # not terminate(): they ignore SIGTERM

    try:
        with _hold_signals():
            while len(loaders) < count:
                # Each has draws of its own, like torch's; the program itself draws by seed and index.
                loaders.append(_start_loader(loadings, torch.initial_seed() + len(loaders)))
        # After a process was started: functions that are registered later are called earlier, and
        # starting the first one registered multiprocessing's.
        atexit.register(kill)
        yield loaders
    finally:
        atexit.unregister(kill)
        kill()
        deadline = time.monotonic() + END_S  # one that waits for a dead mount may not end
        for loader in loaders:
            loader.process.join(max(0.0, deadline - time.monotonic()))
            loader.channel.end.close()


def _start_loader(loadings: Sequence[Loading[Any, Any, Any]], seed: int) -> Loader:
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise explain_start(error) from error
    try:
        context = _choose_context()
        parent = 0 if context.get_start_method() == "forkserver" else os.getpid()
        # Another thread may end before the program does, and the system would take that for its end.
        watches = threading.current_thread() is threading.main_thread()
        arguments = (loadings, seed, ours, theirs, parent if watches else None)
        # daemon: its parent's exit does not wait for it without ending it
        process = context.Process(target=work, args=arguments, daemon=True)
        process.start()
    except OSError as error:
        ours.close()
        raise explain_start(error) from error
    finally:
        # Else the next loader would hold a copy, and the end of this one would not close the socket.
        theirs.close()
    ours.settimeout(POLL_S)
    return Loader(process, Channel(ours))


def _choose_context() -> Any:
    """Return how processes are started: as was chosen in this program, else forked on Linux."""
    method = multiprocessing.get_start_method(allow_none=True)
    return multiprocessing.get_context(method or ("fork" if sys.platform == "linux" else None))


@contextmanager
def _hold_signals() -> Iterator[None]:
    """Hold signals while processes start: one that raises would leave a process that nobody ends.

    By handlers, not by the mask: another thread would take the signal, and Python runs its handler in the
    main thread all the same. A forked process holds them too, until it ignores them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # whose handlers no signal interrupts
        return
    received: list[int] = []
    previous = {
        signum: signal.signal(signum, lambda number, _: received.append(number))
        for signum in GROUP_SIGNALS
        if signal.getsignal(signum) not in (signal.SIG_IGN, None)
    }
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        for signum in dict.fromkeys(received):
            signal.raise_signal(signum)


def explain_start(error: OSError) -> LoaderLost:
    """Return the error for loader processes that cannot be started."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return LoaderLost("There are too many open files to start loader processes.", MORE_FILES)
    return LoaderLost(f"No loader process can be started: {error.strerror}.", NO_LOADERS)

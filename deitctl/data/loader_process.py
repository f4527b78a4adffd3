"""What a loader process does, and how it ends, whatever ends its parent."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from deitctl.data.channel import Channel, encode
from deitctl.errors import DeitctlError, LoaderLost

Key = TypeVar("Key", contravariant=True)
Sample = TypeVar("Sample")
Batch = TypeVar("Batch", covariant=True)

POLL_S = 1.0
"""Between two looks at signals while nothing comes, and between two signs of life of a loader."""
END_S = 2.0
"""For killed processes to end."""
PREFETCH_EVERY = 32
"""Samples of a batch, at which those left are prefetched again: there may have been no room for all."""
CANNOT_SEND = 74
"""Exit code of a loader that cannot send (EX_IOERR of sysexits.h)."""
PR_SET_PDEATHSIG = 1  # linux/prctl.h
GROUP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]
"""Sent to a whole process group, by a terminal or a launcher: the parent acts on them, and ends its loaders."""
SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows, whose SIGTERM kills

NO_LOADERS = "Use fewer loader processes, or none (--workers 0)."
MORE_FILES = "Allow more (ulimit -n 4096), or use no loader processes (--workers 0)."


class Failure(NamedTuple):
    """What stands for a batch that cannot be made."""

    error: BaseException


class Task(NamedTuple):
    """A batch that a loader is to make."""

    stream: int
    """Number of the stream that it is for."""
    loading: int
    """Number of what makes it."""
    keys: Sequence[Any]
    """Of its samples."""


class StreamEnd(NamedTuple):
    """Sent after the tasks of a stream that is left early: what it sent for is not needed any more."""

    stream: int


class Tasks:
    """What a loader receives: a thread puts it in, ahead of its turn."""

    def __init__(self) -> None:
        self._received = SimpleQueue[Task | StreamEnd | Failure]()
        self._ended: set[int] = set()

    def put(self, received: Task | StreamEnd | Failure) -> None:
        """Add what was received; the end of a stream counts at once."""
        if isinstance(received, StreamEnd):
            self._ended.add(received.stream)
        self._received.put(received)

    def require_needed(self, task: Task) -> None:
        """Raise `NotNeeded` if the stream of a task has ended."""
        if task.stream in self._ended:
            raise NotNeeded

    def __iter__(self) -> Iterator[tuple[Task | Failure, Sequence[Any]]]:
        """Yield tasks in turn, each with the keys of the next one if that has come, and is like it."""
        following: Task | StreamEnd | Failure | None = None
        while True:
            task = self._received.get() if following is None else following
            following = None
            if isinstance(task, StreamEnd):
                self._ended.discard(task.stream)  # no task of it comes after
                continue
            if not self._received.empty():
                following = self._received.get()
            next_keys: Sequence[Any] = ()
            if isinstance(following, Task) and following[:2] == task[:2]:
                next_keys = following.keys
            yield task, next_keys


class NotNeeded(Exception):
    """The stream that a batch is for has ended."""


class Loading(Protocol[Key, Sample, Batch]):
    """How a kind of batches is made; picklable, for processes that are spawned."""

    def __getitem__(self, key: Key, /) -> Sample:
        """Load the sample of a key."""

    def collate(self, samples: Sequence[Sample], /) -> Batch:
        """Join samples."""

    def prefetch(self, keys: Sequence[Key], /) -> None:
        """Start reading what the samples of these keys are made of, unless that is under way; wait for nothing."""


def make_batch(
    loading: Loading[Key, Sample, Batch],
    keys: Sequence[Key],
    report: Callable[[], None] = lambda: None,
    next_keys: Sequence[Key] = (),
) -> Batch:
    """Return the batch of `keys`.

    Args:
        loading: makes it.
        keys: of its samples.
        report: called after each sample.
        next_keys: of the batch after it, for which reading starts too, as far as they are known.
    """
    samples = []
    for place, key in enumerate(keys):
        if place % PREFETCH_EVERY == 0:
            loading.prefetch([*keys[place:], *next_keys])
        samples.append(loading[key])
        report()
    return loading.collate(samples)


def work(
    loadings: Sequence[Loading[Any, Any, Any]],
    seed: int,
    parents: socket.socket,
    end: socket.socket,
    parent: int | None,
) -> None:
    """Make the batches of a loader, until its parent closes the socket or ends."""
    _forget_handlers()
    if parent is not None:
        _die_with_parent(parent)
    parents.close()  # with a copy of the parent's end, this process would wait for itself
    channel, tasks, last_sent = Channel(end), Tasks(), time.monotonic()

    def report(task: Task) -> None:
        nonlocal last_sent
        tasks.require_needed(task)
        if time.monotonic() - last_sent > POLL_S:
            _send_or_end(channel.send_alive)
            last_sent = time.monotonic()

    def answer(task: Task | Failure, next_keys: Sequence[Any]) -> None:
        try:
            if isinstance(task, Failure):
                raise task.error
            tasks.require_needed(task)
            made = make_batch(loadings[task.loading], task.keys, partial(report, task), next_keys)
            message = encode(made)
        except NotNeeded:
            message = encode(None)  # in its place: a batch is identified by its order
        except BaseException as error:
            message = encode(Failure(_make_portable(error)))
        _send_or_end(lambda: channel.send_message(message))

    try:
        torch.set_num_threads(1)
        _seed(seed)
        # Else parent and loader could wait for each other, each with a full socket.
        threading.Thread(target=_read_tasks, args=(channel, tasks), daemon=True).start()
    except BaseException as error:
        tasks.put(Failure(error))
    for task, next_keys in tasks:
        answer(task, next_keys)
        if isinstance(task, Failure):
            break
        last_sent = time.monotonic()
    _wait_for_parent()


def _send_or_end(send: Callable[[], None]) -> None:
    """Send; end the process where that fails, because half a message would be read as something else."""
    try:
        send()
    except BaseException:
        os._exit(CANNOT_SEND)


def _wait_for_parent() -> None:
    """Wait until the parent, which expects nothing more from it, ends this process."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(POLL_S)


def _read_tasks(channel: Channel, tasks: Tasks) -> None:
    """Read keys ahead of their turn, and end the process when its parent is gone or wants no more."""
    try:
        while True:
            tasks.put(channel.receive())
    except EOFError:
        os.kill(os.getpid(), SIGKILL)
    except BaseException as error:
        tasks.put(Failure(error))  # the main thread sends it, after the batches before


def _forget_handlers() -> None:
    """Let no function of the parent's handle signals, nor its socket receive them; ignore those of a group."""
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals():
        if callable(signal.getsignal(signum)):
            signal.signal(signum, signal.SIG_DFL)
    for signum in GROUP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def _seed(seed: int) -> None:
    """Seed the generators that a data set or transform of the user's may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed % 2**63)  # those of accelerators are not for a fork


def _die_with_parent(parent: int) -> None:
    """Have the system kill this process when the thread that started it ends, however that ends.

    Elsewhere than on Linux the closed socket does, unless the loader is stopped.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), SIGKILL)


def _make_portable(error: BaseException) -> BaseException:
    """Return an exception as it can be sent: with its traceback as text, unless it is one line anyway."""
    name = f"{type(error).__name__} in a loader process: {error}"
    portable: BaseException
    if isinstance(error, DeitctlError | MemoryError):
        portable = error.with_traceback(None)
    else:
        note = "".join(["In a loader process:\n", *traceback.format_exception(error)])
        # SystemExit and the like are of this process, and would end the parent without a word
        portable = error if isinstance(error, Exception) else RuntimeError(name)
        portable.add_note(note)
    portable.__cause__ = portable.__context__ = None
    try:
        ForkingPickler.loads(ForkingPickler.dumps(portable))
    except Exception:  # of its own arguments, or of a class that the parent has not
        notes = getattr(portable, "__notes__", [])
        portable = RuntimeError(name)
        for note in notes:
            portable.add_note(note)
    return portable


def explain_end(exit_code: int | None) -> LoaderLost:
    """Return the error for a loader process that ended before its parent ended it."""
    if exit_code == CANNOT_SEND:
        return LoaderLost("A loader process ended: it could not send a batch.", NO_LOADERS)
    if exit_code is None or exit_code >= 0:
        return LoaderLost(f"A loader process ended (exit code {exit_code}).", NO_LOADERS)
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else -exit_code
    cause = {
        "SIGKILL": ", most often because memory ran out",
        "SIGBUS": ", most often because a file that it read was cut",
    }.get(str(name), "")
    return LoaderLost(f"A loader process was ended by {name}{cause}.", NO_LOADERS)

"""Loader processes: how they start, what they do, and how they end, whatever ends their parent."""

from __future__ import annotations

import atexit
import ctypes
import errno
import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from deitctl.data.channel import Channel, encode
from deitctl.errors import DeitctlError, LoaderLost

Key = TypeVar("Key")
Sample = TypeVar("Sample")
Batch = TypeVar("Batch")

POLL_S = 1.0
"""Between two looks at signals while nothing comes, and between two signs of life of a loader."""
END_S = 2.0
"""For killed processes to end."""
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


@dataclass(frozen=True)
class Loading(Generic[Key, Sample, Batch]):
    """How a loader makes a batch of keys; picklable, for processes that are spawned."""

    load: Callable[[Key], Sample]
    collate: Callable[[Sequence[Sample]], Batch]

    def __call__(self, keys: Iterable[Key], report: Callable[[], None] = lambda: None) -> Batch:
        """Return the batch of `keys`; `report` is called after each."""
        samples = []
        for key in keys:
            samples.append(self.load(key))
            report()
        return self.collate(samples)


@dataclass(frozen=True)
class Loader:
    """A loader process, and the socket to it."""

    process: BaseProcess
    channel: Channel

    def send(self, keys: Sequence[Any]) -> None:
        """Send the keys of a batch to come."""
        with self._explain_end():
            # in the socket: the loader may have no descriptor left for a file
            self.channel.send_message(encode(keys), may_use_file=False)

    def receive(self, note_alive: Callable[[], None]) -> Any:
        """Return the next batch; `note_alive` is called at every sign of life before it.

        Raises:
            LoaderLost: the process ended.
        """
        with self._explain_end():
            batch = self.channel.receive(note_alive)
        if isinstance(batch, Failure):
            raise batch.error
        return batch

    @contextmanager
    def _explain_end(self) -> Iterator[None]:
        try:
            yield
        except EOFError:
            self.process.join(END_S)
            raise explain_end(self.process.exitcode) from None


@contextmanager
def start_loaders(
    loading: Loading[Any, Any, Any], count: int, wait: Callable[[], None]
) -> Iterator[list[Loader]]:
    """Start processes that make the batches of the keys they are sent; kill them at the end of the block.

    They are killed at the interpreter's exit too, before multiprocessing waits for them there.
    `wait` is called about once a second while one is waited for, and may raise.

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
                seed = torch.initial_seed() + len(loaders)
                loaders.append(_start_loader(loading, seed, wait))
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


def _start_loader(loading: Loading[Any, Any, Any], seed: int, wait: Callable[[], None]) -> Loader:
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise explain_start(error) from error
    try:
        context = _choose_context()
        parent = 0 if context.get_start_method() == "forkserver" else os.getpid()
        # Another thread may end before the program does, and the system would take that for its end.
        watches = threading.current_thread() is threading.main_thread()
        arguments = (loading, seed, ours, theirs, parent if watches else None)
        # daemon: its parent's exit does not wait for it without ending it
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
    except OSError as error:
        ours.close()
        raise explain_start(error) from error
    finally:
        # Else the next loader would hold a copy, and the end of this one would not close the socket.
        theirs.close()
    ours.settimeout(POLL_S)
    return Loader(process, Channel(ours, wait))


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


def _work(
    loading: Loading[Any, Any, Any],
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
    channel, tasks, last_sent = Channel(end), SimpleQueue[Any](), time.monotonic()

    def report() -> None:
        nonlocal last_sent
        if time.monotonic() - last_sent > POLL_S:
            _send_or_end(channel.send_alive)
            last_sent = time.monotonic()

    def answer(keys: Any) -> None:
        try:
            if isinstance(keys, Failure):
                raise keys.error
            message = encode(loading(keys, report))
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
    while True:
        keys = tasks.get()
        answer(keys)
        if isinstance(keys, Failure):
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


def _read_tasks(channel: Channel, tasks: SimpleQueue[Any]) -> None:
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


def explain_start(error: OSError) -> LoaderLost:
    """Return the error for loader processes that cannot be started."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return LoaderLost("There are too many open files to start loader processes.", MORE_FILES)
    return LoaderLost(f"No loader process can be started: {error.strerror}.", NO_LOADERS)

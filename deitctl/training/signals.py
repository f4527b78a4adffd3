"""SIGINT, SIGTERM, SIGHUP, SIGXCPU and SIGUSR1 are remembered, and acted on where the state is consistent."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from deitctl.errors import Signalled

ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU")
"""Names of the signals that ask for the end: SIGHUP when the terminal is closed, SIGXCPU when a limit on CPU time is
reached. Windows has the first two."""
REPEAT_WINDOW_S = 3.0
"""Within it signals are one request: a terminal signals the whole process group, and a launcher passes the
signal on, late on a busy machine."""


class StopRequest:
    """The signals that came since the run began."""

    def __init__(self) -> None:
        self.signum = 0
        """SIGINT, SIGTERM or SIGHUP, which ask to save and stop; 0: none came."""
        self.save_requested = False
        """SIGUSR1, Slurm's warning before the time limit, which asks to save and continue."""
        self._time = 0.0
        self._may_interrupt = False

    def request_stop(self, signum: int, _: FrameType | None = None) -> None:
        """Handle SIGINT, SIGTERM or SIGHUP; raise `Signalled` at once if it is repeated."""
        now = time.monotonic()
        is_repeated = self.signum and signum != getattr(
            signal, "SIGXCPU", 0
        )  # which the kernel repeats
        if is_repeated and now - self._time > REPEAT_WINDOW_S:
            raise Signalled(signum, insists=True)
        if not self.signum:
            self.signum, self._time = signum, now
            if self._may_interrupt:
                raise Signalled(signum)

    @contextmanager
    def interrupt(self) -> Iterator[None]:
        """Raise `Signalled` in a block as soon as a signal comes, and before it if one has come.

        For blocks that change no state and may wait for ever: for data on a mount that is gone.
        """
        self.raise_if_set()
        self._may_interrupt = True
        try:
            # one that came since the first look, and was only remembered
            self.raise_if_set()
            yield
        finally:
            self._may_interrupt = False

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Only remember signals in a block, also within `interrupt`."""
        previous, self._may_interrupt = self._may_interrupt, False
        try:
            yield
        finally:
            self._may_interrupt = previous

    def request_save(self, _: int, __: FrameType | None = None) -> None:
        """Handle SIGUSR1, after which the training goes on."""
        self.save_requested = True

    def raise_if_set(self, signum: int | None = None) -> None:
        """Raise `Signalled` for the signal of this process, or for `signum`, agreed by several."""
        if signum := self.signum if signum is None else signum:
            raise Signalled(signum)


@contextmanager
def hold_signals(stop: StopRequest) -> Iterator[None]:
    """Pass signals to `stop` for a block instead of letting them interrupt it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only, and only it may set handlers
        return
    handlers: dict[int, Callable[[int, FrameType | None], None]] = {}
    for name in ENDING:
        # Ignored: under nohup, or SIGINT in the background of a script.
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
            handlers[getattr(signal, name)] = stop.request_stop
    if hasattr(signal, "SIGUSR1"):  # not on Windows
        handlers[signal.SIGUSR1] = stop.request_save
    previous = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

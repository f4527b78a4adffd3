"""Stopping where the work is whole: a signal is remembered, and acted on between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from deitctl.errors import Signalled

ONE_PRESS = 1.0
"""Seconds in which further signals are the same wish: a terminal and a launcher both pass it on."""


class Stop:
    """What signals have asked for."""

    def __init__(self) -> None:
        self.signum = 0
        """SIGINT or SIGTERM, which ask to save and stop; 0: neither came."""
        self.save = False
        """SIGUSR1, Slurm's warning, which asks to save and go on."""
        self._since = 0.0

    def ask(self, signum: int, _: FrameType | None = None) -> None:
        """Take a signal; one that is repeated later insists, and stops at once."""
        now = time.monotonic()
        if self.signum and now - self._since > ONE_PRESS:
            raise Signalled(signum, insists=True)
        if not self.signum:
            self.signum, self._since = signum, now

    def ask_to_save(self, _: int, __: FrameType | None = None) -> None:
        """Take a wish to save."""
        self.save = True

    def here(self) -> None:
        """Stop here if it was asked for; raise `Signalled`."""
        if self.signum:
            raise Signalled(self.signum)


@contextmanager
def held_signals() -> Iterator[Stop]:
    """Remember SIGINT, SIGTERM and SIGUSR1 for a block instead of acting on them; only the main thread can."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    wishes: dict[int, Callable[[int, FrameType | None], None]] = {
        signal.SIGINT: stop.ask,
        signal.SIGTERM: stop.ask,
    }
    if hasattr(signal, "SIGUSR1"):
        wishes[signal.SIGUSR1] = stop.ask_to_save
    before = {signum: signal.signal(signum, wish) for signum, wish in wishes.items()}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)

"""Waiting for the main process for as long as it lives, which may be hours.

The main process fine-tunes a teacher or scans a slow disk while the others wait. A collective would need a timeout
of days for that, and would then wait for days for a process that hangs. So they wait at the store instead, where the
main process counts up every few seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

BEAT_S = 2.0
"""Between two beats of the main process."""
MAX_PAUSE_S = 0.2
"""Between two looks at whether the main process has come."""
BEATS, ARRIVAL = "beats", "arrival"
"""Keys of the store: a counter of beats, and the number of the arrival that it is for."""


class Store(Protocol):
    """What is used of torch's stores, which every process of a run reaches."""

    def set(self, key: str, value: str, /) -> None:
        """Set a value."""

    def check(self, keys: list[str], /) -> bool:
        """Return whether all keys have a value."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter, and return it."""


class Heartbeat:
    """The beats of the main process, and the places of the program that it has come to."""

    def __init__(self, store: Store, *, is_main: bool) -> None:
        """Begin to beat in the main process.

        Args:
            store: of this start of the processes alone.
            is_main: whether this is the main process.
        """
        self._store, self._is_main = store, is_main
        self._num_arrivals = 0
        self._closed = threading.Event()
        store.add(BEATS, 0)
        if is_main:
            threading.Thread(target=self._beat, name="deitctl-heartbeat", daemon=True).start()

    def meet_main(self, limit_s: float, raise_lost: Callable[[float], None]) -> None:
        """Say in the main process that it has come here; in the others wait until it has.

        All processes must call it equally often.

        Args:
            limit_s: seconds without a beat after which the main process counts as lost.
            raise_lost: called then with these seconds, to raise.
        """
        self._num_arrivals += 1
        key = f"{ARRIVAL}/{self._num_arrivals}"
        if self._is_main:
            self._store.set(key, "1")
            return
        pause_s, beats, since = 5e-5, -1, time.monotonic()
        while not self._store.check([key]):
            now = time.monotonic()
            if pause_s == MAX_PAUSE_S and (newest := self._store.add(BEATS, 0)) != beats:
                beats, since = newest, now
            if now - since > limit_s:
                raise_lost(now - since)
            time.sleep(pause_s)  # so that signals are handled meanwhile
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def close(self) -> None:
        """Beat no more."""
        self._closed.set()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S):
            try:
                self._store.add(BEATS, 1)
            except RuntimeError:  # the store is gone, as the others see for themselves
                return

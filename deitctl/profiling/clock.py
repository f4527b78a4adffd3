"""How long something takes: warmed up, several times over, with its spread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

LEAST = 3
"""Samples that are taken even where they take longer than the time that was given, up to twice that time."""
MOST = 200


@dataclass(frozen=True)
class Timing:
    """Seconds that a piece of work took, by the image (or whatever it counts)."""

    first: float
    """Seconds from the start to the first result, which has what is done once in it."""
    samples: tuple[float, ...]
    """Seconds an image, of each time after the first."""

    @property
    def seconds(self) -> float:
        """The median, seconds an image."""
        return statistics.median(self.samples)

    @property
    def rate(self) -> float:
        """Images a second, the median."""
        return 1 / self.seconds

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles of the rate, images a second; infinite for a single sample."""
        if len(self.samples) < 2:
            return math.inf
        low, _, high = statistics.quantiles((1 / s for s in self.samples), n=4, method="inclusive")
        return (high - low) / 2


def measure(
    work: Callable[[], int],
    *,
    seconds: float,
    wait: Callable[[], None] = lambda: None,
    most: int = MOST,
) -> Timing:
    """Do `work` once to warm up, then again and again for about `seconds`.

    Args:
        work: returns how many images it did, 1 or more.
        seconds: how long; less is taken where `most` samples are had before, and up to twice as much for `LEAST`.
        wait: returns when a device has done what was queued.
        most: samples, at most.
    """
    _, first = _timed(work, wait)
    samples: list[float] = []
    begun = time.perf_counter()
    while len(samples) < most:
        spent = time.perf_counter() - begun
        if samples and spent >= (seconds if len(samples) >= LEAST else 2 * seconds):
            break
        count, took = _timed(work, wait)
        samples.append(took / count)
    return Timing(first, tuple(samples))


def _timed(work: Callable[[], int], wait: Callable[[], None]) -> tuple[int, float]:
    start = time.perf_counter()
    count = work()
    wait()
    return count, max(time.perf_counter() - start, 1e-9)


def stable(value: float, spread: float) -> str:
    """Return a number without the digits that its spread makes worthless, with three at most.

    The last digit is that of the spread's first; where the spread is infinite, because nothing was repeated, two are left.
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = math.floor(math.log10(abs(value)))
    last = size - 2  # the place of the third digit
    if math.isinf(spread):
        last = size - 1
    elif spread > 0:
        last = max(last, min(size, math.floor(math.log10(spread))))
    return f"{round(value, -last):,.{max(0, -last)}f}"

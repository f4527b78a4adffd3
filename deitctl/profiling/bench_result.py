"""What a speed measurement found: stages, where the time of the training goes, what is to be expected."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from deitctl.device import Device, ran_out_of_memory
from deitctl.errors import DeitctlError
from deitctl.profiling.clock import MOST, Timing, measure
from deitctl.profiling.memory import MemoryMeter
from deitctl.profiling.peak import PeakThroughput


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of the work, measured on its own."""

    name: str
    title: str
    unit: str = "images"
    """What is counted: `images`, or where the work is not by the image, `times`."""
    timing: Timing | None = None
    memory: int | None = None
    """Bytes at the worst moment above what was in use before."""
    share: float | None = None
    """Of the ceiling that `ceiling` names, 0..1."""
    ceiling: str = ""
    waited: float = 0.0
    """Seconds an image, of a loop, in which no batch was there."""
    problem: str = ""
    """Why there is no timing."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` has of it."""
        t = self.timing
        return {
            "name": self.name,
            "unit": self.unit,
            "per_second": t and t.rate,
            "spread": None if t is None or math.isinf(t.spread) else t.spread,
            "samples": len(t.samples) if t else 0,
            "first_seconds": t and t.first,
            "memory_bytes": self.memory,
            "share": self.share,
            "ceiling": self.ceiling,
            "problem": self.problem,
        }


def pooled(rounds: Sequence[Stage]) -> Stage:
    """Return one stage of several rounds of it: all their samples, the first start, the most memory; or the first problem."""
    if (failed := next((s for s in rounds if s.timing is None), None)) is not None:
        return failed
    timings = [s.timing for s in rounds if s.timing is not None]
    whole = Timing(timings[0].first, tuple(x for t in timings for x in t.samples))
    first, memory = rounds[0], [s.memory for s in rounds if s.memory is not None]
    return replace(
        first,
        timing=whole,
        memory=max(memory, default=None),
        waited=statistics.fmean(s.waited for s in rounds),
        share=None if first.share is None else first.share * whole.rate / timings[0].rate,
    )


@dataclass(frozen=True)
class Limit:
    """The ceiling of a stage: what one of its units costs, and how much of that a second allows."""

    cost: float
    """Floating-point operations, or bytes."""
    most: float
    """A second."""
    name: str


class StageClock:
    """Measures stages for about so many seconds each; one that fails says so, and the next is measured."""

    def __init__(self, device: Device, seconds: float, step: Callable[[str], None]) -> None:
        """`step` is told the title of each stage before it is measured."""
        self.device, self.seconds, self.step = device, seconds, step

    def take(
        self,
        name: str,
        title: str,
        work: Callable[[], int],
        *,
        unit: str = "images",
        limit: Limit | None = None,
        most: int = MOST,
    ) -> Stage:
        """Measure `work`, which returns how many of `unit` it did."""
        return self.watch(
            name,
            title,
            lambda: measure(work, seconds=self.seconds, wait=self.device.synchronize, most=most),
            unit=unit,
            limit=limit,
        )

    def watch(
        self,
        name: str,
        title: str,
        timed: Callable[[], Timing],
        *,
        unit: str = "images",
        limit: Limit | None = None,
    ) -> Stage:
        """Have a stage timed by `timed`, and see to its memory and failures."""
        self.step(title)
        meter = MemoryMeter(self.device)
        meter.start()
        try:
            timing = timed()
        except DeitctlError as error:
            return Stage(name=name, title=title, unit=unit, problem=error.message)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            return Stage(name=name, title=title, unit=unit, problem="memory runs out")
        share = None if limit is None else limit.cost * timing.rate / limit.most
        return Stage(
            name=name,
            title=title,
            unit=unit,
            timing=timing,
            memory=meter.growth(),
            share=share,
            ceiling=limit.name if limit else "",
        )


@dataclass(frozen=True)
class Advice:
    """What to do, and the numbers that say so."""

    text: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """Everything that was measured and what follows from it."""

    job: Mapping[str, Any]
    """What was measured: model, data, recipe, sizes, device."""
    ceilings: PeakThroughput
    flops: Mapping[str, int]
    """Operations an image: `forward`, `step`, and the teacher's `teacher`."""
    stages: Mapping[str, Stage]
    parts: Mapping[str, float]
    """Seconds an image of the training, by where they go; they add up to its time. Empty where it could not be measured."""
    expected: Mapping[str, float]
    """Seconds of an epoch and of the recipe, and images/s; empty likewise."""
    advice: tuple[Advice, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        return {
            "job": dict(self.job),
            "ceilings": asdict(self.ceilings),
            "flops_per_image": dict(self.flops),
            "stages": [stage.to_dict() for stage in self.stages.values()],
            "seconds_per_image": dict(self.parts),
            "expected": dict(self.expected),
            "advice": [{"text": a.text, "numbers": dict(a.numbers)} for a in self.advice],
            "seconds": round(self.seconds, 1),
        }

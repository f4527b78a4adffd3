"""What an experiment tracker is given: the numbers of the log by name, and images.

The names are those that trackers group by their first part: `train/loss`, `val/top1`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

PROJECT = "deitctl"
"""Of W&B and trackio, and MLflow's experiment, where the user's environment names none."""
SKIPPED = ("kind", "step", "weights", "select", "epoch")
"""Of a record: what is no number to draw."""
OF_EPOCH = ("seconds", "images_seen", "images_per_second")
"""Of an epoch's record: what is no score."""


class Point(NamedTuple):
    """The numbers of one record of the log."""

    kind: str
    """`step` or `epoch`."""
    step: int
    """Optimizer steps done."""
    values: dict[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """A run as its trackers know it."""

    root: Path
    name: str
    run_id: str = ""
    """The same after a resume, so that it goes on in the same run of the tracker; empty: not chosen."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """By dotted name."""


class Tracker(Protocol):
    """Where the numbers of a run go, beside its own log."""

    place: str
    """Where it keeps the run, for a message."""
    steps_before: Mapping[str, int]
    """Steps of the last record of each kind that it had when it was opened; a kind that is missing: none."""

    def log(self, point: Point) -> None:
        """Add a record's numbers."""

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Add a PNG."""

    def finish(self, status: str) -> None:
        """Write what is left; `status` is `finished`, `stopped` (and may go on) or `failed`."""


def make_point(record: Mapping[str, Any]) -> Point:
    """Return the numbers of a record of metrics.jsonl.

    A step's are under `train/`; an epoch's means under `train_epoch/`, its scores under `val/`, its
    pace under `run/`. None is called as a group is: MLflow keeps groups as folders.
    """
    kind = str(record["kind"])
    if kind == "step":
        numbers = {k: v for k, v in record.items() if k not in SKIPPED}
        return Point(kind, int(record["step"]) + 1, dict(_flatten(numbers, "train")))
    scores = {k.removeprefix("val_"): v for k, v in record.items() if k not in SKIPPED}
    own = {name: scores.pop(name) for name in OF_EPOCH if name in scores}
    means = scores.pop("train", {})
    values = [*_flatten(means, "train_epoch"), *_flatten(own, "run"), *_flatten(scores, "val")]
    values.append(("epoch", float(record["epoch"])))
    return Point(kind, int(record["step"]), dict(values))


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers of nested records by their path; what is none is in the log alone."""
    for key, value in values.items():
        name = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, name)
        elif (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        ):
            yield name, float(value)

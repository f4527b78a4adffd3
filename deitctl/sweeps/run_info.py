"""What a run folder says of its run, in a row: also one that is unfinished, somebody else's, or damaged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from deitctl.config import DistillConfig, TrainConfig
from deitctl.errors import DeitctlError
from deitctl.lock import is_locked
from deitctl.paths import open_regular
from deitctl.records import hidden
from deitctl.training.result import is_result
from deitctl.training.run_dir import Run
from deitctl.training.run_log import parse_record, read_records
from deitctl.training.several_teachers import JOINED

Status = Literal["finished", "running", "stopped", "diverged", "waiting"]
MAX_LOG = 256 * 2**20
"""Bytes of a log that is read for the best epoch so far."""
MAX_TAIL = 2**18
"""Bytes of a log that are read for the last epoch."""
TOP1, MAP = "top1", "map"


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """A run, as its folder has it."""

    run: Path
    """The run folder."""
    status: Status
    """`finished`; `running`: a process has its lock; `diverged`: its loss did, and it was stopped there; `stopped`:
    unfinished, and no process trains it; `waiting`: nothing of it is trained yet."""
    data: str
    """Data, as it was named."""
    model: str
    """Model, as it was named."""
    teacher: str | None
    """Teacher, of several `A+B`; null without one."""
    mode: str | None
    """What is learned of the teacher, see `--mode`; null without one."""
    metric: str | None
    """What `score` is: `top1`, `balanced`, `f1`, `map` or `loss`; null without a score."""
    score: float | None
    """The metric by which the saved epoch was selected, of its weights on the validation images; of an unfinished
    run the best so far. Higher is better: a loss has a minus."""
    last_score: float | None
    """The same of the last epoch, which no validation image has selected; null without one."""
    seed: int
    """Seed."""
    fold: int | None
    """The fold that it holds out; null without folds."""
    epochs_done: int
    """Epochs that it has done."""
    epochs: int
    """Epochs of the whole run, as it was planned."""
    stopped: str | None
    """Why a finished run ended before: `patience`, or `callback` of the Python API; null: it did not."""
    seconds: float | None
    """Duration, over all its sessions; null for an unfinished run."""
    modified: str
    """When its folder last changed, UTC in ISO 8601."""
    config: TrainConfig = hidden(repr=False)
    result: Mapping[str, Any] | None = hidden(default=None, repr=False)
    """What the run ended with; None for an unfinished one."""


def read_run(root: Path) -> RunInfo:
    """Read a run folder.

    Raises:
        DeitctlError: it is no run, or its configuration cannot be read.
    """
    run, config = Run.open(root)
    result = run.result()
    result = result if is_result(result) else None
    distill = config.distill
    metric, score = read_score(result) if result is not None else find_best_epoch(run)
    last_metric, last = _read_epoch_score(read_last_epoch(run) or {})
    return RunInfo(
        run=root,
        status=find_status(run, result is not None),
        data=config.data,
        model=config.model,
        teacher=None if distill is None else _join_teachers(distill),
        mode=distill.mode if distill is not None else None,
        metric=metric,
        score=score,
        last_score=last if last_metric == metric else None,
        seed=config.seed,
        fold=config.fold or None,
        epochs_done=count_epochs(run) if result is None else _read_epochs(result, config),
        epochs=config.recipe.epochs,
        stopped=_read_reason(result or {}),
        seconds=float(result["seconds"]) if result is not None else None,
        modified=_find_last_change(run).isoformat(timespec="seconds"),
        config=config,
        result=result,
    )


def _join_teachers(distill: DistillConfig) -> str:
    return JOINED.join([distill.teacher, *(t.teacher for t in distill.more_teachers)])


def _read_epochs(result: Mapping[str, Any], config: TrainConfig) -> int:
    """Return the epochs that a finished run has done, which patience may have ended early."""
    epochs, planned = result.get("epochs"), config.recipe.epochs
    return epochs if isinstance(epochs, int) and 0 <= epochs <= planned else planned


def _read_reason(result: Mapping[str, Any]) -> str | None:
    reason = result.get("stopped")
    return reason if isinstance(reason, str) else None


def read_score(result: Mapping[str, Any]) -> tuple[str, float | None]:
    """Return the metric by which a finished run's epoch was selected, and its value; top-1 of one that names none.

    The value is None where it is not defined: a mAP without an image that has a label.
    """
    best = result["best"]
    metric, score = best.get("select"), best.get("score")
    if isinstance(metric, str) and metric != MAP and _is_score(score):
        return metric, float(score)
    return read_accuracy(result)


def read_accuracy(result: Mapping[str, Any]) -> tuple[str, float | None]:
    """Return the name and value of a finished run's accuracy: top-1, or mAP of several labels an image, None where
    it is not defined."""
    best = result["best"]
    name = MAP if best.get(TOP1) is None else TOP1
    return name, None if best[name] is None else float(best[name])


def find_best_epoch(run: Run) -> tuple[str | None, float | None]:
    """Return metric and score of the best epoch so far; None without one."""
    metric, best = None, None
    try:
        if run.measure_log() > MAX_LOG:
            return None, None
        for record in read_records(run.metrics_file, "epoch"):
            name, score = _read_epoch_score(record)
            if score is not None and (best is None or score > best):
                metric, best = name, score
    except (DeitctlError, OSError):  # a log that cannot be read: the run is there all the same
        return None, None
    return metric, best


def _read_epoch_score(record: Mapping[str, Any]) -> tuple[str, float | None]:
    if _is_score(record.get("score")) and isinstance(record.get("select"), str):
        return record["select"], float(record["score"])
    name = TOP1 if record.get(TOP1) is not None else MAP
    return name, float(record[name]) if _is_score(record.get(name)) else None


def count_epochs(run: Run) -> int:
    """Return the last epoch that a log has; 0 if there is none."""
    record = read_last_epoch(run)
    return int(record["epoch"]) if record else 0


def read_last_epoch(run: Run) -> dict[str, Any] | None:
    """Return the record of the last epoch that a log has, from its end; None if there is none."""
    try:
        with open_regular(run.metrics_file, 2**62) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_TAIL))
            lines = file.read(MAX_TAIL).splitlines()
    except (OSError, ValueError):
        return None
    for line in reversed(lines):
        # the kind first: thousands of steps need not be parsed
        if b'"epoch"' in line and (record := parse_record(line)) and record["kind"] == "epoch":
            return record
    return None


def find_status(run: Run, is_finished: bool) -> Status:
    """Return what has become of a run."""
    if is_locked(run.lock_file):
        return "running"
    if is_finished:
        return "finished"
    if _has_diverged(run):
        return "diverged"
    position = run.saved_position()
    return "stopped" if position or run.has_model or run.metrics_file.is_file() else "waiting"


def _has_diverged(run: Run) -> bool:
    """Return whether the last thing that a run wrote is the record of a step that diverged."""
    try:
        incidents = run.incidents.stat().st_mtime
    except OSError:
        return False
    return all(incidents >= _read_mtime(p) for p in (run.metrics_file, run.checkpoint))


def _find_last_change(run: Run) -> datetime:
    files = (run.config_file, run.metrics_file, run.checkpoint, run.result_file)
    return datetime.fromtimestamp(max(map(_read_mtime, files)), UTC)


def _read_mtime(path: Path) -> float:
    try:
        # a clock of a file system may have any number
        return min(max(path.stat().st_mtime, 0.0), 253402300799.0)
    except OSError:
        return 0.0


def _is_score(value: Any) -> bool:
    # Compared, because NaN is in no range.
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e15 <= value <= 1e15

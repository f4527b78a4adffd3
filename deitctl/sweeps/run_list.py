"""Runs below folders: listed, grouped where they differ in seed and fold alone, compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deitctl.errors import ConfigError, DeitctlError
from deitctl.events import Reporter, SilentReporter, track
from deitctl.paths import suggest_path, walk
from deitctl.settings import flatten, list_learning, to_dict
from deitctl.sweeps.run_info import RunInfo, read_run
from deitctl.sweeps.spread import Spread

MAX_DEPTH = 6
"""Folders below the named one that are looked into: a sweep's runs are two below `runs/`."""
MAX_FOLDERS = 100_000
CONFIG = "run.toml"
COMPARED = ("best", "final", "heads", "head_agreement", "teacher_agreement", "teacher", "seconds")
"""Keys of a result whose numbers are compared."""
MAX_METRICS = 200


@dataclass(frozen=True, kw_only=True)
class DamagedRun:
    """A folder with a `run.toml` that cannot be read."""

    run: Path
    """The folder."""
    error: str
    """Why it cannot be read."""


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """Runs that differ in seed and fold alone."""

    data: str
    """Data, as it was named."""
    model: str
    """Model, as it was named."""
    teacher: str | None
    """Teacher, of several `A+B`; null without one."""
    mode: str | None
    """What is learned of the teacher, see `--mode`; null without one."""
    metric: str | None
    """What `score` is; null if no run is finished."""
    score: Spread | None
    """Scores of the finished runs, of each seed and fold the newest; null if there are none."""
    seeds: Sequence[int]
    """Seeds of the finished runs, each once."""
    folds: Sequence[int]
    """Folds of the finished runs, each once; empty without folds."""
    num_copies: int
    """Finished runs beside a newer one of the same seed and fold, which do not count."""
    num_unfinished: int
    """Runs that are not finished, which do not count."""
    runs: Sequence[Path]
    """All run folders, in the order of seeds and folds, the newest of each first."""


@dataclass(frozen=True, kw_only=True)
class RunList:
    """Runs below folders, the newest first."""

    folders: Sequence[Path]
    """Where they were looked for."""
    runs: Sequence[RunInfo]
    """The runs."""
    damaged: Sequence[DamagedRun]
    """Folders that hold a run that cannot be read."""
    groups: Sequence[RunGroup] | None
    """The runs grouped by their settings without seed and fold; null unless requested."""


@dataclass(frozen=True, kw_only=True)
class ComparedValue:
    """A setting or metric of several runs."""

    name: str
    """Dotted name."""
    values: Sequence[Any]
    """Value of each run; null where it has none."""


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """Runs side by side."""

    runs: Sequence[RunInfo]
    """The runs, in the order in which they were named."""
    settings: Sequence[ComparedValue]
    """Settings that differ, those of the machine included."""
    metrics: Sequence[ComparedValue]
    """Numbers of `result.json` that any of them has."""


def list_runs(
    runs: Sequence[str | Path] = ("runs",),
    *,
    group: bool = False,
    reporter: Reporter | None = None,
) -> RunList:
    """List the runs in folders and below them.

    Args:
        runs: folders of runs, or runs.
        group: also group the runs that differ in seed and fold alone.
        reporter: receives progress.

    Raises:
        ConfigError: no such folder.
    """
    reporter = reporter or SilentReporter()
    infos: list[RunInfo] = []
    damaged: list[DamagedRun] = []
    folders = [Path(folder) for folder in runs]
    roots = {root: None for folder in folders for root in _find_runs(folder, reporter)}
    for root in track(roots, reporter, "runs", len(roots), "runs"):
        try:
            infos.append(read_run(root))
        except (DeitctlError, OSError) as error:
            damaged.append(DamagedRun(run=root, error=" ".join(str(error).split())))
    infos.sort(key=lambda info: info.modified, reverse=True)
    groups = group_runs(infos) if group else None
    return RunList(folders=folders, runs=infos, damaged=damaged, groups=groups)


def _find_runs(folder: Path, reporter: Reporter) -> Iterator[Path]:
    """Yield the folders with a `run.toml`; of a run, what is in it is not looked at."""
    if not folder.is_dir():
        raise ConfigError(
            f"There is no folder {str(folder)!r}.",
            suggest_path(folder) or "`deitctl train` makes runs/.",
        )
    depth = len(folder.parts)
    for number, (path, folders, files) in enumerate(walk(str(folder), follow=False)):
        if number == MAX_FOLDERS:
            reporter.warn(
                f"{folder} has more than {MAX_FOLDERS:,} folders: the others are left out."
            )
            return
        if CONFIG in files:
            yield Path(path)
            folders.clear()
        elif len(Path(path).parts) - depth >= MAX_DEPTH:
            folders.clear()
        folders.sort()


def group_runs(infos: Sequence[RunInfo]) -> list[RunGroup]:
    """Group runs, the newest of which come first, whose settings without seed, fold and the machine's are equal."""
    groups: dict[str, list[RunInfo]] = {}
    for info in infos:
        settings = list_learning(info.config) | {"data": info.data}
        del settings["seed"], settings["fold"]
        groups.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(info)
    return [_summarize(sorted(group, key=_identify)) for group in groups.values()]


def _identify(info: RunInfo) -> tuple[int, int]:
    return info.seed, info.fold or 0


def _summarize(group: Sequence[RunInfo]) -> RunGroup:
    first = group[0]
    finished = [info for info in group if info.result is not None]
    # the newest of each: copies of one run are no sample
    counted = list({_identify(info): info for info in reversed(finished)}.values())
    scores = [info.score for info in counted if info.score is not None]
    metrics = {info.metric for info in counted}
    return RunGroup(
        data=first.data,
        model=first.model,
        teacher=first.teacher,
        mode=first.mode,
        metric=metrics.pop() if len(metrics) == 1 else None,
        score=Spread.of(scores) if scores and len(metrics) < 2 else None,
        seeds=sorted({info.seed for info in counted}),
        folds=sorted({info.fold for info in counted if info.fold is not None}),
        num_copies=len(finished) - len(counted),
        num_unfinished=len(group) - len(finished),
        runs=[info.run for info in group],
    )


def compare_runs(runs: Sequence[str | Path]) -> RunComparison:
    """Compare runs: settings that differ, and the numbers that they ended with.

    Args:
        runs: two or more run folders.

    Raises:
        ConfigError: fewer than two, or a folder that is no run.
    """
    if len(runs) < 2:
        raise ConfigError("One run cannot be compared.", "Name two: deitctl runs A B")
    infos = [read_run(Path(run)) for run in runs]
    return RunComparison(
        runs=infos,
        settings=[
            ComparedValue(name=row.name, values=row.values)
            for row in _align([flatten(to_dict(info.config)) for info in infos])
            if any(value != row.values[0] for value in row.values) and row.name != "output_dir"
        ],
        metrics=_align([_list_metrics(info.result or {}) for info in infos])[:MAX_METRICS],
    )


def _align(columns: Sequence[Mapping[str, Any]]) -> list[ComparedValue]:
    names = dict.fromkeys(name for column in columns for name in column)
    return [
        ComparedValue(name=name, values=[column.get(name) for column in columns]) for name in names
    ]


def _list_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    numbers = flatten({key: result[key] for key in COMPARED if result.get(key) is not None})
    return {
        name: value
        for name, value in numbers.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }

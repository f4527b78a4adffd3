"""What a sweep ends with; the JSON that it prints and writes follows from the fields."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deitctl.sweeps.run_info import TOP1, RunInfo, read_accuracy, read_score
from deitctl.sweeps.spread import PairedDifference, Spread
from deitctl.sweeps.trials import Trial

HEADS = ("cls", "dist", "avg-logits")
"""Head rules of DeiT's Table 3."""
RunStatus = Literal["finished", "failed", "running", "stopped", "diverged", "waiting"]
Method = Literal["grid", "random", "optuna"]


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """A run of a sweep."""

    run: Path
    """The run folder."""
    trial: str
    """Name of its trial."""
    seed: int
    """Its seed."""
    fold: int | None
    """The fold that it holds out; null without folds."""
    status: RunStatus
    """As in `RunInfo`; `failed`: it ended without a result, see `error`."""
    score: float | None
    """The sweep's metric, of the saved weights; null for an unfinished run."""
    error: str | None
    """Why it failed; null if it did not."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A combination of values, over seeds and folds; accuracies and agreements in percent."""

    name: str
    """Of its run folders, before seed and fold."""
    values: Mapping[str, Any]
    """Varied settings by dotted name; those of a teacher are left out where there is none."""
    score: Spread | None
    """The sweep's metric; null if no run is finished."""
    last_epoch: Spread | None
    """The same of each run's last epoch, which no validation image has selected; null if no run is finished."""
    difference: PairedDifference | None
    """From the first trial, by seed and fold; null for the first one and without a common one."""
    teacher: str | None
    """Teacher, of several `A+B`; null without one."""
    teacher_top1: Spread | None
    """Top-1 accuracy of the teacher; null of several."""
    heads: Mapping[str, Spread]
    """Top-1 accuracy by head rule: `cls`, `dist`, `avg-logits`; a model with one head has `cls`."""
    teacher_agreement: Mapping[str, Spread]
    """Images with the teacher's prediction, by head rule (100 - DeiT Table 4)."""
    head_agreement: Spread | None
    """Images with the same prediction of both heads; null for one head."""
    seconds: Spread | None
    """Duration of a run; null if none is finished."""
    runs: Sequence[str]
    """Names of the runs' folders, by seed and fold."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """All trials of a sweep, on the same data, seeds and folds."""

    output: Path
    """Folder of the runs, `sweep.toml` and `sweep.json`."""
    data: str
    """Data, as it was named."""
    model: str
    """Model of the first trial, as it was named."""
    method: Method
    """How the trials were chosen."""
    preset: str | None
    """Preset; null without one."""
    varied: Sequence[str]
    """Dotted names of the settings that vary."""
    metric: str
    """What the scores are, higher being better: the metric by which each run's epoch was selected (a loss has a
    minus); or `top1`, where these differ."""
    epochs: int
    """Epochs of a run, of the trial with the most."""
    min_epochs: int
    """The same of the trial with the fewest."""
    num_seeds: int
    """Runs of each trial, of each fold if there are folds."""
    num_folds: int
    """Folds, each of which is held out by a run of each trial and seed; 0 without folds."""
    num_images: int
    """Validation images; of folds those of all together."""
    num_runs: int
    """Runs in all."""
    num_finished: int
    """Runs that are finished."""
    num_failed: int
    """Runs that failed."""
    best: str | None
    """Name of the trial with the highest mean, among those with the most finished runs; null without one."""
    tied: Sequence[str]
    """Names of later trials whose mean is the same."""
    sbatch: Path | None
    """The file that was written for Slurm; null without one."""
    start_command: str | None
    """What starts the runs of that file; null without one."""
    trials: Sequence[TrialResult]
    """Trials, in their order."""
    runs: Sequence[SweepRun]
    """Runs, in the order in which they are trained: the first of every trial, then the second."""


@dataclass(frozen=True)
class RunOutcome:
    """A run of a sweep, as its folder has it."""

    trial: Trial
    seed: int
    root: Path
    info: RunInfo | None
    """None if there is no folder yet."""
    error: str
    """Why its process failed; empty if it did not."""
    fold: int = 0
    """0 without folds."""

    @property
    def pair(self) -> tuple[int, int]:
        """What it shares with a run of each other trial: seed and fold."""
        return self.seed, self.fold

    @property
    def status(self) -> RunStatus:
        """What has become of it."""
        if self.info is None:
            return "failed" if self.error else "waiting"
        is_failure = self.error and self.info.status not in ("finished", "running")
        return "failed" if is_failure else self.info.status


def find_metric(outcomes: Sequence[RunOutcome]) -> str:
    """Return what the scores are."""
    metrics = {o.info.metric for o in outcomes if o.info is not None and o.info.result is not None}
    metric = metrics.pop() if len(metrics) == 1 else None
    return metric or TOP1


def get_score(outcome: RunOutcome, metric: str) -> float | None:
    """Return a finished run's score; its top-1 where that is the metric of all."""
    if outcome.info is None or outcome.info.result is None or outcome.info.status == "running":
        return None
    name, score = read_score(outcome.info.result)
    return score if name == metric else read_accuracy(outcome.info.result)[1]


def summarize_trials(
    trials: Sequence[Trial], outcomes: Sequence[RunOutcome], metric: str
) -> list[TrialResult]:
    """Summarize each trial over seeds and folds; differences are from the first one."""
    scores: list[dict[Hashable, float]] = []
    for trial in trials:
        pairs = ((o.pair, get_score(o, metric)) for o in outcomes if o.trial.name == trial.name)
        scores.append({pair: score for pair, score in pairs if score is not None})
    return [
        _summarize(
            trial,
            [o for o in outcomes if o.trial.name == trial.name],
            scores[number],
            PairedDifference.of(scores[number], scores[0]) if number else None,
        )
        for number, trial in enumerate(trials)
    ]


def _summarize(
    trial: Trial,
    outcomes: Sequence[RunOutcome],
    scores: Mapping[Hashable, float],
    difference: PairedDifference | None,
) -> TrialResult:
    infos = [o.info for o in outcomes if o.info is not None]
    finished = [o.info for o in outcomes if o.pair in scores and o.info is not None]
    results = [info.result for info in finished if info.result is not None]
    teachers = [r["teacher"] for r in results if r.get("teacher") and not r.get("more_teachers")]
    agreements = [r["head_agreement"] for r in results if r.get("head_agreement") is not None]
    return TrialResult(
        name=trial.name,
        values=trial.values,
        score=_spread(list(scores.values())),
        last_epoch=_spread([info.last_score for info in finished if info.last_score is not None]),
        difference=difference,
        teacher=infos[0].teacher if infos else None,
        teacher_top1=_spread([t["top1"] for t in teachers if t.get("top1") is not None]),
        heads=_spread_by_head([r.get("heads") or _name_only_head(r) for r in results]),
        teacher_agreement=_spread_by_head([r.get("teacher_agreement") or {} for r in results]),
        head_agreement=_spread(agreements),
        seconds=_spread([r["seconds"] for r in results]),
        runs=[o.root.name for o in outcomes],
    )


def _name_only_head(result: Mapping[str, Any]) -> dict[str, float]:
    top1 = result["best"].get(TOP1)
    return {} if top1 is None else {"cls": top1}


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread.of(values) if values else None


def _spread_by_head(values: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    spreads = {head: _spread([v[head] for v in values if head in v]) for head in HEADS}
    return {head: spread for head, spread in spreads.items() if spread is not None}


def find_best(trials: Sequence[TrialResult]) -> list[str]:
    """Return the names of the trials with the highest mean: fewer runs do not make one better."""
    scored = [(trial.score, trial.name) for trial in trials if trial.score is not None]
    most = max((score.n for score, _ in scored), default=0)
    means = {name: score.mean for score, name in scored if score.n == most}
    highest = max(means.values(), default=0.0)
    # rounding tells equal means apart
    return [name for name, mean in means.items() if math.isclose(mean, highest, abs_tol=1e-9)]

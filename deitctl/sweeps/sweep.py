"""A sweep: a folder of runs whose settings vary, trained by processes, and compared by seed and fold.

What is done is what the run folders hold. A sweep that was stopped in whatever way goes on by the same command.
"""

from __future__ import annotations

import shlex
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deitctl.config import TrainConfig
from deitctl.errors import ConfigError, Interrupted, Signalled, require_positive
from deitctl.events import Reporter
from deitctl.lock import is_locked, locked
from deitctl.paths import require_creatable, write_json
from deitctl.records import to_object
from deitctl.settings import list_differences
from deitctl.sweeps.definition import (
    SweepDefinition,
    read_suggested,
    require_same_space,
    write_definition,
)
from deitctl.sweeps.optuna_trials import require_optuna, suggest_trial
from deitctl.sweeps.result import (
    RunOutcome,
    SweepResult,
    SweepRun,
    find_best,
    find_metric,
    get_score,
    summarize_trials,
)
from deitctl.sweeps.run_info import RunInfo, count_epochs, read_run
from deitctl.sweeps.run_process import RunProcess, write_waiting
from deitctl.sweeps.run_queue import QueuedRun, RunQueue, StartRun
from deitctl.sweeps.slurm import require_replaceable, write_sbatch
from deitctl.sweeps.trial_configs import TrialConfigs, place_run
from deitctl.sweeps.trials import Trial, draw_trials, list_grid, make_trials
from deitctl.training.configure import add_tags
from deitctl.training.earlier_runs import settle_as
from deitctl.training.run_dir import Run

RECORD = "sweep.json"
LOGS = "logs"


@dataclass(frozen=True)
class PlannedRun:
    """A run of a trial with a seed, of a fold if there are folds."""

    trial: Trial
    seed: int
    fold: int
    """0 without folds."""
    config: TrainConfig

    @property
    def root(self) -> Path:
        """The run folder."""
        return Path(self.config.output_dir)


class Sweep:
    """Trials, their runs, and what has become of them."""

    def __init__(
        self,
        definition: SweepDefinition,
        settings: Mapping[str, Any],
        overrides: Mapping[str, Any],
        output: Path,
        reporter: Reporter,
    ) -> None:
        """Resolve the trials that are known, and refuse a folder of other runs; nothing is written.

        Args:
            definition: what is varied, and how.
            settings: of all runs, as of `build_config`.
            overrides: likewise.
            output: folder of the runs.
            reporter: receives notes.

        Raises:
            DeitctlError: settings or data that a run would refuse, or other runs in the folder.
        """
        require_positive(seeds=definition.num_seeds)
        self.definition, self.output, self.reporter = definition, output, reporter
        self.configs = TrialConfigs(settings, overrides, definition.variations, reporter)
        self.trials: list[Trial] = []
        self.planned: dict[str, list[PlannedRun]] = {}
        self.errors: dict[Path, str] = {}
        self.num_folds = 0
        self.sbatch: Path | None = None
        self._queue: deque[PlannedRun] = deque()
        self._queued: set[Path] = set()
        self._finished: dict[Path, RunInfo] = {}
        for trial in self._list_known_trials():
            self._add(trial)
        if not self.trials:
            self._suggest()
        if len({run.config.select for run in self.runs}) > 1:
            self.reporter.note(
                "Runs are selected by different metrics: their accuracy is compared."
            )

    def _list_known_trials(self) -> list[Trial]:
        d = self.definition
        if d.method == "grid":
            return make_trials(d.variations, d.rows) if d.rows else list_grid(d.variations)
        if d.method == "random":
            trials = draw_trials(d.variations, d.num_trials, d.seed)
            if len(trials) < d.num_trials:
                self.reporter.note(f"There are {len(trials)} combinations, fewer than requested.")
            return trials
        require_optuna()
        require_same_space(self.output, d)
        return read_suggested(self.output / RECORD, d.variations)[: d.num_trials]

    def _add(self, trial: Trial) -> None:
        config = self.configs.make(trial)
        first = config.seed
        # one that is named is that of every run
        self.num_folds = 0 if config.fold else config.folds
        runs = [
            PlannedRun(trial, seed, fold, place_run(config, trial, seed, fold, self.output))
            for seed in range(first, first + self.definition.num_seeds)
            for fold in (range(1, self.num_folds + 1) if self.num_folds else (0,))
        ]
        for run in runs:
            _require_own(run)
        self.trials.append(trial)
        self.planned[trial.name] = runs

    def _suggest(self) -> bool:
        """Add the next trial of Optuna's; return whether there is one."""
        d = self.definition
        if d.method != "optuna" or len(self.trials) >= d.num_trials:
            return False
        outcomes = self.read_outcomes()
        results = summarize_trials(self.trials, outcomes, find_metric(outcomes))
        scored = [(t.values, t.score.mean) for t in results if t.score is not None]
        trial = suggest_trial(d.variations, scored, self.trials, d.seed)
        if trial is None:
            self.reporter.note(f"There are no other combinations: {len(self.trials)} trials.")
            self.definition = replace(d, num_trials=len(self.trials))
            return False
        self._add(trial)
        return True

    @property
    def runs(self) -> list[PlannedRun]:
        """All runs so far in their order: every trial's first one comes before any second one."""
        trials = [self.planned[trial.name] for trial in self.trials]
        if self.definition.method == "optuna":  # which needs the whole of a trial for the next
            return [run for runs in trials for run in runs]
        return [runs[n] for n in range(self._num_repeats) for runs in trials]

    @property
    def _num_repeats(self) -> int:
        """Runs of each trial."""
        return self.definition.num_seeds * max(1, self.num_folds)

    def train(self, *, num_jobs: int, num_gpus: int, start: StartRun = RunProcess) -> None:
        """Train what is not finished; a run that fails is noted, and the others go on.

        Raises:
            Interrupted: a signal came; all that was trained is kept.
            DeitctlError: the folder cannot be written, or another process trains this sweep.
        """
        require_creatable(self.output / RECORD, within=self.output)
        with locked(self.output / "lock", what=str(self.output), reporter=self.reporter):
            self.write_waiting()
            epochs = [run.config.recipe.epochs for run in self.runs]
            later = (self._count_runs() - len(epochs)) * epochs[0]
            with self.reporter.task("sweep", sum(epochs) + later, "epochs") as task:
                task.skip(sum(map(_count_done, self.runs)))
                queue = RunQueue(
                    self._take,
                    self._end,
                    start=start,
                    logs=self.output / LOGS,
                    num_jobs=num_jobs,
                    num_gpus=num_gpus,
                    reporter=self.reporter,
                )
                try:
                    queue.train(task)
                except Signalled as stop:
                    raise Interrupted(stop.signum, "", self._describe()) from stop
                finally:
                    self.write_record()

    def write_waiting(self) -> None:
        """Write the definition, and the configuration of every run that has not begun."""
        write_definition(self.output, self.definition, self.runs[0].config)
        for run in self.runs:
            _write_if_new(run)
        self.write_record()

    def write_slurm(self, script: Path, *, command: str, num_jobs: int) -> None:
        """Write the folders of all runs, and an sbatch file that trains each unfinished one in an array task."""
        if self.definition.method == "optuna":
            raise ConfigError(
                "Trials of --optuna follow from results, which an array of jobs has at its end.",
                "Use a grid, or --random N.",
            )
        require_replaceable(script)
        self.write_waiting()
        unfinished = [run for run in self.runs if read_run(run.root).result is None]
        if not unfinished:
            self.reporter.note(f"All {len(self.runs)} runs are finished: no file is written.")
            return
        if stale := [run for run in unfinished if _has_other_machine(run)]:
            self.reporter.warn(
                f"{len(stale)} runs that have begun keep the machine's settings that they began with, "
                f"{stale[0].root.name} for example."
            )
        write_sbatch(
            script,
            [run.root.resolve() for run in unfinished],
            logs=(self.output / LOGS).resolve(),
            command=command,
            num_jobs=num_jobs,
        )
        self.sbatch = script
        self.write_record()

    def _take(self) -> QueuedRun | None:
        """Return the next run that is not finished."""
        self._queue.extend(run for run in self.runs if run.root not in self._queued)
        self._queued |= {run.root for run in self._queue}
        while True:
            if not self._queue:
                if not self._suggest():
                    return None
                self._queue.extend(self.planned[self.trials[-1].name])
                self._queued |= {run.root for run in self._queue}
                for run in self._queue:
                    _write_if_new(run)
                self.write_record()
            run = self._queue.popleft()
            if read_run(run.root).result is None:
                return QueuedRun(run.root.name, run.config)

    def _end(self, run: QueuedRun, error: str) -> None:
        root = Path(run.config.output_dir)
        outcomes = self.read_outcomes()
        count = f"{sum(o.status == 'finished' for o in outcomes)} of {self._count_runs()} runs"
        if error:
            self.errors[root] = error
            self.reporter.warn(f"{run.name} failed: {error}")
        else:
            info = read_run(root)
            score = "no score" if info.score is None else f"{info.metric} {info.score:.2f}"
            self.reporter.note(f"{run.name}: {score} ({count})")
        self.write_record()

    def _count_runs(self) -> int:
        d = self.definition
        num_trials = d.num_trials if d.method == "optuna" else len(self.trials)
        return num_trials * self._num_repeats

    def _describe(self) -> str:
        finished = sum(o.status == "finished" for o in self.read_outcomes())
        return f"{finished} of {self._count_runs()} runs are finished, the others go on from their checkpoints."

    def read_outcomes(self) -> list[RunOutcome]:
        """Read what the run folders hold."""
        outcomes = []
        for run in self.runs:
            info = self._finished.get(run.root)
            if info is None and Run(run.root).config_file.is_file():
                info = read_run(run.root)
            if info is not None and info.status == "finished":
                self._finished[run.root] = info
            error = self.errors.get(run.root, "")
            outcomes.append(RunOutcome(run.trial, run.seed, run.root, info, error, run.fold))
        return outcomes

    def summarize(self) -> SweepResult:
        """Return the sweep as its folders have it."""
        outcomes = self.read_outcomes()
        metric = find_metric(outcomes)
        trials = summarize_trials(self.trials, outcomes, metric)
        best = find_best(trials)
        statuses = [outcome.status for outcome in outcomes]
        first = self.runs[0].config
        epochs = [run.config.recipe.epochs for run in self.runs]
        return SweepResult(
            output=self.output,
            data=first.data,
            model=first.model,
            method=self.definition.method,
            preset=self.definition.preset or None,
            varied=[variation.name for variation in self.definition.variations],
            metric=metric,
            epochs=max(epochs),
            min_epochs=min(epochs),
            num_seeds=self.definition.num_seeds,
            num_folds=self.num_folds,
            num_images=self.configs.num_images,
            num_runs=self._count_runs(),
            num_finished=statuses.count("finished"),
            num_failed=statuses.count("failed"),
            best=best[0] if best else None,
            tied=best[1:],
            sbatch=self.sbatch,
            start_command=None
            if self.sbatch is None
            else f"sbatch {shlex.quote(str(self.sbatch))}",
            trials=trials,
            runs=[
                SweepRun(
                    run=outcome.root,
                    trial=outcome.trial.name,
                    seed=outcome.seed,
                    fold=outcome.fold or None,
                    status=outcome.status,
                    score=get_score(outcome, metric),
                    error=outcome.error or None,
                )
                for outcome in outcomes
            ],
        )

    def write_record(self) -> None:
        """Write `sweep.json`."""
        write_json(self.output / RECORD, to_object(self.summarize()))


def _require_own(run: PlannedRun) -> None:
    """Raise `ConfigError` if the folder of a run holds one of another configuration that has begun."""
    existing = Run(run.root)
    if not existing.config_file.is_file():
        return
    settled = Run.open(run.root)[1]
    changed = list_differences(add_tags(settled), settle_as(run.config, settled))
    if changed and _has_begun(existing):
        raise ConfigError(
            f"{run.root} holds a run of another configuration: {'; '.join(changed)}.",
            "Name another --output, or leave out what differs.",
        )


def _has_begun(run: Run) -> bool:
    return run.result() is not None or run.has_model or run.checkpoint.exists()


def _write_if_new(run: PlannedRun) -> None:
    """Write the configuration of a run that has not begun, also where another one waits, of another machine too."""
    existing = Run(run.root)
    if existing.config_file.is_file() and (
        _has_begun(existing) or is_locked(existing.lock_file) or Run.open(run.root)[1] == run.config
    ):
        return
    write_waiting(run.config)


def _has_other_machine(run: PlannedRun) -> bool:
    config = Run.open(run.root)[1]
    return replace(config, output_dir=run.config.output_dir) != run.config


def _count_done(run: PlannedRun) -> int:
    """Return the epochs of a run that need not be trained: those done, of a finished one all."""
    existing = Run(run.root)
    is_finished = existing.result() is not None
    return run.config.recipe.epochs if is_finished else count_epochs(existing)

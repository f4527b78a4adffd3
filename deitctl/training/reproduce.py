"""Trains a run again from its run.toml, and compares value by value: equal to the bit, or where they part."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deitctl.config import TrainConfig
from deitctl.device import choose_device
from deitctl.distributed import SINGLE_PROCESS, is_distributed
from deitctl.errors import ConfigError, Interrupted, require_positive
from deitctl.events import Reporter, SilentReporter
from deitctl.settings import override
from deitctl.training.comparison import (
    Parting,
    compare_records,
    compare_results,
    compare_tensors,
)
from deitctl.training.extensions import Extensions
from deitctl.training.launch import open_run
from deitctl.training.recorded_run import RecordedRun, read_recorded_run
from deitctl.training.reproduction_check import (
    Difference,
    find_data_changes,
    find_differences,
    find_weight_changes,
    open_data,
)
from deitctl.training.trainer import Trainer

PathLike = str | Path


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What came of training a run again."""

    run: Path
    """The run folder."""
    output: Path | None
    """Folder of the repetition; null: it was a temporary one, and is deleted."""
    is_equal: bool
    """Whether everything that was compared is equal to the last bit."""
    is_whole: bool
    """Whether the repetition went to the end of what the run has; false for the beginning alone (`--steps`,
    `--epochs`), and where it stopped at the first parting."""
    epochs: int
    """Whole epochs that it took."""
    steps: int
    """Steps that it took, of all epochs."""
    num_steps_compared: int
    """Logged steps that were compared: every tenth."""
    num_epochs_compared: int
    """Epochs whose metrics were compared."""
    num_tensors_compared: int
    """Tensors of weights that were compared: of the saved ones, of the last ones and of their EMA."""
    has_compared_result: bool
    """Whether result.json was compared."""
    differences: list[Difference]
    """What differed before the first step: versions, device, precision, threads, data, weights, teacher."""
    first: Parting | None
    """First value in which they part; null if they are equal."""
    partings: list[Parting]
    """All values of the record that parts first; with `--to-end` those of all later ones too."""


@dataclass
class Comparison:
    """Compares a training while it runs."""

    recorded: RecordedRun
    to_end: bool
    last_step: int
    """Steps after which it ends; 0: no such end."""
    last_epoch: int
    """Epochs after which it ends; 0: no such end."""
    partings: list[Parting] = field(default_factory=list)
    num_steps: int = 0
    num_epochs: int = 0
    num_tensors: int = 0
    has_result: bool = False
    equal_until: int = 0
    """Steps done when the last record that was equal was logged."""

    def attach(self, trainer: Trainer) -> None:
        """Compare each record of a trainer when it is logged, and its weights when the run has them."""
        self.trainer = trainer
        trainer.run.on_record = self.compare_record
        trainer.on_step_boundary = self.compare_state

    def compare_record(self, record: Mapping[str, Any]) -> None:
        """Compare a record of metrics.jsonl with the run's of the same step or epoch."""
        is_step = record["kind"] == "step"
        own = self.recorded.steps if is_step else self.recorded.epochs
        earlier = own.get(record["step" if is_step else "epoch"])
        if earlier is None:
            return
        self.num_steps, self.num_epochs = self.num_steps + is_step, self.num_epochs + (not is_step)
        self.add(compare_records(earlier, record))
        if not self.partings:
            self.equal_until = int(record["step"]) + is_step

    def compare_state(self) -> None:
        """Compare the weights that the run has of this moment.

        Raises:
            _Ended: everything is compared, or enough.
        """
        state, progress = self.trainer.state, self.trainer.state.progress
        epoch_end = progress.epoch * self.trainer.context.steps_per_epoch
        for saved in self.recorded.weights:
            at = epoch_end if saved.step is None else saved.step
            if (saved.epoch, at) == (progress.epoch, progress.step) and (
                self.partings == [] or self.to_end
            ):
                tensors = state.weights(saved.kind)
                self.num_tensors += len(tensors)
                epoch = progress.epoch + (progress.step > epoch_end)
                self.add(compare_tensors(saved.tensors, tensors, what=saved.what, epoch=epoch))
        if self.partings and not self.to_end:
            raise _Ended
        if self.is_over():
            raise _Ended

    def is_over(self) -> bool:
        """Return whether the training has come to the end of what is compared."""
        progress, recipe = self.trainer.state.progress, self.trainer.context.recipe
        if self.last_step:
            return progress.step >= self.last_step
        if not self.last_epoch or self.last_epoch >= recipe.epochs:
            # An unfinished run ends where its record does; a finished one with its evaluation.
            last = self.recorded
            is_past = progress.step >= last.last_step and progress.epoch >= last.last_epoch
            return last.result is None and is_past
        return progress.epoch >= self.last_epoch

    def compare_result(self, result: Any) -> None:
        """Compare what the run ended with."""
        if self.recorded.result is not None:
            self.has_result = True
            self.add(compare_results(self.recorded.result, result, result.epochs))

    def add(self, partings: Iterable[Parting]) -> None:
        """Keep partings, without --to-end those of the first record alone."""
        if self.to_end or not self.partings:
            self.partings.extend(partings)


class _Ended(BaseException):
    """The repetition has gone far enough. No `Exception`: it is no failure, and nothing may recover from it."""


class _EndAt:
    """Ends a repetition where a callback has ended the run."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch_end(self, metrics: Mapping[str, Any]) -> bool:
        return bool(metrics["epoch"] >= self.epoch)


def reproduce(
    run: PathLike,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    to_end: bool = False,
    allow_changes: bool = False,
    output: PathLike | None = None,
    device: str | None = None,
    precision: str | None = None,
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> Reproduction:
    """Train a run again, and compare losses, metrics, weights, their EMA and the result to the last bit.

    Args:
        run: its folder, which is only read; of an unfinished run what there is is compared.
        steps: to compare, from the beginning; None: all.
        epochs: the same in epochs.
        to_end: whether to go on after the first parting.
        allow_changes: train also if data, initial weights or teacher have changed since, so that the runs must part.
        output: folder for the repetition; None: a temporary one.
        device: instead of the run's setting, as `precision` and `workers`.
        precision: None: that which the run was trained in.
        workers: loader processes.
        reporter: receives what differs before the first step, and progress.

    Raises:
        ConfigError: no run, one that had objects of a program's, or other data or weights than it began with.
        DeitctlError: data, weights or teacher are gone.
        Interrupted: stopped by a signal.
    """
    reporter = reporter or SilentReporter()
    _require_limits(steps, epochs)
    recorded = read_recorded_run(Path(run))
    asked = {"device": device, "precision": precision, "workers": workers}
    config = _configure(recorded, {k: v for k, v in asked.items() if v is not None})
    chosen = choose_device(config.device, config.precision)
    datasets = open_data(recorded, config, reporter)
    differences = find_differences(recorded, chosen, datasets[0])
    differences += find_data_changes(recorded, datasets, reporter)
    _report(recorded, differences, reporter, allow_changes=allow_changes)
    comparison = Comparison(recorded, to_end, steps or 0, epochs or 0)
    extensions = Extensions(
        callbacks=[_EndAt(recorded.last_epoch)] if recorded.ended_by_callback else ()
    )
    with _open_output(recorded, output, comparison) as folder:
        own = replace(config, output_dir=str(folder))
        is_whole = False
        try:
            with open_run(
                own, datasets, reporter, chosen, SINGLE_PROCESS, extensions, resume=False
            ) as trainer:
                late = find_weight_changes(recorded, trainer)
                _report(recorded, late, reporter, allow_changes=allow_changes, is_late=True)
                comparison.attach(trainer)
                result = trainer.fit()
                comparison.compare_result(result)
                is_whole = True
        except _Ended:
            is_whole = comparison.recorded.result is None and not (steps or epochs)
            is_whole = is_whole and (to_end or not comparison.partings)
    progress, partings = comparison.trainer.state.progress, comparison.partings
    return Reproduction(
        run=recorded.root,
        output=None if output is None else Path(output),
        is_equal=not partings,
        is_whole=is_whole,
        epochs=progress.epoch,
        steps=progress.step,
        num_steps_compared=comparison.num_steps,
        num_epochs_compared=comparison.num_epochs,
        num_tensors_compared=comparison.num_tensors,
        has_compared_result=comparison.has_result,
        differences=differences + late,
        first=partings[0] if partings else None,
        partings=partings,
    )


def _require_limits(steps: int | None, epochs: int | None) -> None:
    if steps is not None and epochs is not None:
        raise ConfigError("--steps and --epochs both say how far to go.", "Leave one of them out.")
    limits = {"steps": steps, "epochs": epochs}
    require_positive(**{name: n for name, n in limits.items() if n is not None})
    if is_distributed():
        raise ConfigError("A run is reproduced by one process.", "Run it without torchrun.")


def _configure(recorded: RecordedRun, asked: Mapping[str, Any]) -> TrainConfig:
    """Return the run's configuration on this machine: its precision, and what its memory allowed."""
    machine: dict[str, Any] = {"log": ""}
    if size := recorded.checkpoint.get("micro_batch_size"):
        machine["micro_batch_size"] = size
    # `auto` may mean another precision here.
    if recorded.sessions and "device" not in asked:
        machine["precision"] = recorded.sessions[0].precision
    return override(recorded.config, machine | dict(asked))


def _report(
    recorded: RecordedRun,
    differences: Sequence[Difference],
    reporter: Reporter,
    *,
    allow_changes: bool,
    is_late: bool = False,
) -> None:
    """Say what differs before the first step; raise `ConfigError` for what lets the runs part for certain."""
    changes = [d for d in differences if d.is_change]
    if changes and not allow_changes:
        raise ConfigError(
            f"{recorded.root} cannot be reproduced: {'; '.join(d.message for d in changes)}.",
            "Put back what it was trained with, or see where they part: --allow-changes.",
        )
    for difference in differences:
        reporter.warn(f"{difference.message}.")
    if is_late:
        return
    if not recorded.sessions:
        reporter.warn(
            f"{recorded.root} does not say with which versions and threads it was trained: an earlier "
            "version wrote it."
        )
    elif not differences:
        reporter.note(f"Versions, machine and data are those of {recorded.root}.")


@contextmanager
def _open_output(
    recorded: RecordedRun, output: PathLike | None, comparison: Comparison
) -> Iterator[Path]:
    """Yield the folder of the repetition; delete it afterwards if it is a temporary one.

    After a failure it stays, because the error says how to go on in it.
    """
    if output is not None:
        if Path(output).resolve() == recorded.root.resolve():
            raise ConfigError(
                f"--output {output} is the run itself, which is only read.", "Name another folder."
            )
        yield Path(output)
        return
    folder = Path(tempfile.mkdtemp(prefix="deitctl-reproduce-"))
    try:
        yield folder / "run"
    except Interrupted as stop:
        shutil.rmtree(folder, ignore_errors=True)
        parted = comparison.partings
        saved = (
            f"It has parted in {parted[0].place}."
            if parted
            else f"Up to step {comparison.equal_until} it is equal."
        )
        command = f"deitctl reproduce {shlex.quote(str(recorded.root))}"
        raise Interrupted(stop.signum, command, saved) from stop
    shutil.rmtree(folder, ignore_errors=True)

"""Trains a run again from its run.toml, and compares value by value: equal to the bit, or where they part."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deitctl.config import TrainConfig
from deitctl.device import choose_run_device
from deitctl.distributed import SINGLE_PROCESS, is_distributed
from deitctl.errors import ConfigError, DeitctlError, Interrupted, require_positive
from deitctl.events import Reporter, SilentReporter
from deitctl.settings import override
from deitctl.training.comparison import Comparison, EnoughCompared, Parting
from deitctl.training.extensions import Extensions
from deitctl.training.launch import open_run
from deitctl.training.recorded_run import RecordedRun, read_recorded_run
from deitctl.training.reproduction_check import (
    Difference,
    find_data_changes,
    find_differences,
    find_weight_changes,
    open_data,
    report_differences,
    require_unchanged,
)

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
    machine = {"device": device, "precision": precision, "workers": workers}
    config = _configure(recorded, {k: v for k, v in machine.items() if v is not None})
    chosen = choose_run_device(config)
    datasets = open_data(recorded, config, reporter)
    differences = find_differences(recorded, chosen, datasets[0])
    differences += find_data_changes(recorded, datasets, reporter)
    require_unchanged(recorded, differences, allow_changes=allow_changes)
    report_differences(recorded, differences, reporter)
    comparison = Comparison(recorded, to_end=to_end, last_step=steps, last_epoch=epochs)
    with _open_output(recorded, output, comparison) as folder:
        own = replace(config, output_dir=str(folder))
        with (
            suppress(EnoughCompared),
            chosen.computing(),
            open_run(
                own, datasets, reporter, chosen, SINGLE_PROCESS, _end_as(recorded), resume=False
            ) as trainer,
        ):
            changes = find_weight_changes(recorded, trainer)
            require_unchanged(recorded, changes, allow_changes=allow_changes)
            for change in changes:
                reporter.warn(f"{change.message}.")
            differences += changes
            comparison.attach(trainer)
            comparison.compare_result(trainer.fit())
    return _summarize(comparison, differences, output)


def _summarize(
    comparison: Comparison, differences: list[Difference], output: PathLike | None
) -> Reproduction:
    progress, partings = comparison.trainer.state.progress, comparison.partings
    return Reproduction(
        run=comparison.recorded.root,
        output=None if output is None else Path(output),
        is_equal=not partings,
        is_whole=comparison.is_whole,
        epochs=progress.epoch,
        steps=progress.step,
        num_steps_compared=comparison.num_steps,
        num_epochs_compared=comparison.num_epochs,
        num_tensors_compared=comparison.num_tensors,
        has_compared_result=comparison.has_result,
        differences=differences,
        first=partings[0] if partings else None,
        partings=partings,
    )


def _end_as(recorded: RecordedRun) -> Extensions:
    """Return a callback that ends the repetition where one has ended the run, if one has."""
    return Extensions(callbacks=[_EndAt(recorded.last_epoch)] if recorded.ended_by_callback else ())


def _require_limits(steps: int | None, epochs: int | None) -> None:
    if steps is not None and epochs is not None:
        raise ConfigError("--steps and --epochs both say how far to go.", "Leave one of them out.")
    limits = {"steps": steps, "epochs": epochs}
    require_positive(**{name: n for name, n in limits.items() if n is not None})
    if is_distributed():
        raise ConfigError("A run is reproduced by one process.", "Run it without torchrun.")


def _configure(recorded: RecordedRun, options: Mapping[str, Any]) -> TrainConfig:
    """Return the run's configuration on this machine: its precision, and what its memory allowed."""
    machine: dict[str, Any] = {"log": ""}
    if size := recorded.checkpoint.get("micro_batch_size"):
        machine["micro_batch_size"] = size
    # `auto` may mean another precision here.
    if recorded.sessions and "device" not in options:
        machine["precision"] = recorded.sessions[0].precision
    return override(recorded.config, machine | dict(options))


@contextmanager
def _open_output(
    recorded: RecordedRun, output: PathLike | None, comparison: Comparison
) -> Iterator[Path]:
    """Yield the folder of the repetition; delete it afterwards if it is a temporary one.

    After a failure of the training it stays, because the error says how to go on in it.
    """
    if output is not None:
        if Path(output).resolve().is_relative_to(recorded.root.resolve()):
            raise ConfigError(
                f"--output {output} is in the run itself, which is only read.",
                "Name another folder.",
            )
        yield Path(output)
        return
    folder = Path(tempfile.mkdtemp(prefix="deitctl-reproduce-"))
    try:
        yield folder / "run"
    except Interrupted as stop:
        shutil.rmtree(folder, ignore_errors=True)
        command = f"deitctl reproduce {shlex.quote(str(recorded.root))}"
        raise Interrupted(stop.signum, command, _describe_progress(comparison)) from stop
    except DeitctlError:
        if not comparison.has_begun:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _describe_progress(comparison: Comparison) -> str:
    if comparison.partings:
        return f"It has parted in {comparison.partings[0].place}."
    return f"Up to step {comparison.equal_steps} it is equal."

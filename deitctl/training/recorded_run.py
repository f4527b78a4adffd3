"""What a run folder has of its training, read at once and not written to: log, weights, teacher, sessions."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from deitctl.config import TrainConfig
from deitctl.data.readers.torch_dataset import PREFIX
from deitctl.distillation.preflight import RECORD as TEACHER
from deitctl.errors import ConfigError, ModelError
from deitctl.models.checkpoint_io import WEIGHTS, load_tensors
from deitctl.paths import read_json
from deitctl.training.best_weights import read_score
from deitctl.training.extensions import FILE as EXTENSIONS
from deitctl.training.folds import is_folds
from deitctl.training.run_dir import Run
from deitctl.training.saved_state import EMA, MODEL, read_file, read_record
from deitctl.training.session import Session, read_sessions

CALLBACK = "callback"


@dataclass(frozen=True)
class SavedWeights:
    """Weights of a run, and the moment of the training at which it had them."""

    what: str
    """In words."""
    kind: str
    """`model` or `ema`."""
    epoch: int
    """Epochs done."""
    step: int | None
    """Steps done; None: those of the epochs."""
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run as its folder has it."""

    root: Path
    config: TrainConfig
    steps: Mapping[int, Mapping[str, Any]]
    """The logged steps, by their number from 0."""
    epochs: Mapping[int, Mapping[str, Any]]
    """Those of epochs, by their number from 1."""
    weights: tuple[SavedWeights, ...]
    """The best ones, and those of the last checkpoint."""
    result: Mapping[str, Any] | None
    """What it ended with; None for an unfinished run."""
    checkpoint: Mapping[str, Any]
    """state.json of the last checkpoint, empty without one."""
    teacher: Mapping[str, Any]
    """teacher.json, empty without one."""
    sessions: tuple[Session, ...]

    @property
    def last_epoch(self) -> int:
        """Epochs done at the last moment that is recorded."""
        return max([*self.epochs, *(w.epoch for w in self.weights)], default=0)

    @property
    def last_step(self) -> int:
        """Steps done at that moment, as far as they are known."""
        logged = [step + 1 for step in self.steps]
        return max([*logged, *(w.step or 0 for w in self.weights)], default=0)

    @property
    def ended_by_callback(self) -> bool:
        """Whether a callback of the Python API ended it."""
        return self.result is not None and self.result.get("stopped") == CALLBACK


def read_recorded_run(root: Path) -> RecordedRun:
    """Read a run.

    Raises:
        ConfigError: it is no run, had objects of a program's, or has nothing to compare with.
        ModelError: its weights are damaged.
    """
    if is_folds(root):
        raise ConfigError(
            f"{root} has the runs of several folds.",
            f"Name one: deitctl reproduce {shlex.quote(str(root / 'fold1'))}",
        )
    run, config = Run.open(root)
    _require_reproducible(run, config)
    checkpoint = _read_checkpoint(run)
    recorded = RecordedRun(
        root=root,
        config=config,
        steps={record["step"]: record for record in run.records("step")},
        epochs={record["epoch"]: record for record in run.records("epoch")},
        weights=(*_read_best(run), *_read_last(run, checkpoint)),
        result=run.result(),
        checkpoint=checkpoint,
        teacher=_read_object(root / TEACHER),
        sessions=tuple(read_sessions(root)),
    )
    if not (recorded.steps or recorded.epochs or recorded.weights):
        raise ConfigError(
            f"{root} has neither a log nor weights that a repetition could be compared with.",
            f"Train it first: deitctl train --resume {run.quoted}",
        )
    return recorded


def _require_reproducible(run: Run, config: TrainConfig) -> None:
    """Raise `ConfigError` for a run that had objects of a program's, which no file has."""
    objects = sorted(_read_object(run.root / EXTENSIONS))
    if config.data.startswith(PREFIX):
        objects.append("data set")
    if objects:
        raise ConfigError(
            f"{run.root} was trained with the {' and '.join(objects)} of a program, which is not in its folder.",
            "Train it again by that program, and compare: deitctl runs A B",
        )


def _read_best(run: Run) -> list[SavedWeights]:
    """Return the weights of the best epoch, if the run has them."""
    if not (run.root / WEIGHTS).is_file():
        return []
    score, tensors = read_score(run), load_tensors(run.root / WEIGHTS)
    if score is None or not score.epoch:
        raise ModelError(
            f"{run.root / WEIGHTS} does not say of which epoch it is: it is not what the training wrote.",
            "Restore it, or move it away to compare the rest.",
        )
    return [SavedWeights("saved weights", score.weights, score.epoch, None, tensors)]


def _read_last(run: Run, checkpoint: Mapping[str, Any]) -> list[SavedWeights]:
    """Return the weights of the last checkpoint, and their EMA."""
    if not checkpoint:
        return []
    folder, checksums = _find_checkpoint(run), checkpoint.get("checksums")
    weights = []
    for kind, name in (("model", MODEL), ("ema", EMA)):
        if (folder / name).is_file():
            tensors = read_file(folder, name, checksums)
            what = f"last weights{' (EMA)' if kind == 'ema' else ''}"
            weights.append(
                SavedWeights(what, kind, checkpoint["epoch"], checkpoint["step"], tensors)
            )
    return weights


def _find_checkpoint(run: Run) -> Path:
    # A run that is killed between the two renames of a save has the one before.
    old = run.checkpoint.with_name(f"{run.checkpoint.name}.old")
    return run.checkpoint if run.checkpoint.exists() or not old.exists() else old


def _read_checkpoint(run: Run) -> dict[str, Any]:
    folder = _find_checkpoint(run)
    if not folder.exists():
        return {}
    record = read_record(folder)
    if not all(type(record.get(name)) is int for name in ("epoch", "step")):
        raise ModelError(f"{folder} does not say of which step it is.", "Restore it.")
    return record


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, empty if there is none."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

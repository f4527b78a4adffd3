"""What a caller of the Python API adds to a run: an objective, an augmentation, callbacks, a teacher."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from deitctl.data.own_augmentation import Augmentation, name_function
from deitctl.device import ran_out_of_memory
from deitctl.distillation.callable_teacher import CallableTeacher
from deitctl.errors import ConfigError, DeitctlError, ExtensionError
from deitctl.paths import read_json, write_json
from deitctl.training.objective import Objective, StudentBatch, TaskLoss, find_task_loss

FILE = "extensions.json"
"""In the run folder: the names of the functions that the run was trained with."""


class Callback(Protocol):
    """Is called by the main process after each epoch, with its record of metrics.jsonl."""

    def on_epoch_end(self, metrics: Mapping[str, Any], /) -> bool | None:
        """Return whether the run is to end."""


@dataclass(frozen=True, kw_only=True)
class Extensions:
    """Functions of the caller's that a run calls."""

    objective: Objective | None = None
    """What a step minimizes; None: the recipe's loss."""
    augmentation: Augmentation | None = None
    """Applied to each training view after the recipe's augmentation."""
    callbacks: Sequence[Callback] = ()
    teacher: CallableTeacher | None = None
    """In place of a model."""
    draw_figures: Callable[[Path], Sequence[Path]] | None = None
    """Draws the figures of the run in a folder, at its end, and returns their files."""

    def name_all(self) -> dict[str, str]:
        """Return the names of the functions that decide what the run learns."""
        functions = {"objective": self.objective, "augmentation": self.augmentation}
        names = {key: name_function(f) for key, f in functions.items() if f is not None}
        return names | ({"teacher": self.teacher.name} if self.teacher is not None else {})


NO_EXTENSIONS = Extensions()


def keep_names(root: Path, extensions: Extensions) -> None:
    """Write the names of a new run's functions into its folder, if it has any."""
    if names := extensions.name_all():
        write_json(root / FILE, names)


def require_same_extensions(root: Path, extensions: Extensions) -> None:
    """Raise `ConfigError` if a resumed run was trained with other functions of the caller's."""
    try:
        began = read_json(root / FILE)
    except FileNotFoundError:
        began = {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{root / FILE} cannot be read: {error}.", "Restore it.") from error
    now = extensions.name_all()
    if began == now:
        return
    if not isinstance(began, dict):
        raise ConfigError(f"{root / FILE} is not what a training writes.", "Restore it.")
    key = next(key for key in (*began, *now) if began.get(key) != now.get(key))
    was = json.dumps(began[key]) if key in began else f"no {key} of its own"
    hint = f"Pass it again: deitctl.train(resume={str(root)!r}, {key}=...)."
    raise ConfigError(
        f"{root} was trained with {f'the {key} ' if key in began else ''}{was}, and "
        f"{'is resumed with ' + now[key] if key in now else 'none is passed'}.",
        hint if key in began else "Leave it out, or start a new run.",
    )


def guard_objective(objective: Objective) -> Objective:
    """Return a caller's objective whose faults are errors in words."""
    return _GuardedObjective(objective)


class _GuardedObjective:
    """Calls the caller's objective, and checks what it returns."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.name = f"The objective {name_function(objective)}"

    @property
    def task_loss(self) -> TaskLoss:
        """The loss of the true labels, for a new head's fit."""
        return find_task_loss(self.objective)

    def __call__(self, student: nn.Module, batch: StudentBatch) -> dict[str, Tensor]:
        try:
            losses = self.objective(student, batch)
        except (DeitctlError, MemoryError):
            raise
        except Exception as error:
            if ran_out_of_memory(error):  # the micro-batch is halved
                raise
            raise ExtensionError.from_exception(self.name, error) from error
        self._require_losses(losses)
        return losses

    def _require_losses(self, losses: object) -> None:
        if not isinstance(losses, dict) or "loss" not in losses:
            returned = (
                f"the keys {sorted(map(str, losses))}"
                if isinstance(losses, dict)
                else (f"a {type(losses).__name__}")
            )
            raise ExtensionError(
                f"{self.name} returned {returned}.",
                "It returns a dict of scalars by name, of which `loss` is minimized.",
            )
        for name, value in losses.items():
            if not isinstance(name, str) or not name.isidentifier():
                raise ExtensionError(
                    f"{self.name} named a loss {name!r}.", "A name is letters, digits and _."
                )
            if not isinstance(value, Tensor) or value.numel() != 1:
                kind = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ExtensionError(f"{self.name} returned {name} as {kind}, not as a scalar.")
        if not losses["loss"].requires_grad:
            raise ExtensionError(
                f"{self.name} returned a loss without a gradient.",
                "Compute it from the student's outputs, without no_grad or detach.",
            )


def call_callbacks(callbacks: Sequence[Callback], metrics: Mapping[str, Any]) -> bool:
    """Call all callbacks; return whether one of them ends the run.

    Raises:
        ExtensionError: one fails, or returns something else.
    """
    ends = False
    for callback in callbacks:
        what = f"The callback {name_function(callback)}"
        try:
            answer = callback.on_epoch_end(dict(metrics))
        except (DeitctlError, MemoryError):
            raise
        except Exception as error:
            raise ExtensionError.from_exception(what, error) from error
        if answer is not None and not isinstance(answer, bool):
            raise ExtensionError(
                f"{what} returned {answer!r:.80}.", "It returns True to end the run, else None."
            )
        ends = ends or bool(answer)
    return ends

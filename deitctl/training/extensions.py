"""What a caller of the Python API adds to a run: an objective, an augmentation, callbacks, a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from deitctl.config import Recipe
from deitctl.data.own_augmentation import Augmentation
from deitctl.data.own_functions import identify_function, name_function
from deitctl.device import ran_out_of_memory
from deitctl.distillation.callable_teacher import CallableTeacher
from deitctl.errors import ConfigError, DeitctlError, ExtensionError
from deitctl.events import Reporter
from deitctl.paths import read_json, write_json
from deitctl.training.objective import Objective, StudentBatch, TaskLoss, find_task_loss

RESERVED = ("kind", "step", "epoch", "lr", "grad_norm")
"""Names of a step's record that are no losses."""
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

    def name_all(self) -> dict[str, dict[str, str]]:
        """Return name and content of the functions that decide what the run learns."""
        functions = {"objective": self.objective, "augmentation": self.augmentation}
        names = {
            key: {"name": name_function(f), "content": identify_function(f)}
            for key, f in functions.items()
            if f is not None
        }
        if self.teacher is not None:
            names["teacher"] = {"name": self.teacher.name, "content": self.teacher.identify()}
        return names


NO_EXTENSIONS = Extensions()


def require_recipe_loss(recipe: Recipe) -> None:
    """Raise `ConfigError` for settings of the recipe's loss beside an objective of the caller's."""
    settings = {
        "loss": recipe.loss != "auto",
        "class_weights": recipe.class_weights != "none",
        "logit_adjustment": bool(recipe.logit_adjustment),
    }
    for name, is_set in settings.items():
        if is_set:
            raise ConfigError(
                f"{name} is a setting of the recipe's loss, which the objective takes the place of.",
                "Leave it out, or let the objective do it.",
            )


def keep_names(root: Path, extensions: Extensions) -> None:
    """Write the names of a new run's functions into its folder, if it has any."""
    if names := extensions.name_all():
        write_json(root / FILE, names)


def require_same_extensions(root: Path, extensions: Extensions, reporter: Reporter) -> None:
    """Raise `ConfigError` if a resumed run was trained with other functions of the caller's, and warn if one
    of them has changed."""
    try:
        began = read_json(root / FILE)
    except FileNotFoundError:
        began = {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{root / FILE} cannot be read: {error}.", "Restore it.") from error
    if not isinstance(began, dict) or not all(isinstance(v, dict) for v in began.values()):
        raise ConfigError(f"{root / FILE} is not what a training writes.", "Restore it.")
    now = extensions.name_all()
    for key in {**began, **now}:
        was, name = began.get(key, {}).get("name"), now.get(key, {}).get("name")
        if was is None:
            raise ConfigError(
                f"{root} was trained without {key}, and is resumed with {name}.",
                "Leave it out, or start a new run.",
            )
        if was != name:
            raise ConfigError(
                f"{root} was trained with the {key} {was}, and "
                f"{f'is resumed with {name}' if name else 'none is passed'}.",
                f"Pass it again: deitctl.train(resume={str(root)!r}, {key}=...); a replay takes it too.",
            )
        if began[key].get("content") != now[key]["content"]:
            reporter.warn(
                f"The {key} {name} has changed since {root} began: the run ends otherwise than it "
                "would have."
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
        device = batch.images.device
        return {
            name: value if isinstance(value, Tensor) else torch.tensor(float(value), device=device)
            for name, value in losses.items()
        }

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
            if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
                raise ExtensionError(
                    f"{self.name} named a loss {name!r}.",
                    f"A name is letters, digits and _, and none of {', '.join(RESERVED)}.",
                )
            is_number = isinstance(value, int | float) and name != "loss"
            if not is_number and (not isinstance(value, Tensor) or value.ndim != 0):
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
        if answer is not None and not isinstance(answer, bool | np.bool_):
            raise ExtensionError(
                f"{what} returned {answer!r:.80}.", "It returns True to end the run, else None."
            )
        ends = ends or bool(answer)
    return ends

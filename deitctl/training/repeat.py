"""The configuration of a run, taken again from its run.toml with settings replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deitctl.config import TrainConfig
from deitctl.data.sources import BUILT_IN
from deitctl.distillation.teacher_size import fit_teacher_size
from deitctl.errors import ConfigError
from deitctl.events import Reporter, SilentReporter
from deitctl.settings import MODEL_ARGS, from_dict, override, read_toml
from deitctl.training.configure import add_tags, check, name_command, refuse_settings
from deitctl.training.input_shape import (
    find_size,
    fit_color,
    refit_crop_ratio,
    require_input_shape,
)
from deitctl.training.optimizer_choice import replace_rates, warn_of_rising_rate
from deitctl.training.schedule import compute_peak_lr
from deitctl.training.several_teachers import map_teachers

FIXED_BY_CONFIG = ("data", "model", "weights", "classes", "recipe", "recipe.pretrained")
"""Settings that a `run.toml` decides, beside the teacher's; --set alone changes them."""


def read_config(
    path: Path,
    settings: Mapping[str, Any],
    overrides: Mapping[str, Any],
    *,
    distilled: bool,
    reporter: Reporter | None = None,
) -> TrainConfig:
    """Return the configuration in a `run.toml`, with settings replaced.

    Args:
        path: the file.
        settings: by dotted name of `TrainConfig`.
        overrides: settings that may also replace what the file decides.
        distilled: whether the run is to have a teacher.
        reporter: receives what follows from the settings.

    Raises:
        ConfigError: no such file, a teacher where there is to be none or the reverse, a value that does not fit, or
            `settings` contradict what the file decides.
    """
    reporter = reporter or SilentReporter()
    fixed = [n for n in settings if n in FIXED_BY_CONFIG or n.startswith("distill.")]
    refuse_settings(fixed, path)
    before = replace(from_dict(TrainConfig, read_toml(path), str(path)), output_dir="")
    if distilled != (before.distill is not None):
        raise ConfigError(
            f"The run of {path} has {'no' if distilled else 'a'} teacher.",
            f"Repeat it by {name_command(before)} --config.",
        )
    named = {**settings, **overrides}
    config = override(override(before, settings), overrides)
    optim = replace_rates(before.recipe.optim, config.recipe.optim, named, str(path), reporter)
    recipe = replace(config.recipe, optim=optim)
    if recipe.epochs != before.recipe.epochs:
        # Restarts are at the run's own epochs; a run of others has one schedule.
        recipe = replace(recipe, restart_epochs=(), planned_epochs=())
    warn_of_rising_rate(optim, compute_peak_lr(optim, recipe.batch_size), reporter)
    config = _fit_shape(before, replace(config, recipe=recipe), named, reporter)
    config = add_tags(config)
    check(config)
    return config


def _fit_shape(
    before: TrainConfig, now: TrainConfig, named: Mapping[str, Any], reporter: Reporter
) -> TrainConfig:
    """Refuse a shape or an input that the model cannot have; fit crops and colors to another input."""
    recipe = now.recipe
    shape = {"recipe.img_size": recipe.img_size, "recipe.in_chans": recipe.in_chans}
    own = {MODEL_ARGS + name: value for name, value in now.model_args.items()}
    same = (before.model, before.recipe.img_size, before.recipe.in_chans, before.model_args)
    if same == (now.model, recipe.img_size, recipe.in_chans, now.model_args):
        return now
    require_input_shape(now.model, {**shape, **own}, reporter)
    now = fit_color(refit_crop_ratio(before, now, named, reporter), named, reporter)
    size, built_in = find_size(now, reporter), now.data == BUILT_IN
    return map_teachers(
        now,
        lambda alone: fit_teacher_size(alone, size, named, built_in=built_in, reporter=reporter),
    )

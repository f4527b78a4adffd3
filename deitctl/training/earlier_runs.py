"""Runs that exist already: found again, compared with a request, given more epochs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deitctl.config import MACHINE_SETTINGS, MAX_COUNT, PLACES, TrainConfig
from deitctl.errors import ConfigError, require_positive
from deitctl.events import Reporter
from deitctl.settings import list_differences, override
from deitctl.training.configure import add_tags, name_command
from deitctl.training.pinned_data import pin_as
from deitctl.training.run_dir import Run

EPOCHS = "recipe.epochs"


def require_same(root: Path, config: TrainConfig, settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for settings that differ from the run's and are not the machine's.

    The data of a run with a checkpoint may be named elsewhere: whether it is the same is seen when it is open.
    """
    fixed = {k: v for k, v in settings.items() if k not in MACHINE_SETTINGS}
    if Run(root).saved_position() is not None:
        for place in PLACES:
            fixed.pop(place, None)
    requested = override(config, fixed)
    if changed := list_differences(add_tags(config), add_tags(requested)):
        longer = suggest_more_epochs(Run(root), config, requested)
        raise ConfigError(
            f"{root} cannot be resumed with other settings: {'; '.join(changed)}.",
            f"{longer or 'Leave them out'}, or start a new run with the change: "
            f"{name_command(config)} --config {shlex.quote(str(root / 'run.toml'))} ...",
        )


def suggest_more_epochs(run: Run, config: TrainConfig, requested: TrainConfig) -> str:
    """Return how a run gets the epochs that are requested, empty if that is not what differs."""
    more = requested.recipe.epochs - config.recipe.epochs
    # The warm-up of a recipe that is fitted to its data follows the epochs.
    same = override(
        requested.recipe,
        {
            "epochs": config.recipe.epochs,
            "optim.warmup_epochs": config.recipe.optim.warmup_epochs,
        }
        if config.recipe.fits_data
        else {"epochs": config.recipe.epochs},
    )
    others = replace(requested, recipe=same)
    if more <= 0 or list_differences(add_tags(config), add_tags(others)):
        return ""
    command = f"deitctl train --resume {run.quoted}"
    if run.result() is None:
        return f"Finish it ({command}), then add --more-epochs {more}"
    return f"Train it longer: {command} --more-epochs {more}"


def find_unfinished(
    config: TrainConfig, reporter: Reporter, *, launch: str = "", any_batch: bool = False
) -> Path | None:
    """Return the newest unfinished run of a configuration, or the run in its output folder; None if
    there is none.

    Args:
        config: its `output_dir`, if set, is the only folder that is looked at, else those in runs/.
        reporter: notes an unfinished run of the same model and data that differs.
        launch: only a run that was started by this launch of several processes.
        any_batch: whether the batch size may differ.

    Raises:
        ConfigError: the output folder holds a run of another configuration.
    """
    output = config.output_dir
    for root in [Path(output)] if output else sorted(Path("runs").glob("*"), key=_age):
        run = Run(root)
        if not run.config_file.is_file() or (launch and run.read_launch_id() != launch):
            continue
        try:
            _, existing = Run.open(root)
        except ConfigError:
            continue
        batch_size = existing.recipe.batch_size if any_batch else config.recipe.batch_size
        recipe = replace(config.recipe, batch_size=batch_size)
        requested = settle_as(replace(config, recipe=recipe), existing)
        changed = list_differences(add_tags(existing), requested)
        finished = run.result() is not None
        if changed and output:
            longer = suggest_more_epochs(run, existing, requested)
            raise ConfigError(
                f"{root} holds a run of another configuration: {'; '.join(changed)}.",
                f"{longer or 'Leave out what differs'}, or name another --output.",
            )
        # A finished run is only evaluated again, so that the same line of a job script succeeds
        # twice.
        if not changed and (not finished or (output and not launch)):
            return root
        if not finished and (existing.model, existing.data) == (config.model, config.data):
            reporter.note(
                f"{root} is unfinished, but of another configuration: {'; '.join(changed)}."
            )
    return None


def settle_as(config: TrainConfig, existing: TrainConfig) -> TrainConfig:
    """Return a configuration with what it leaves open as a run has settled it when it opened its data.

    That is the task, the commit of a hub's data, and the order of images.
    """
    order = config.data_order
    if order == TrainConfig.data_order:  # auto
        order = existing.data_order
    return replace(
        pin_as(config, existing),
        task=existing.task if config.task == TrainConfig.task else config.task,
        data_order=order,
        window=config.window or (existing.window if order == "window" else 0),
    )


def _age(root: Path) -> float:
    """Return minus the time of a run's last change, so that the newest sorts first."""
    run = Run(root)
    files = (run.config_file, run.metrics_file, run.checkpoint)
    return -max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def add_epochs(run: Run, config: TrainConfig, more_epochs: int, *, launch: str) -> TrainConfig:
    """Return the configuration of a finished run with more epochs, in which the schedule of the
    learning rate begins again.

    Args:
        run: nothing is written into it.
        config: of the run.
        more_epochs: at least 1.
        launch: this launch of several processes; one that is restarted after it has given the run
            its epochs goes on with these.

    Raises:
        ConfigError: the run is unfinished, or has no checkpoint to go on from.
    """
    require_positive(more_epochs=more_epochs)
    command = f"deitctl train --resume {run.quoted}"
    result = run.result()
    if result is None:
        if launch and run.read_launch_id() == launch:
            return config
        raise ConfigError(
            f"{run.root} is not finished: of its {config.recipe.epochs} epochs {(run.saved_position() or (0,))[0]} "
            "are done, by its last checkpoint.",
            f"Finish it: {command}. Then --more-epochs {more_epochs} trains on.",
        )
    if run.saved_position() is None:
        raise ConfigError(
            f"{run.root} has no checkpoint to train on from.",
            f"Start a new run from its weights: {name_command(config)} {shlex.quote(config.data)} "
            f"{'--model' if config.distill is None else '--student'} {run.quoted}",
        )
    # Less than the configured ones where it stopped early; a result of others' making is no number.
    done = result.get("epochs")
    first = (
        min(done, config.recipe.epochs)
        if isinstance(done, int) and done > 0
        else config.recipe.epochs
    )
    if first + more_epochs > MAX_COUNT:
        raise ConfigError(f"--more-epochs {more_epochs} is too many: at most {MAX_COUNT:,} in all.")
    recipe = replace(
        config.recipe,
        epochs=first + more_epochs,
        restart_epochs=(*config.recipe.restart_epochs, first),
        planned_epochs=(),
    )
    planned = config.recipe.list_planned()
    if planned != recipe.list_planned()[:-1]:
        recipe = replace(recipe, planned_epochs=planned)
    return replace(config, recipe=recipe)

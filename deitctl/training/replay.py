"""Takes a diverged step again from the last good checkpoint, and measures its gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from deitctl.config import MACHINE_SETTINGS
from deitctl.data.run_data import read_run_data
from deitctl.data.training_data import Source, open_for_training
from deitctl.device import choose_run_device
from deitctl.distributed import SINGLE_PROCESS, is_distributed
from deitctl.errors import ConfigError
from deitctl.events import Reporter, SilentReporter, track
from deitctl.settings import override
from deitctl.training.begin import fit_new_head
from deitctl.training.build import build_student
from deitctl.training.device_batch import DeviceBatch
from deitctl.training.extensions import NO_EXTENSIONS, Extensions, require_same_extensions
from deitctl.training.feed import feed
from deitctl.training.freezing import begin_epoch
from deitctl.training.incident import read_incident
from deitctl.training.launch import build_trainer
from deitctl.training.monitor import Observation
from deitctl.training.resumption import load_checkpoint
from deitctl.training.run_dir import Run
from deitctl.training.step import (
    compute_losses,
    forward_backward,
    optimizer_step,
)
from deitctl.training.trainer import Trainer


@dataclass(frozen=True)
class ImageLoss:
    """Loss of two images that are mixed with each other."""

    image: str
    """Name of the first."""
    loss: float
    """Mean loss of both."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What was measured on the way to a step and in it."""

    kind: str
    """Kind of the incident: `non_finite` or `loss_spike`."""
    step: int
    """Last step of the replay, counted from 0."""
    precision: str
    """Precision of the replay."""
    reproduced: bool
    """Whether a step diverged again."""
    steps: list[dict[str, Any]]
    """`step`, `lr`, losses and `grad_norm` of each step, that of the incident the last."""
    grad_norms: dict[str, float]
    """Gradient norm of each parameter in the last step, largest first; NaN before all."""
    images: list[ImageLoss]
    """Loss of each pair of images in the last step, largest first."""


def replay(
    path: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    extensions: Extensions = NO_EXTENSIONS,
    reporter: Reporter | None = None,
) -> Replay:
    """Train from the checkpoint before an incident up to it, without writing into the run.

    Args:
        path: the incident's record, or its folder.
        settings: another device, precision or number of workers than the incident's.
        extensions: the functions of the caller's that the run was trained with.
        reporter: shows progress.

    Raises:
        ConfigError: the path is no such record, its run does not exist any more, or had functions of
            a caller's that are not passed.
    """
    reporter = reporter or SilentReporter()
    if is_distributed():
        raise ConfigError("A replay is for one process.", "Run it without torchrun.")
    record = read_incident(path)
    folder = (path if path.is_dir() else path.parent).resolve()
    # The folder may have been moved together with its run since the record was written.
    moved = folder.parent.parent
    root = moved if (moved / "run.toml").is_file() else Path(record["run"])
    _, config = Run.open(root)
    require_same_extensions(root, extensions, reporter)
    machine = {
        "precision": record.get("precision", "auto"),
        "micro_batch_size": record.get("micro_batch_size", 0),
    }
    machine |= {k: v for k, v in (settings or {}).items() if k in MACHINE_SETTINGS}
    config = replace(override(config, machine), output_dir=str(root))
    device = choose_run_device(config)
    run = Run(root, writes=False)
    run.checkpoint = folder / "checkpoint"
    source = replace(Source.of(config), value_range=run.saved_value_range() or config.value_range)
    datasets = open_for_training(source, reporter=reporter, run=read_run_data(root))
    student = build_student(config, datasets[0], reporter, channels=run.saved_channels())
    datasets = datasets[0].with_augmentation(extensions.augmentation), datasets[1]
    with device.computing():
        trainer = build_trainer(
            run, config, student, datasets, device, reporter, SINGLE_PROCESS, extensions
        )
        load_checkpoint(trainer)
        fit_new_head(trainer)
        return _replay_steps(trainer, record, reporter)


def _replay_steps(trainer: Trainer, record: Mapping[str, Any], reporter: Reporter) -> Replay:
    context, state, monitor = trainer.context, trainer.state, trainer.monitor
    recipe, progress = context.recipe, state.progress
    last, num_steps = int(record["step"]), context.recipe.epochs * context.steps_per_epoch
    if not progress.step <= last < num_steps:
        raise ConfigError(
            f"Step {last} cannot be replayed: the checkpoint is of step {progress.step}, and the run "
            f"has {num_steps} steps."
        )
    batches, steps = feed(context, state, trainer.setup.build_loader()), []
    remaining = range(progress.step, last + 1)
    for step in track(remaining, reporter, "replay", len(remaining), "steps"):
        begin_epoch(state, recipe, step // context.steps_per_epoch)
        batch, lr = next(batches), context.lr_at(step)
        stats = forward_backward(trainer.engine, batch, reporter)
        steps.append({"step": step, "lr": lr, **stats.reading.read()})
        monitor.update(Observation(step, lr, stats.reading, batch.keys))
        incident = monitor.find_incident()
        if step == last or incident is not None:
            break  # before the optimizer's step, so that the gradients are those of these weights
        optimizer_step(context, state, lr, stats.grad_norm)
        progress.step += 1
    grads = {n: p.grad for n, p in state.named_parameters() if p.grad is not None}
    return Replay(
        kind=str(record["kind"]),
        step=progress.step,
        precision=context.device.precision,
        reproduced=incident is not None,
        steps=steps,
        grad_norms=dict(_sort_largest_first((n, float(g.norm())) for n, g in grads.items())),
        images=[ImageLoss(*i) for i in _sort_largest_first(_pair_losses(trainer, batch))],
    )


@torch.no_grad()
def _pair_losses(trainer: Trainer, batch: DeviceBatch) -> list[tuple[str, float]]:
    """Return the loss of each pair of images: mixing may have made them inseparable."""
    losses = []
    for pair in batch.split(2):
        loss = compute_losses(trainer.engine, pair)["loss"]
        losses.append((trainer.setup.train.name(pair.keys[0].index), float(loss)))
    return losses


def _sort_largest_first(values: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Sort by value, NaN first."""
    return sorted(
        values, key=lambda i: (math.isnan(i[1]), 0.0 if math.isnan(i[1]) else i[1]), reverse=True
    )

"""Taking a step that went wrong again, from the last good state to it, and saying what happens in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from deitctl.config import MACHINE_SETTINGS
from deitctl.data.loader import Batch
from deitctl.data.open import open_for_training
from deitctl.device import choose_device
from deitctl.distributed import SINGLE_PROCESS, is_distributed
from deitctl.errors import ConfigError
from deitctl.events import Reporter, SilentReporter, track
from deitctl.settings import override
from deitctl.training.incident import read_incident, speakable
from deitctl.training.launch import build_student, open_session
from deitctl.training.monitor import LossMonitor, Observation
from deitctl.training.run_dir import Run
from deitctl.training.step import compute_loss, gradients, set_train_mode, update
from deitctl.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What was seen on the way to a step and in it."""

    kind: str
    """Of the incident: `not a number` or `jump`."""
    step: int
    precision: str
    again: bool
    """Whether it went wrong again."""
    steps: list[dict[str, Any]]
    """Step, rate, loss, parts of the loss and gradient norm of each, that of the incident the last."""
    gradients: list[tuple[str, float]]
    """Gradient norm of each parameter at that step, largest first; what is no number goes before all."""
    images: list[tuple[str, float]]
    """Loss of each pair of images of that step, worst first, under the first one's name; one that comes
    again in other views has a line for each."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        record = {
            "kind": self.kind,
            "step": self.step,
            "precision": self.precision,
            "again": self.again,
            "steps": self.steps,
            "gradients": dict(self.gradients),
            "images": [{"image": name, "loss": loss} for name, loss in self.images],
        }
        return dict(speakable(record))


def replay(
    path: Path, *, given: Mapping[str, Any] | None = None, reporter: Reporter | None = None
) -> Replay:
    """Train from the state before an incident up to it, without touching the run.

    Args:
        path: the incident's record, or its folder.
        given: another device, precision or number of workers; where none is named, the incident's.
        reporter: told of progress.

    Raises:
        ConfigError: it is no such record, or its run is not there any more.
    """
    reporter = reporter or SilentReporter()
    if is_distributed():
        raise ConfigError("A replay is for one process.", "Run it without torchrun.")
    record = read_incident(path)
    folder = (path if path.is_dir() else path.parent).resolve()
    root = (
        folder.parent.parent
        if (folder.parent.parent / "run.toml").is_file()
        else Path(record["run"])
    )
    _, config = Run.open(root)
    machine = {
        "precision": record.get("precision", "auto"),
        "micro_batch_size": record.get("micro_batch", 0),
    }
    config = override(
        config, {k: v for k, v in (machine | dict(given or {})).items() if k in MACHINE_SETTINGS}
    )
    device = choose_device(config.device, config.precision)
    datasets = open_for_training(config.data, seed=config.data_seed, reporter=reporter)
    run = Run(root, writes=False)
    run.state = folder / "state"
    session = open_session(
        run,
        replace(config, output_dir=str(root)),
        datasets,
        build_student(config, datasets[0], reporter),
        device,
        reporter,
        SINGLE_PROCESS,
    )
    session.load()
    return _replay(session, record, reporter)


def _replay(session: Trainer, record: Mapping[str, Any], reporter: Reporter) -> Replay:
    plan, state, last = session.plan, session.state, int(record["step"])
    if not state.progress.step <= last < plan.recipe.epochs * plan.steps_per_epoch:
        raise ConfigError(
            f"Step {last} cannot be taken again: the state there is of step {state.progress.step}, and the run has "
            f"{plan.recipe.epochs * plan.steps_per_epoch} steps."
        )
    watch = LossMonitor(
        plan.num_classes, state.scaler.is_enabled(), session.config.loss_spike_factor
    )
    watch.usual, watch.seen = state.progress.usual_loss, state.progress.steps_watched
    set_train_mode(state.model, plan.recipe.freeze, plan.recipe.freeze_bn_stats)
    batches, steps, incident = session.batches(), [], None
    for step in track(
        range(state.progress.step, last + 1),
        reporter,
        "replay",
        last + 1 - state.progress.step,
        "steps",
    ):
        batch, rate = next(batches), plan.rate(step)
        found = gradients(plan, state, batch, session.train_dataset.name, reporter)
        parts = {name: float(value) for name, value in found.parts.items()}
        steps.append({"step": step, "rate": rate, **parts, "norm": float(found.norm)})
        watch.add(Observation(step, rate, found.parts["loss"], found.norm, batch.keys))
        incident = watch.look()
        if step == last or incident is not None:
            break
        update(plan, state, rate, found.norm)
        state.progress.step += 1
    norms = {
        n: float(p.grad.norm()) for n, p in state.model.named_parameters() if p.grad is not None
    }
    return Replay(
        kind=str(record["kind"]),
        step=state.progress.step,
        precision=plan.device.precision,
        again=incident is not None,
        steps=steps,
        gradients=_worst_first(norms.items()),
        images=_worst_first(_losses(session, batch)),
    )


def _losses(session: Trainer, batch: Batch) -> Iterator[tuple[str, float]]:
    """Yield the loss of each pair of images of a batch, which mixing may have made one of the other."""
    with torch.no_grad():
        for pair in batch.parts(2):
            if pair.keys:
                loss = compute_loss(session.plan, session.state, pair).total
                yield session.train_dataset.name(pair.keys[0].index), float(loss)


def _worst_first(values: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Sort by size, downwards; what is no number goes before all."""
    return sorted(
        values, key=lambda item: (item[1] == item[1], -item[1] if item[1] == item[1] else 0)
    )

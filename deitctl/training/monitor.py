"""Detects steps that diverge: a loss or gradient norm that is not finite, or a loss spike."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from deitctl.data.samplers import SampleKey
from deitctl.training.state import Progress
from deitctl.training.step_stats import GRAD_NORM, Reading

MIN_STEPS = 10  # before spikes are detected: the first losses have no mean to compare with
LOSS_DECAY = 0.95  # of the running mean of the loss, which so covers about twenty steps
HISTORY = 20  # steps that an incident lists, its own the last
NON_FINITE, LOSS_SPIKE = "non_finite", "loss_spike"
MAX_UNREAD = 2
"""Steps that an accelerator may be behind with, whose batches are in its memory; then the oldest is waited for."""


@dataclass(frozen=True)
class Observation:
    """Losses and gradient norm of one step, which an accelerator may not have computed yet."""

    step: int
    lr: float
    reading: Reading
    keys: list[SampleKey]
    """Images of the batch in this process."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """A step that diverged, and the steps before it."""

    kind: str
    """`non_finite` or `loss_spike`."""
    step: int
    """Counted from 0."""
    lr: float
    loss: float
    grad_norm: float
    recent_mean: float
    """Running mean of the loss before the step."""
    keys: list[SampleKey]
    """Images of the batch."""
    recent: list[dict[str, Any]]
    """`step`, `loss` and `grad_norm` of the last steps, this one the last."""

    @property
    def message(self) -> str:
        """What happened, as a sentence."""
        event = (
            f"The loss is {self.loss:.4g} and the gradient norm {self.grad_norm:.4g}"
            if self.kind == NON_FINITE
            else f"The loss rose from about {self.recent_mean:.3g} to {self.loss:.3g}"
        )
        return f"{event} at step {self.step}, counted from 0 (learning rate {self.lr:.2g})."


class TrainingDiverged(Exception):
    """A step has a loss or gradients that the run must not continue with."""

    def __init__(self, incident: Incident) -> None:
        super().__init__(incident.message)
        self.incident = incident


@dataclass
class LossMonitor:
    """Checks the loss and gradient norm of each step, of several steps at once where read late."""

    progress: Progress
    """Holds the running mean of the loss, which a checkpoint keeps."""
    guess_loss: float
    """Of a model that knows nothing, in the batch where most images have labels; see `estimate_guess_loss`
    and `bound_label_weight`."""
    scaled: bool
    """Whether the loss is scaled (fp16): gradients that are not finite then lower the scale."""
    spike_factor: float = 0.0
    """A loss above this factor times both its running mean and that of a guess is a spike; 0: none
    is. Mixing and hard batches move it by tenths, a step that breaks the weights by much more."""
    unread: list[Observation] = field(default_factory=list)
    incident: Incident | None = None
    """The first step that diverged, once it is read."""
    recent: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, float]] = field(default_factory=list)
    """`step`, `lr`, losses and `grad_norm` of the steps that were read, until somebody takes them."""

    def update(self, observation: Observation) -> None:
        """Add a step's observation, to be read when it is there."""
        self.unread.append(observation)

    def read_ready(self, max_unread: int = MAX_UNREAD) -> None:
        """Read the steps that the device has computed, in order; wait for the oldest of more than `max_unread`."""
        while self.unread and (self.unread[0].reading.is_ready or len(self.unread) > max_unread):
            self._read_first()

    def find_incident(self) -> Incident | None:
        """Read all steps, wait for those that are not there; return the first that diverged, or None."""
        while self.unread:
            self._read_first()
        return self.incident

    def raise_if_diverged(self) -> None:
        """Read all steps; raise `TrainingDiverged` if one of them diverged."""
        if incident := self.find_incident():
            raise TrainingDiverged(incident)

    def take_figures(self) -> list[dict[str, float]]:
        """Return the figures of the steps that were read since the last call."""
        figures, self.figures = self.figures, []
        return figures

    def _read_first(self) -> None:
        self._read(self.unread[0])
        self.unread.pop(0)  # stays if it cannot be read, so that no state after it counts as good

    def _read(self, o: Observation) -> None:
        """Judge a step; after one that diverged none counts."""
        if self.incident is not None:
            return
        progress, values = self.progress, o.reading.read()
        loss, grad_norm, mean = values["loss"], values[GRAD_NORM], progress.recent_loss
        self.figures.append({"step": o.step, "lr": o.lr, **values})
        record = {"step": o.step, "loss": loss, "grad_norm": grad_norm}
        self.recent = [*self.recent[1 - HISTORY :], record]
        kind = ""
        # Below the loss of a guess, small losses may rise by a large factor.
        limit = self.spike_factor * max(mean, self.guess_loss)
        if not math.isfinite(loss) or (not math.isfinite(grad_norm) and not self.scaled):
            kind = NON_FINITE
        elif limit and progress.steps_monitored >= MIN_STEPS and loss > limit:
            kind = LOSS_SPIKE
        if kind:
            self.incident = Incident(
                kind=kind,
                step=o.step,
                lr=o.lr,
                loss=loss,
                grad_norm=grad_norm,
                recent_mean=mean,
                keys=o.keys,
                recent=self.recent,
            )
            return
        first = not progress.steps_monitored
        progress.recent_loss = loss if first else LOSS_DECAY * mean + (1 - LOSS_DECAY) * loss
        progress.steps_monitored += 1

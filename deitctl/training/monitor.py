"""Detects steps that diverge: a loss or gradient norm that is not finite, or a loss spike."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from deitctl.data.samplers import SampleKey
from deitctl.training.state import Progress

MIN_STEPS = 10  # before spikes are detected: the first losses have no mean to compare with
LOSS_DECAY = 0.95  # of the running mean of the loss, which so covers about twenty steps
HISTORY = 20  # steps that an incident lists, its own the last
NON_FINITE, LOSS_SPIKE = "non_finite", "loss_spike"


@dataclass(frozen=True)
class Observation:
    """Loss and gradient norm of one step, on the device: reading them makes the host wait for it."""

    step: int
    lr: float
    loss: Tensor
    grad_norm: Tensor
    """Norm of all gradients, before clipping."""
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
    recent: list[dict[str, Any]] = field(default_factory=list)

    def update(self, observation: Observation) -> None:
        """Add a step's observation, to be read by the next `find_incident`."""
        self.unread.append(observation)

    def find_incident(self) -> Incident | None:
        """Read the observations since the last call; return the first step that diverged, or None."""
        observations, self.unread = self.unread, []
        progress = self.progress
        for o in observations:
            loss, grad_norm, mean = float(o.loss), float(o.grad_norm), progress.recent_loss
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
                return Incident(
                    kind=kind,
                    step=o.step,
                    lr=o.lr,
                    loss=loss,
                    grad_norm=grad_norm,
                    recent_mean=mean,
                    keys=o.keys,
                    recent=self.recent,
                )
            first = not progress.steps_monitored
            progress.recent_loss = loss if first else LOSS_DECAY * mean + (1 - LOSS_DECAY) * loss
            progress.steps_monitored += 1
        return None

    def raise_if_diverged(self) -> None:
        """Raise `TrainingDiverged` if a step since the last check did."""
        if incident := self.find_incident():
            raise TrainingDiverged(incident)

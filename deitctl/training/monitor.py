"""Noticing that a training goes wrong at the step where it does: a loss that is no number, or that jumps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from deitctl.data.samplers import SampleKey

SETTLED = 10
"""Steps of a run before jumps are looked for."""
MEMORY = 0.95
"""Decay of the recent mean: about twenty steps."""


@dataclass(frozen=True)
class Observation:
    """What one step was like; the tensors are read later, so that an accelerator need not wait."""

    step: int
    rate: float
    loss: Tensor
    norm: Tensor
    """Of the whole gradient, before clipping."""
    keys: list[SampleKey]
    """Of this process's images."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """A step that went wrong, and the steps before it."""

    kind: str
    """`not a number` or `jump`."""
    step: int
    rate: float
    loss: float
    norm: float
    usual: float
    """The recent mean of the loss."""
    keys: list[SampleKey]
    recent: list[dict[str, Any]]
    """Step, loss and gradient norm of the last steps, this one the last."""

    @property
    def sentence(self) -> str:
        """Say what happened."""
        what = {
            "not a number": f"The loss is {self.loss:.4g} and the gradient's norm {self.norm:.4g}",
            "jump": f"The loss jumped from about {self.usual:.3g} to {self.loss:.3g}",
        }
        return f"{what[self.kind]} at step {self.step}, counted from 0 (learning rate {self.rate:.2g})."


@dataclass
class LossMonitor:
    """Looks at every step, as many together as have come since it last looked."""

    num_classes: int
    scaled: bool
    """Whether gradients are scaled (fp16): one that is no number then only lowers the scale."""
    jump: float = 0.0
    """A loss this many times its recent mean, and this many times that of guessing, is a jump, 0: none is. Mixing and hard
    batches move it by tenths, a step that breaks the weights by much more."""
    usual: float = 0.0
    seen: int = 0
    waiting: list[Observation] = field(default_factory=list)
    recent: list[dict[str, Any]] = field(default_factory=list)

    def add(self, observation: Observation) -> None:
        """Take a step's observation."""
        self.waiting.append(observation)

    def look(self) -> Incident | None:
        """Read what has come; return the first step that went wrong, None if all is well."""
        waiting, self.waiting = self.waiting, []
        for o in waiting:
            loss, norm = float(o.loss), float(o.norm)
            self.recent = [*self.recent[-19:], {"step": o.step, "loss": loss, "norm": norm}]
            if kind := self._wrong(loss, norm):
                return Incident(
                    kind=kind,
                    step=o.step,
                    rate=o.rate,
                    loss=loss,
                    norm=norm,
                    usual=self.usual,
                    keys=o.keys,
                    recent=self.recent,
                )
            self.usual = loss if not self.seen else MEMORY * self.usual + (1 - MEMORY) * loss
            self.seen += 1
        return None

    def _wrong(self, loss: float, norm: float) -> str:
        if not math.isfinite(loss) or (not math.isfinite(norm) and not self.scaled):
            return "not a number"
        if (
            self.seen >= SETTLED
            and self.jump
            and loss > self.jump * max(self.usual, math.log(self.num_classes))
        ):
            return "jump"
        return ""

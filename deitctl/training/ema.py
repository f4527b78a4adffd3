"""A moving average of the weights that is right for short runs too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LONGEST_MEMORY = 0.1  # the average never remembers more than this share of the run


def decay_at(step: int, *, decay: float, total_steps: int) -> float:
    """Return the decay after `step` updates.

    With the paper's 0.99996 the average remembers 25,000 steps; a run of 1,000 would end with an average of its own
    initialization. So the memory 1 / (1 - decay) is at most a tenth of the run, and it grows with the first steps as
    (1 + step) / (10 + step), TensorFlow's `num_updates` rule.
    """
    longest = max(1.0, LONGEST_MEMORY * total_steps)
    return min(decay, 1 - 1 / longest, (1 + step) / (10 + step))


class ExponentialMovingAverage:
    """Averages of a model's parameters and floating-point buffers, under the names of its state dict."""

    def __init__(self, model: nn.Module, *, decay: float, total_steps: int) -> None:
        self.decay = decay
        self.total_steps = total_steps
        self.values: dict[str, Tensor] = {
            k: v.detach().clone() for k, v in model.state_dict().items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model's weights after the step numbered `step`, from 0."""
        decay = decay_at(step, decay=self.decay, total_steps=self.total_steps)
        ours, theirs = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                ours.append(self.values[name])
                theirs.append(value)
            else:
                self.values[name].copy_(value)
        torch._foreach_lerp_(ours, theirs, 1 - decay)

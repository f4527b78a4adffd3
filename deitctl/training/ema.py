"""The exponential moving average (EMA) of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MAX_EMA_MEMORY = 0.1  # of the steps of a run


def compute_ema_decay(step: int, *, decay: float, total_steps: int) -> float:
    """Return the EMA's decay after `step` updates, at most `decay`."""
    # The paper's 0.99996 averages over 25,000 steps: a run of 1,000 would end with an average of
    # its initialization. So 1 / (1 - decay) is at most a tenth of the run, and grows with the first
    # steps as in TensorFlow's `num_updates` rule.
    memory = max(1.0, MAX_EMA_MEMORY * total_steps)
    return min(decay, 1 - 1 / memory, (1 + step) / (10 + step))


class ExponentialMovingAverage:
    """EMA of a model's parameters and floating-point buffers, by the names of its state dict."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.values: dict[str, Tensor] = {}
        self.reset(model)

    def reset(self, model: nn.Module) -> None:
        """Start the averages from the model's weights."""
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, *, total_steps: int) -> None:
        """Move towards the model's weights after the step numbered `step`, from 0.

        Args:
            model: with the weights.
            step: of the run.
            total_steps: of the run, or of the schedule of the learning rate that the step is in.
        """
        decay = compute_ema_decay(step, decay=self.decay, total_steps=total_steps)
        averages, weights = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                averages.append(self.values[name])
                weights.append(value)
            else:  # a counter of batches
                self.values[name].copy_(value)
        torch._foreach_lerp_(averages, weights, 1 - decay)

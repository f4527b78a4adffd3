"""AdamW's parameter groups, the learning rate of a step, and the EMA of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from deitctl.config import OptimConfig, Recipe
from deitctl.recipes import RESTART_LR

# As timm's `VisionTransformer.no_weight_decay` has it; the released code's decays `dist_token`.
NO_DECAY_TOKENS = ("cls_token", "dist_token", "pos_embed")
MAX_EMA_MEMORY = 0.1  # of the steps of a run


def build_optimizer(
    model: nn.Module, config: OptimConfig, layers: Mapping[str, int] | None = None
) -> torch.optim.AdamW:
    """Build AdamW for the parameters that are trained; arguments as `build_param_groups`."""
    groups = build_param_groups(model, config, layers)
    # `fused` is one pass over memory. The rate is set before each step.
    return torch.optim.AdamW(groups, lr=config.warmup_lr, fused=True)


def build_param_groups(
    model: nn.Module, config: OptimConfig, layers: Mapping[str, int] | None = None
) -> list[dict[str, object]]:
    """Split the trained parameters by weight decay and by layer.

    Args:
        model: the model.
        config: `weight_decay`, which spares biases, norms, layer scale, tokens and position
            embeddings; `layer_decay`, by which the learning rate falls from layer to layer (BEiT,
            arXiv 2106.08254, appendix).
        layers: layer of each parameter, from 0 at the input; needed if `layer_decay` is not 1.

    Returns:
        Groups with the factor of their learning rate as `lr_scale`.
    """
    # As in BEiT's code the last norm is in the layer of the heads; timm has it with the last block.
    top = max(layers.values()) if layers else 0
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        no_decay = parameter.ndim <= 1 or name.rpartition(".")[2] in NO_DECAY_TOKENS
        distance = top - layers[name] if layers and config.layer_decay != 1 else 0
        groups.setdefault((distance, no_decay), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if no_decay else config.weight_decay,
            "lr_scale": config.layer_decay**distance,
        }
        for (distance, no_decay), parameters in groups.items()
    ]


def compute_peak_lr(config: OptimConfig, batch_size: int) -> float:
    """Return lr * batch_size / lr_base_size, DeiT Table 9's linear scaling; lr itself without a base."""
    return config.lr * batch_size / config.lr_base_size if config.lr_base_size else config.lr


def compute_lr(
    config: OptimConfig, *, step: int, steps_per_epoch: int, epochs: int, batch_size: int
) -> float:
    """Return a step's learning rate: linear from `warmup_lr`, then a cosine to `min_lr`."""
    peak = compute_peak_lr(config, batch_size)
    # DeiT's rate moves once an epoch; this one with every step, which short runs need.
    epoch = step / max(1, steps_per_epoch)
    if epoch < config.warmup_epochs:
        return config.warmup_lr + (peak - config.warmup_lr) * epoch / config.warmup_epochs
    # The cosine counts from step 0, as timm's does: the warmup cuts off its beginning.
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))
    return config.min_lr + (peak - config.min_lr) * cosine


def compute_lr_with_restarts(recipe: Recipe, *, step: int, steps_per_epoch: int) -> float:
    """Return a step's learning rate where `recipe.restart_epochs` begin the schedule again (SGDR,
    arXiv 1608.03983): its warm-up and its cosine are stretched to the epochs that it has."""
    start, epochs = recipe.schedule_of(step // max(1, steps_per_epoch))
    _, first_epochs = recipe.schedule_of(0)
    optim = recipe.optim
    if start:
        warmup_epochs = optim.warmup_epochs * epochs / first_epochs
        optim = replace(optim, lr=RESTART_LR * optim.lr, warmup_epochs=warmup_epochs)
    return compute_lr(
        optim,
        step=step - start * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        epochs=epochs,
        batch_size=recipe.batch_size,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


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

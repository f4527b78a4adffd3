"""AdamW without decay where it does harm, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from deitctl.config import OptimConfig

NO_DECAY_TOKENS = ("cls_token", "dist_token", "pos_embed")  # deit/models.py no_weight_decay()


def parameter_groups(
    model: nn.Module, config: OptimConfig, layers: Mapping[str, int] | None = None
) -> list[dict[str, object]]:
    """Split trainable parameters by weight decay and by layer.

    No weight decay for biases, norms, layer scale (one dimension), tokens and position embeddings. A group's rate is
    the step's times `lr_scale`, which is `layer_decay` to the power of its layers' distance from the top (BEiT,
    arXiv 2106.08254, appendix). As in BEiT's code the last norm goes with the heads; timm puts it with the last block.

    Args:
        model: whose parameters.
        config: weight decay and layer decay.
        layers: each parameter's layer, from 0 at the input; needed where `layer_decay` is not 1.
    """
    top = max(layers.values()) if layers else 0
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kept_free = parameter.ndim <= 1 or name.rpartition(".")[2] in NO_DECAY_TOKENS
        distance = top - layers[name] if layers and config.layer_decay != 1 else 0
        groups.setdefault((distance, kept_free), []).append(parameter)
    return [
        {
            "params": members,
            "weight_decay": 0.0 if kept_free else config.weight_decay,
            "lr_scale": config.layer_decay**distance,
        }
        for (distance, kept_free), members in groups.items()
    ]


def build_optimizer(
    model: nn.Module, config: OptimConfig, layers: Mapping[str, int] | None = None
) -> torch.optim.AdamW:
    """Build AdamW, fused, which is one pass over memory; its rate is set before each step by `set_learning_rate`."""
    return torch.optim.AdamW(
        parameter_groups(model, config, layers), lr=config.warmup_lr, fused=True
    )


def peak_learning_rate(config: OptimConfig, batch_size: int) -> float:
    """lr * batch_size / lr_base_size (DeiT Table 9's linear scaling)."""
    return config.lr * batch_size / config.lr_base_size


def learning_rate(
    config: OptimConfig, *, step: int, steps_per_epoch: int, epochs: int, batch_size: int
) -> float:
    """Return the rate of a step: linear from `warmup_lr`, then a cosine to `min_lr` at the end of the last epoch.

    The cosine counts from step 0, as timm's does, so that the warm-up cuts its beginning off. Deviation: it moves with
    every step, not once an epoch, which short runs need.
    """
    peak = peak_learning_rate(config, batch_size)
    epoch = step / max(1, steps_per_epoch)
    if epoch < config.warmup_epochs:
        return config.warmup_lr + (peak - config.warmup_lr) * epoch / config.warmup_epochs
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))
    return config.min_lr + (peak - config.min_lr) * cosine


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group, lower layers' by their `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]

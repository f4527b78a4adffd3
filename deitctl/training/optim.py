"""Parameter groups of the optimizer, by weight decay and by layer, and the rate of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from deitctl.config import OptimConfig
from deitctl.training.optimizer_choice import create_optimizer

# As timm's `VisionTransformer.no_weight_decay` has it; the released code's decays `dist_token`. And what an
# orthogonal projection is made of, which is as orthogonal however long it is.
NO_DECAY_TOKENS = ("cls_token", "dist_token", "pos_embed", "reflections")


def build_optimizer(
    model: nn.Module,
    config: OptimConfig,
    layers: Mapping[str, int] | None = None,
    *,
    peak_lr: float | None = None,
) -> torch.optim.Optimizer:
    """Build the optimizer of the parameters that are trained.

    Args:
        model: as `build_param_groups`, and so are `config` and `layers`.
        peak_lr: as `create_optimizer`; None: `config.lr`. The rate is set before each step.
    """
    groups = build_param_groups(model, config, layers)
    return create_optimizer(groups, config, config.lr if peak_lr is None else peak_lr)


def add_trained(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    config: OptimConfig,
    layers: Mapping[str, int] | None = None,
) -> None:
    """Add the parameters that are trained from now on, in groups of their own: a count of steps that
    a group has, as LAMB's, then begins with them. Arguments as `build_param_groups`."""
    for group in build_param_groups(model, config, layers, without=list_parameters(optimizer)):
        optimizer.add_param_group(group)


def list_parameters(optimizer: torch.optim.Optimizer) -> set[nn.Parameter]:
    """Return the parameters of an optimizer."""
    return {parameter for group in optimizer.param_groups for parameter in group["params"]}


def build_param_groups(
    model: nn.Module,
    config: OptimConfig,
    layers: Mapping[str, int] | None = None,
    *,
    without: Collection[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Split the trained parameters by weight decay and by layer.

    Args:
        model: the model.
        config: `weight_decay`, which spares biases, norms, layer scale, tokens and position
            embeddings; `layer_decay`, by which the learning rate falls from layer to layer (BEiT,
            arXiv 2106.08254, appendix).
        layers: layer of each parameter, from 0 at the input; needed if `layer_decay` is not 1.
        without: parameters that are left out.

    Returns:
        Groups with the factor of their learning rate as `lr_scale`.
    """
    # As in BEiT's code the last norm is in the layer of the heads; timm has it with the last block.
    top = max(layers.values()) if layers else 0
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or parameter in without:
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


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]

"""What timm must be told about a model to load it again: its layers' names, its input size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from deitctl.config import Recipe
from deitctl.errors import ConfigError
from deitctl.models import timm_models
from deitctl.models.model_config import ModelConfig
from deitctl.models.vit import VisionTransformer


def describe_layers(model: nn.Module) -> dict[str, Any]:
    """Return the names of the first convolution and of the classifiers, and whether the size is fixed, for `to_timm_config`."""
    if isinstance(model, VisionTransformer):
        heads = ("head", "head_dist") if model.head_dist is not None else ("head",)
        return {"classifier": heads, "first_conv": "patch_embed.proj", "fixed_input_size": True}
    return timm_models.describe_layers(model)


def freeze_backbone(model: nn.Module) -> None:
    """Let nothing but the classifiers learn."""
    heads = tuple(f"{name}." for name in describe_layers(model)["classifier"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(heads))


def get_layer_ids(model: nn.Module) -> dict[str, int]:
    """Return each parameter's layer, from 0 at the input: embeddings, then the blocks, then the norm and the heads."""
    if not isinstance(model, VisionTransformer):
        return timm_models.get_layer_ids(model)
    top = model.arch.depth + 1
    embeddings = ("cls_token", "dist_token", "pos_embed", "patch_embed")
    ids = {}
    for name, _ in model.named_parameters():
        first, _, rest = name.partition(".")
        ids[name] = (
            0
            if first in embeddings
            else 1 + int(rest.partition(".")[0])
            if first == "blocks"
            else top
        )
    return ids


def pin_img_size(model: nn.Module, model_config: ModelConfig) -> ModelConfig:
    """Return the model config with the `img_size` that timm needs to build the same input size."""
    if not isinstance(model, VisionTransformer):
        return model_config
    return replace(
        model_config,
        model_args={**model_config.model_args, "img_size": [model.img_size, model.img_size]},
    )


FEW_PATCHES = 4
"""A side."""
CONVNET_STEP = 32
"""Pixels of the side of a convnet's input that become one of its last map."""


def compute_early_size(model: nn.Module, model_config: ModelConfig, recipe: Recipe) -> int:
    """Return the side of the early epochs' input in pixels: whole patches, at most the model's own side.

    Raises:
        ConfigError: the model takes no other size than its own.
    """
    size = model_config.preprocessing.img_size
    if not isinstance(model, VisionTransformer) and describe_layers(model)["fixed_input_size"]:
        raise ConfigError(
            "This model takes images of one size only, so no early epochs of smaller ones.",
            "Leave out the recipe's progressive_resize: --set progressive_resize.scale=1",
        )
    step = model.arch.patch_size if isinstance(model, VisionTransformer) else CONVNET_STEP
    return min(size, max(step, round(recipe.progressive_resize.scale * size / step) * step))


def has_few_patches(model: nn.Module, size: int) -> bool:
    """Say whether images of a side of `size` pixels are so few patches of a DeiT that learning from them first may cost accuracy.

    At 32 pixels, 2 x 2 patches, the early epochs of `small-fast` cost ten points that the late ones did not win back
    (docs/recipes.md).
    """
    return isinstance(model, VisionTransformer) and size < FEW_PATCHES * model.arch.patch_size


def compute_max_activation_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes of the largest activation of one image in a DeiT that computes in `dtype`; 0 if unknown.

    It is in the middle of a perceptron, or with many tokens the shares that attention.py keeps; the fused one has none.
    """
    if not isinstance(model, VisionTransformer):
        return 0
    tokens = model.num_prefix_tokens + model.num_patches
    shares = tokens * tokens * model.arch.num_heads if dtype is torch.bfloat16 else 0
    return max(4 * tokens * model.arch.embed_dim, shares) * dtype.itemsize

"""Structure of a classifier, DeiT or timm's: layer names and ids, input and activation sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from deitctl.config import Recipe
from deitctl.errors import ConfigError
from deitctl.models import timm_models
from deitctl.models.model_config import ModelConfig
from deitctl.models.own_shape import list_own_args
from deitctl.models.vit import VisionTransformer
from deitctl.sizes import ImageSize, height_width, make_size, short_side

MIN_GRID = 4
"""Patches a side below which early epochs cost accuracy: at 2 x 2 ten points, for good."""
CONVNET_STRIDE = 32
"""Pixels of a convnet's input a side that become one pixel of its last feature map."""


def describe_layers(model: nn.Module) -> dict[str, Any]:
    """Return `classifier`, `first_conv` and `fixed_input_size` for `to_timm_config`."""
    if isinstance(model, VisionTransformer):
        # timm replaces the layers named here for another class count; a head that is not named is a
        # size mismatch.
        heads = ("head", "head_dist") if model.head_dist is not None else ("head",)
        return {"classifier": heads, "first_conv": "patch_embed.proj", "fixed_input_size": True}
    return timm_models.describe_layers(model)


def freeze_backbone(model: nn.Module) -> None:
    """Make the classifier heads the only trainable parameters."""
    heads = tuple(f"{name}." for name in describe_layers(model)["classifier"])
    for name, parameter in model.named_parameters():
        # With the dot: `head.` must not match `head_dist.` or a timm model's `head_drop`.
        parameter.requires_grad_(name.startswith(heads))


def enable_grad_checkpointing(model: nn.Module) -> None:
    """Let the blocks of a model compute their activations again in the backward pass, instead of
    storing them; raise `ConfigError` if timm's model cannot."""
    refusal = ConfigError(
        "timm has no activation checkpointing for this model.",
        "Leave --grad-checkpointing out; a smaller --micro-batch-size needs less memory too.",
    )
    switch: Any = getattr(model, "set_grad_checkpointing", None)
    if switch is None:
        raise refusal
    try:
        switch(True)
    except (AssertionError, NotImplementedError) as error:  # by which timm's models say so
        raise refusal from error


def get_layer_ids(model: nn.Module) -> dict[str, int]:
    """Return each parameter's layer for lr decay: embeddings 0, blocks, then norm and heads."""
    if not isinstance(model, VisionTransformer):
        return timm_models.get_layer_ids(model)
    layer_ids = {}
    for name, _ in model.named_parameters():
        part, _, rest = name.partition(".")
        # As timm's `group_matcher` of ViTs.
        if part in ("cls_token", "dist_token", "pos_embed", "patch_embed"):
            layer_ids[name] = 0
        elif part == "blocks":
            layer_ids[name] = 1 + int(rest.partition(".")[0])
        else:
            layer_ids[name] = 1 + model.arch.depth
    return layer_ids


def pin_img_size(model: nn.Module, model_config: ModelConfig) -> ModelConfig:
    """Return the config with the arguments that timm needs to build a DeiT: its input size and shape."""
    if not isinstance(model, VisionTransformer):
        return model_config
    # Without it timm builds the architecture's native size and resamples the position embeddings.
    own_args = {"img_size": list(height_width(model.img_size)), **list_own_args(model.arch)}
    return replace(model_config, model_args={**model_config.model_args, **own_args})


def compute_early_size(model: nn.Module, model_config: ModelConfig, recipe: Recipe) -> ImageSize:
    """Return the input size in pixels of the early epochs, of multiples of the patch size.

    Raises:
        ConfigError: the model takes one input size only.
    """
    if not isinstance(model, VisionTransformer) and describe_layers(model)["fixed_input_size"]:
        raise ConfigError(
            "This model takes images of one size only, so progressive resizing is not possible.",
            "Switch it off: --set progressive_resize.scale=1",
        )
    step = model.arch.patch_size if isinstance(model, VisionTransformer) else CONVNET_STRIDE
    scale = recipe.progressive_resize.scale
    return make_size(
        *(
            min(side, max(step, round(scale * side / step) * step))
            for side in model_config.preprocessing.hw
        )
    )


def has_few_patches(model: nn.Module, img_size: ImageSize) -> bool:
    """Return whether images of `img_size` pixels have fewer than `MIN_GRID` patches a side."""
    if not isinstance(model, VisionTransformer):
        return False
    return short_side(img_size) < MIN_GRID * model.arch.patch_size


def compute_max_activation_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes of one image's largest activation in a DeiT; 0 for other models.

    It is the MLP's hidden layer or, with many tokens in bf16, the attention weights that
    attention.py stores.
    """
    if not isinstance(model, VisionTransformer):
        return 0
    num_tokens = model.num_prefix_tokens + model.num_patches
    attn = num_tokens**2 * model.arch.num_heads if dtype is torch.bfloat16 else 0
    return max(num_tokens * model.arch.hidden_dim, attn) * dtype.itemsize

"""What timm must be told about a model to load it again: its layers' names, its input size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from deitctl.card import ModelCard
from deitctl.models import timm_models
from deitctl.models.vit import VisionTransformer


def layer_names(model: nn.Module) -> dict[str, Any]:
    """Return the names of the first convolution and of the classifiers, and whether the size is fixed, for `to_timm_config`."""
    if isinstance(model, VisionTransformer):
        heads = ("head", "head_dist") if model.head_dist is not None else ("head",)
        return {"classifier": heads, "first_conv": "patch_embed.proj", "fixed_input_size": True}
    return timm_models.layers(model)


def shipping_card(model: nn.Module, card: ModelCard) -> ModelCard:
    """Return the card with the model arguments that timm needs to build the same input size."""
    if not isinstance(model, VisionTransformer):
        return card
    return replace(card, model_args={**card.model_args, "img_size": [model.img_size, model.img_size]})

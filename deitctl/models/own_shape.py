"""Shapes of a user's own: a DeiT's width, depth, heads and patches, by timm's names. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deitctl.errors import ConfigError, ModelError, did_you_mean
from deitctl.models import catalog
from deitctl.models.catalog import SHAPE, Architecture
from deitctl.models.model_config import ModelConfig

MAX_NUMBER = 16_384
"""Largest number in a shape; timm's largest model has a width of 4,096."""
SETTINGS = {
    "img_size": "--img-size",
    "in_chans": "--in-chans",
    "num_classes": "the data",
    "drop_path_rate": "--set drop_path_rate",
    "pretrained": "--pretrained",
}
"""Arguments of `timm.create_model` that are decided elsewhere, and by what."""


def require_model_args(model_args: Mapping[str, Any], arch: Architecture | None) -> None:
    """Refuse `model.` settings that are decided elsewhere, or that a DeiT does not have.

    Args:
        model_args: by timm's names.
        arch: of the DeiT; None: a timm model, whose constructor decides.

    Raises:
        ConfigError: one that is refused, or a shape that no network has.
    """
    for name in model_args:
        if name in SETTINGS:
            raise ConfigError(
                f"model.{name} is not a shape: {SETTINGS[name]} decides it.", "Leave it out."
            )
        if arch is not None and name not in SHAPE:
            allowed = [key for key in SHAPE if key not in SETTINGS]
            raise ConfigError(
                f"{arch.alias} has no model.{name}.",
                did_you_mean(name, allowed)
                or f"A DeiT takes {', '.join(allowed)}; timm's own models, vit_tiny_patch16_224 for "
                "example, take what their constructors do.",
            )
    if arch is not None:
        reshape(arch, model_args)


def reshape(arch: Architecture, model_args: Mapping[str, Any]) -> Architecture:
    """Return an architecture with the shape that `model_args` name; arguments of other kinds are left.

    Raises:
        ConfigError: a shape that no network has.
    """
    shape = {name: value for name, value in model_args.items() if name in SHAPE}
    for name, value in shape.items():
        kind = SHAPE[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = isinstance(value, bool) if kind is bool else is_number
        if not fits or (kind is int and value != int(value)):
            raise ConfigError(
                f"model.{name} = {str(value)[:80]} does not fit: expected "
                f"{'true or false' if kind is bool else 'a number'}."
            )
        if kind is not bool and not 0 < value <= MAX_NUMBER:
            raise ConfigError(
                f"model.{name} = {value} is out of range: it must be more than 0 and at most "
                f"{MAX_NUMBER:,}."
            )
    own = replace(arch, **{name: SHAPE[name](value) for name, value in shape.items()})
    if own.embed_dim % own.num_heads:
        fitting = [n for n in range(1, own.embed_dim + 1) if own.embed_dim % n == 0]
        nearest = min(fitting, key=lambda n: (abs(n - own.num_heads), n))
        raise ConfigError(
            f"A width of {own.embed_dim} does not divide into {own.num_heads} heads.",
            f"Use --set model.num_heads={nearest}"
            + (f": {own.embed_dim // nearest} channels each." if nearest > 1 else "."),
        )
    if own.hidden_dim < 1:
        raise ConfigError(f"model.mlp_ratio = {own.mlp_ratio} leaves no hidden channel.")
    return own


def list_own_args(arch: Architecture) -> dict[str, Any]:
    """Return the arguments in which an architecture differs from the one that timm has by its name."""
    named = catalog.find(arch.full_name)
    if named is None:
        return {}
    return {
        name: getattr(arch, name) for name in SHAPE if getattr(arch, name) != getattr(named, name)
    }


def has_own_shape(arch: Architecture) -> bool:
    """Return whether an architecture is not one of the catalog's, its input channels aside."""
    return bool(list_own_args(arch).keys() - {"in_chans"})


def read_architecture(model_config: ModelConfig) -> Architecture | None:
    """Return the DeiT that a model's config names, of the shape that it states; None for another model.

    Raises:
        ModelError: a shape that no network has.
    """
    arch = catalog.find(model_config.architecture)
    if arch is None:
        return None
    try:
        own = reshape(arch, model_config.model_args)
        return replace(own, img_size=model_config.preprocessing.img_size)
    except ConfigError as error:
        raise ModelError(f"{model_config.architecture}: {error.message}") from error

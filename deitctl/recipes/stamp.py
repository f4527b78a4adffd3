"""What of a recipe decides a result that is stored, so that a later version finds it again."""

from __future__ import annotations

from typing import Any

from deitctl.config import AugmentConfig, Recipe
from deitctl.settings import flatten, list_settings, to_dict

VIEW_SETTINGS = ("crop_scale", "crop_ratio", "hflip", "affine", "rand_augment", "color_jitter")
"""Settings of `AugmentConfig` that a view depends on. The rest (mixing, erasing, the student's affine map) happens
to batches, after the teacher has labeled the views."""
LATER_VIEW_SETTINGS = ("crop_mode", "three_augment")
"""Those that came later: they are a part of a stamp where they are used, so that older ones stay valid."""
LATER_SETTINGS = (
    *(f"augment.{name}" for name in LATER_VIEW_SETTINGS),
    "dpr_constant",
    "pos_embed",
)
"""The same of all of a recipe, by dotted name."""


def stamp_views(augment: AugmentConfig) -> dict[str, Any]:
    """Return the settings that a view depends on."""
    names = (*VIEW_SETTINGS, *(n for n in LATER_VIEW_SETTINGS if is_changed(augment, n)))
    return {name: getattr(augment, name) for name in names}


def is_changed(config: Any, name: str) -> bool:
    """Return whether a setting has another value than its default."""
    return bool(getattr(config, name) != type(config).__dataclass_fields__[name].default)


def stamp_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as nested values, without the later settings that have their default."""
    values = to_dict(recipe)
    defaults = {s.name: s.default for s in list_settings(Recipe)}
    flat = flatten(values)
    for name in LATER_SETTINGS:
        if flat[name] == defaults[name]:
            group, _, setting = name.rpartition(".")
            del (values[group] if group else values)[setting]
    return values

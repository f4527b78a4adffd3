"""Every setting is declared once: with a range that its default lies in, a help text, and at most one option."""

from __future__ import annotations

from dataclasses import MISSING, replace

import pytest

from deitctl.config import Option, TrainConfig
from deitctl.errors import ConfigError
from deitctl.recipes import RECIPES
from deitctl.settings import Setting, check_ranges, list_settings, override

CONFIG = TrainConfig(model="deit_tiny", data="digits", recipe=RECIPES["paper"])
SETTINGS = [
    s for s in list_settings() if s.name not in ("data", "recipe.name", "distill.more_teachers")
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_every_setting_has_help_and_a_default_in_its_range(setting: Setting) -> None:
    assert setting.option.help.endswith(".")
    default = setting.default
    for value in default if isinstance(default, tuple) else (default,):
        if isinstance(value, int | float):
            assert setting.option.allows(value)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda r: r.name)
def test_every_recipe_is_in_range(recipe: object) -> None:
    check_ranges(replace(CONFIG, recipe=recipe))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "value", "limits"),
    [
        ("recipe.epochs", 0, "at least 1 and at most 1,000,000"),
        ("recipe.smoothing", 1, "at least 0 and less than 1"),
        ("recipe.optim.lr", 0, "more than 0"),
        ("recipe.augment.crop_scale", (0.5, 1.5), "more than 0 and at most 1"),
        ("recipe.augment.crop_scale", (0.9, 0.5), "the smaller number comes first"),
        ("recipe.progressive_resize.scale", 1.5, "more than 0 and at most 1"),
        ("workers", -2, "at least -1"),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_range(
    setting: str, value: object, limits: str
) -> None:
    with pytest.raises(ConfigError, match=f"is out of range.*{limits}"):
        check_ranges(override(CONFIG, {setting: value}))


def test_limits_are_inclusive_or_exclusive_as_they_are_named() -> None:
    option = Option("x", ge=0, lt=1)
    assert [option.allows(v) for v in (-0.1, 0, 0.9, 1)] == [False, True, True, False]
    option = Option("x", gt=0, le=1)
    assert [option.allows(v) for v in (0, 0.1, 1, 1.1)] == [False, True, True, False]
    assert Option("x").allows(float("inf"))


def test_a_setting_names_its_flag_and_its_keyword() -> None:
    named = {s.name: (s.flag, s.keyword) for s in list_settings() if s.option.panel}
    assert named["recipe.optim.lr"] == ("--lr", "lr")
    assert named["micro_batch_size"] == ("--micro-batch-size", "micro_batch_size")
    assert named["compile"] == ("--compile", "compile")
    assert named["distill.dist_token"] == ("--no-dist-token", "dist_token")
    assert named["output_dir"] == ("--output", "output")
    assert named["image_folder"] == ("--images", "image_folder")


def test_settings_of_a_recipe_have_no_default_of_their_own_where_recipes_differ() -> None:
    undecided = {s.name for s in list_settings() if s.default is MISSING}
    assert {"recipe.epochs", "recipe.optim.lr", "distill.mode"} <= undecided

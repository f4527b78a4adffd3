"""The recipes by name, and recipe files."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

from deitctl.config import Recipe
from deitctl.errors import ConfigError, did_you_mean
from deitctl.recipes import big_vision, deit3, own, paper
from deitctl.recipes.table import RecipeTable, SizeSettings
from deitctl.settings import flatten, from_dict, override, read_toml

TABLES = {
    table.name: table
    for table in (
        paper.PAPER,
        paper.make_fast(paper.PAPER),
        paper.PAPER_384,
        deit3.DEIT3,
        deit3.DEIT3_FINETUNE,
        deit3.DEIT3_384,
        big_vision.PLAIN_90,
        big_vision.PATIENT,
        own.FINETUNE,
        paper.make_fast(own.FINETUNE),
        own.PROBE,
        own.SMALL,
        paper.make_fast(own.SMALL),
        own.DIGITS,
        own.DIGITS_CONVNET,
    )
}
RECIPES = {name: table.build() for name, table in TABLES.items()}
PAPER, PAPER_384 = RECIPES["paper"], RECIPES["paper-384"]
FINETUNE, PROBE, SMALL = RECIPES["finetune"], RECIPES["probe"], RECIPES["small"]
DIGITS, DIGITS_CONVNET = RECIPES["digits"], RECIPES["digits-convnet"]


def get_finetune_recipe(part: str, *, built_in: bool) -> Recipe:
    """Return the recipe of a teacher's training: its `head`, the `full` network, or from `scratch`.

    Digits keep their own views.
    """
    if part == "scratch":
        return DIGITS_CONVNET if built_in else SMALL
    recipe = PROBE if part == "head" else FINETUNE
    return replace(recipe, augment=DIGITS_CONVNET.augment) if built_in else recipe


def get_recipe(name: str) -> Recipe:
    """Return a recipe by name, or from a TOML file of settings on top of the recipe that its `base` names.

    Raises:
        ConfigError: no such recipe or file, or a setting in the file that does not exist or fit.
    """
    if not name.endswith(".toml"):
        return RECIPES[get_table(name).name]
    values = read_toml(Path(name))
    base = values.pop("base", None)
    if base is None:
        return from_dict(Recipe, {"name": Path(name).stem, **values}, name)
    if base not in RECIPES:
        raise ConfigError(
            f"{name}: there is no base {base!r}.", f"There are: {', '.join(RECIPES)}."
        )
    return override(RECIPES[base], {"name": Path(name).stem, **flatten(values)})


def get_table(name: str) -> RecipeTable:
    """Return the table of a recipe; raise `ConfigError` if there is none."""
    if name not in TABLES:
        hint = did_you_mean(name, TABLES) or f"There are: {', '.join(TABLES)}."
        raise ConfigError(f"There is no recipe {name!r}.", hint)
    return TABLES[name]


def read_table(name: str) -> RecipeTable:
    """Return the table of a recipe, or one of a recipe file, whose settings have the file as their source.

    Raises:
        ConfigError: no such recipe or file, or a setting in the file that does not exist or fit.
    """
    if not is_file(name):
        return get_table(name)
    recipe, base = get_recipe(name), find_table(name)
    chosen = [key for key in read_file_settings(name) if key not in ("base", "name")]
    settings = {key: (reduce(getattr, key.split("."), recipe), name) for key in chosen}
    if base is None:
        return RecipeTable(name=recipe.name, purpose="your own", paper=name, settings=settings)
    return replace(
        base,
        name=recipe.name,
        purpose=f"your own, on top of {base.name}",
        paper=f"{name}; {base.paper}",
        settings={**base.settings, **settings},
        sizes=tuple(_leave_out(size, settings) for size in base.sizes),
        step_flops=0 if "img_size" in settings else base.step_flops,
        published=(),
    )


def _leave_out(size: SizeSettings, names: Container[str]) -> SizeSettings:
    others = {name: entry for name, entry in size.settings.items() if name not in names}
    return replace(size, settings=others)


def find_table(name: str) -> RecipeTable | None:
    """Return the table of a recipe, or of the one that a recipe file builds on; None for a file without a base."""
    return TABLES.get(str(read_file_settings(name).get("base", "")) if is_file(name) else name)


def is_file(name: str) -> bool:
    """Return whether a recipe's name is that of a file."""
    return name.endswith(".toml")


def read_file_settings(name: str) -> dict[str, Any]:
    """Return the settings in a recipe file, by dotted name from the recipe on; none for a recipe's name."""
    return {} if name in RECIPES else flatten(read_toml(Path(name)))


def fit_to_size(recipe: Recipe, table: RecipeTable, width: int, fixed: Container[str]) -> Recipe:
    """Return a recipe with the settings that its table has for models of a width.

    Args:
        recipe: of the table, or of a file on top of it.
        table: the recipe's.
        width: of the model's tokens.
        fixed: names of settings that a file has chosen, which stay.
    """
    size = table.find_size(width)
    if size is None:
        return recipe
    chosen = {name: value for name, (value, _) in size.settings.items() if name not in fixed}
    return override(recipe, chosen)

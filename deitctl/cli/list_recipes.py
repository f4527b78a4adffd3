"""deitctl recipes"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Annotated, Any

import typer

import deitctl
from deitctl.cli import completion
from deitctl.cli import options as o
from deitctl.cli.console import choose_format, print_json, print_line, print_next, print_table
from deitctl.records import to_object
from deitctl.settings import spell_value
from deitctl.sizes import format_size

if TYPE_CHECKING:
    from deitctl.profiling.recipe_info import (
        RecipeCost,
        RecipeDetails,
        RecipeList,
        RecipeSetting,
        RecipeSummary,
    )

DISPENSABLE = ("pixels", "of paper's", "FLOPs", "epochs")
"""Columns that are left out, one after another, where the terminal is too narrow for all."""
MIN_MODEL = 10
"""Letters of a model's name that are left where it is narrower still."""
UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"))
COUNTED = (
    "FLOPs of the training: a multiplication and an addition are two, forward and backward pass, without validation "
    "and teacher; of ImageNet-1k's images, of 1,000 of your own, or of the digits."
)


def recipes(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]",
            help="A recipe, or a recipe file, to show in full. Default: list all.",
            show_default=False,
            autocompletion=completion.complete_recipe,
        ),
    ] = "",
    model: Annotated[
        str,
        o.option(
            "--model",
            help="A DeiT or timm model, for which the cost and the settings by size are shown.",
            default="the recipe's own",
            complete=completion.complete_model,
        ),
    ] = "",
    teacher: Annotated[
        str,
        o.option(
            "--teacher",
            help="With NAME: a model whose forward passes as a teacher are counted too.",
            default="",
            complete=completion.complete_teacher,
        ),
    ] = "",
    output_format: o.FormatOpt = None,
    quiet: o.QuietOpt = False,
) -> None:
    """List the recipes, or show one: every setting with its source, published results, and cost.

    Example: deitctl recipes deit3
    """
    shape = choose_format(output_format, o.FORMATS)
    if name:
        details = deitctl.describe_recipe(name, model=model, teacher=teacher)
        print_json(to_object(details)) if shape == "json" else _print_details(details)
        with_teacher = any(setting.name == "mode" for setting in details.distill)
        command = ["distill", "DATA", "--teacher", "NAME"] if with_teacher else ["train", "DATA"]
        print_next([*command, "--recipe", name, "--dry-run"], shape=shape, quiet=quiet)
        return
    listing = deitctl.list_recipes(model=model)
    print_json(to_object(listing)) if shape == "json" else _print_list(listing)
    print_next(["recipes", "deit3"], shape=shape, quiet=quiet)


def _print_list(listing: RecipeList) -> None:
    rows = [
        {
            "name": recipe.name,
            "for": recipe.purpose,
            "model": recipe.model,
            "epochs": f"{recipe.epochs:,}",
            "pixels": format_size(recipe.img_size),
            "top-1, %": _name_result(recipe),
            "FLOPs": _spell_flops(recipe.cost.train_flops),
            "of paper's": _spell_relative(recipe.cost),
        }
        for recipe in listing.recipes
    ]
    columns = list(rows[0])
    available = shutil.get_terminal_size().columns

    def measure(column: str) -> int:
        return max(len(row[column]) for row in [{column: column}, *rows])

    for name in DISPENSABLE:
        if sum(measure(column) + 3 for column in columns) + 1 > available:
            columns.remove(name)
    excess = sum(measure(column) + 3 for column in columns) + 1 - available
    if excess > 0:
        length = max(MIN_MODEL, measure("model") - excess)
        for row in rows:
            model = row["model"]
            row["model"] = model if len(model) <= length else f"{model[: length - 1]}…"
    cells = [[row[column] for column in columns] for row in rows]
    print_table("recipes", columns, cells, columns.index("model") + 1)
    lines = ["Top-1: that model's, as published (on ImageNet-1k; of digits ours)."]
    if "of paper's" in columns:
        lines.append("Of paper's: the FLOPs as a factor of those of `paper` with the same model.")
    if "FLOPs" in columns:
        lines.append(COUNTED)
    else:
        lines.append("A wider terminal, or --format json, has epochs and FLOPs too.")
    print_line(" ".join(lines))


def _name_result(recipe: RecipeSummary) -> str:
    """Return the result that is published of the model with the recipe; empty without one."""
    return next((f"{r.top1:.1f}" for r in recipe.published if r.model == recipe.model), "")


def _print_details(recipe: RecipeDetails) -> None:
    print_line(f"{recipe.name}: {recipe.purpose}")
    print_line(f"Source: {recipe.paper}")
    own = [setting for setting in recipe.settings if not setting.is_default]
    rest = [setting for setting in recipe.settings if setting.is_default]
    _print_settings(f"settings for {recipe.model}", own)
    if recipe.model_args:
        _print_settings("shape of the model (--set model.NAME=VALUE)", recipe.model_args)
    if recipe.distill:
        _print_settings("with a teacher (--set distill.NAME=VALUE)", recipe.distill)
    if recipe.sizes:
        rows = [
            (
                f"{size.size}, to width {size.max_width}",
                ", ".join(f"{s.name} {_spell(s)}" for s in size.settings),
                _name_sources(size.settings),
            )
            for size in recipe.sizes
        ]
        print_table("by the size of the model", ("size", "settings", "source"), rows, 3)
    _print_settings("defaults", rest)
    if recipe.published:
        results = [(r.model, r.data, f"{r.top1:.1f}", r.source) for r in recipe.published]
        print_table("published", ("model", "data", "top-1, %", "source"), results, 4)
    _print_cost(recipe)


def _name_sources(settings: list[RecipeSetting]) -> str:
    """Return the source of all settings, or of each."""
    names: dict[str, list[str]] = {}
    for setting in settings:
        names.setdefault(setting.source, []).append(setting.name)
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{', '.join(of)}: {source}" for source, of in names.items())


def _print_settings(title: str, settings: list[RecipeSetting]) -> None:
    rows = [(s.name, _spell(s), s.source) for s in settings]
    print_table(title, ("setting", "value", "source"), rows, 3)


def _spell(setting: RecipeSetting) -> str:
    value: Any = setting.value
    if isinstance(value, float):
        value = f"{value:g}"
    return spell_value(f"recipe.{setting.name}", value)


def _print_cost(recipe: RecipeDetails) -> None:
    cost = recipe.cost
    text = (
        f"Cost: {_spell_flops(cost.train_flops)}FLOPs for {cost.model}, {recipe.epochs:,} epochs of "
        f"{cost.num_images:,} images, {_spell_flops(cost.image_flops)}FLOPs an image"
    )
    if cost.relative_to_paper is not None:
        text += f"; {_spell_relative(cost)} times that of the recipe paper with this model"
    print_line(f"{text}.")
    if cost.teacher_flops is not None:
        print_line(f"Teacher {cost.teacher}: {_spell_flops(cost.teacher_flops)}FLOPs more.")
    print_line(COUNTED)


def _spell_flops(flops: int) -> str:
    """Return a number with its unit, `10.3 E`."""
    factor, unit = next((u for u in UNITS if flops >= u[0]), UNITS[-1])
    return f"{flops / factor:.3g} {unit}"


def _spell_relative(cost: RecipeCost) -> str:
    return "" if cost.relative_to_paper is None else f"{cost.relative_to_paper:.2f}"

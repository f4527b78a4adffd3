"""Recipes with the source of each setting, what they reached, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from deitctl.config import Recipe
from deitctl.models import catalog
from deitctl.models.flops import Flops, compute_deit_flops
from deitctl.recipes import TABLES, get_table
from deitctl.recipes.defaults import list_sourced
from deitctl.recipes.lookup import read_table
from deitctl.recipes.table import IMAGENET_IMAGES, PublishedResult, RecipeTable, Settings
from deitctl.sizes import ImageSize, height_width, make_size


@dataclass(frozen=True, kw_only=True)
class RecipeCost:
    """Floating-point operations of a training: a multiplication and an addition are two.

    Only matrix products and convolutions count; the backward pass has two for each of the forward pass. Validation is
    not counted, nor is a teacher, but for `teacher_flops`.
    """

    model: str
    num_images: int
    """Training images that it is computed for: ImageNet-1k's, the digits', or 1,000 of one's own."""
    image_flops: int
    """Operations of an image, forward and backward, at the full input size."""
    train_flops: int
    """Operations of the whole training."""
    relative_to_paper: float | None
    """Over those of the recipe `paper` with this model; null for other data than ImageNet-1k."""
    teacher: str | None
    """The teacher that was named."""
    teacher_flops: int | None
    """Operations of the teacher's forward passes, beside `train_flops`: of every view, or of the cached ones."""


@dataclass(frozen=True, kw_only=True)
class RecipeSetting:
    """A setting of a recipe."""

    name: str
    """By which `--set` knows it."""
    value: Any
    """Its value, of the kind that the setting has."""
    source: str
    """Paper, table, file or page that the value is from."""
    is_default: bool
    """Whether the recipe leaves it at its default."""


@dataclass(frozen=True, kw_only=True)
class RecipeSize:
    """Settings of a recipe for models of a size."""

    size: str
    """The authors' letter."""
    max_width: int
    """Largest width of the tokens that they are for."""
    settings: list[RecipeSetting]
    """Those that differ by size."""


@dataclass(frozen=True, kw_only=True)
class RecipeSummary:
    """What a recipe is for, reached and costs."""

    name: str
    purpose: str
    """What it is for."""
    paper: str
    """Where it is from as a whole."""
    model: str
    """Model that it is described for."""
    epochs: int
    batch_size: int
    """Images a step."""
    img_size: ImageSize
    published: list[PublishedResult]
    """Accuracies that were reached with it, and the source of each."""
    cost: RecipeCost


@dataclass(frozen=True, kw_only=True)
class RecipeList:
    """All recipes."""

    recipes: list[RecipeSummary]
    """Those of papers first."""


@dataclass(frozen=True, kw_only=True)
class RecipeDetails(RecipeSummary):
    """A recipe in full."""

    settings: list[RecipeSetting]
    """All of its settings, those that it sets itself first, for `model`."""
    sizes: list[RecipeSize]
    """What differs by the size of the model; empty for a recipe of one size."""
    distill: list[RecipeSetting]
    """Settings of a teacher that go with it."""
    model_args: list[RecipeSetting]
    """Shape of its model, by timm's names."""


def list_recipes(model: str = "") -> RecipeList:
    """Return all recipes, with what they are for, reached and cost.

    Args:
        model: name of the model that costs are computed for; empty: each recipe's own.

    Raises:
        ModelError: no such model.
    """
    return RecipeList(recipes=[_summarize(fit_table(t, model), model) for t in TABLES.values()])


def describe_recipe(name: str, model: str = "", teacher: str = "") -> RecipeDetails:
    """Return a recipe with the source of each of its settings.

    Args:
        name: of the recipe, or a recipe file.
        model: name of a DeiT or of a model of timm's that it is described for; empty: the recipe's own.
        teacher: name of a teacher whose forward passes are counted too.

    Raises:
        ConfigError: no such recipe or file, or a file that does not fit.
        ModelError: no such model.
    """
    table = read_table(name)
    fitted = fit_table(table, model)
    summary = _summarize(fitted, model, teacher)
    settings = [
        RecipeSetting(name=n, value=value, source=source, is_default=n not in fitted.settings)
        for n, (value, source) in list_sourced(fitted).items()
    ]
    return RecipeDetails(
        **{field: getattr(summary, field) for field in RecipeSummary.__dataclass_fields__},
        settings=settings,
        sizes=[
            RecipeSize(size=s.size, max_width=s.max_width, settings=_list_settings(s.settings))
            for s in table.sizes
        ],
        distill=_list_settings(table.distill),
        model_args=_list_settings(table.model_args),
    )


def fit_table(table: RecipeTable, model: str) -> RecipeTable:
    """Return a table with the settings that it has for a DeiT of this size; empty: its own model."""
    arch = catalog.find(model or table.model)
    size = table.find_size(arch.embed_dim) if arch else None
    return replace(table, settings={**table.settings, **size.settings}) if size else table


def _list_settings(settings: Settings) -> list[RecipeSetting]:
    return [
        RecipeSetting(name=name, value=value, source=source, is_default=False)
        for name, (value, source) in settings.items()
    ]


def _summarize(table: RecipeTable, model: str, teacher: str = "") -> RecipeSummary:
    recipe, model = table.build(), model or table.model
    return RecipeSummary(
        name=table.name,
        purpose=table.purpose,
        paper=table.paper,
        model=model,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        img_size=_find_size(recipe, model),
        published=list(table.published),
        cost=compute_cost(table, recipe, model, teacher),
    )


def compute_cost(table: RecipeTable, recipe: Recipe, model: str, teacher: str = "") -> RecipeCost:
    """Return the operations of a training of a model by a recipe; arguments as `describe_recipe`."""
    per_image = _count_epochs(table, recipe, model)
    relative = None
    if table.num_images == IMAGENET_IMAGES:
        paper = get_table("paper")
        is_own = model == table.model and table.step_flops and recipe.img_size == 224
        by_paper = replace(paper, model=model, step_flops=table.step_flops if is_own else 0)
        relative = per_image / _count_epochs(by_paper, by_paper.build(), model)
    return RecipeCost(
        model=model,
        num_images=table.num_images,
        image_flops=_count_step(table, recipe, model, _find_size(recipe, model)),
        train_flops=round(per_image * table.num_images),
        relative_to_paper=relative,
        teacher=teacher or None,
        teacher_flops=_count_teacher(table, recipe, teacher) if teacher else None,
    )


def _count_epochs(table: RecipeTable, recipe: Recipe, model: str) -> float:
    """Return the operations of all epochs for an image."""
    size, early = _find_size(recipe, model), recipe.early_epochs
    flops = (recipe.epochs - early) * _count_step(table, recipe, model, size)
    if early:
        flops += early * _count_step(table, recipe, model, _shrink(size, model, recipe))
    return flops


def _find_size(recipe: Recipe, model: str) -> ImageSize:
    if recipe.img_size:
        return recipe.img_size
    if arch := catalog.find(model):
        return arch.img_size
    from deitctl.models.sources import require_timm_name
    from deitctl.models.timm_models import get_native_size

    require_timm_name(model)
    return get_native_size(model)


def _shrink(size: ImageSize, model: str, recipe: Recipe) -> ImageSize:
    """Return the size of early images: whole patches of a DeiT, pixels of others."""
    arch = catalog.find(model)
    unit = arch.patch_size if arch else 1
    scale = recipe.progressive_resize.scale
    height, width = (max(1, round(side * scale / unit)) * unit for side in height_width(size))
    return make_size(height, width)


def _count_step(table: RecipeTable, recipe: Recipe, model: str, size: ImageSize) -> int:
    arch = catalog.find(model)
    if arch is None and model == table.model and table.step_flops and size == recipe.img_size:
        return table.step_flops
    return count_by_name(
        model,
        size,
        table.num_classes,
        train_backbone=recipe.freeze == "none",
        model_args={name: value for name, (value, _) in table.model_args.items()},
    ).step


def _count_teacher(table: RecipeTable, recipe: Recipe, teacher: str) -> int:
    """Return the operations of a teacher that labels every view, or the cached ones once."""
    from deitctl.recipes import DISTILL_VIEWS

    chosen = {name: value for name, (value, _) in table.distill.items()}
    is_live = chosen.get("teacher_input") == "mixed"
    views = recipe.epochs if is_live else min(chosen.get("views", DISTILL_VIEWS), recipe.epochs)
    forward = count_by_name(teacher, 0, table.num_classes, train_backbone=True).forward
    return int(views) * table.num_images * forward


def count_by_name(
    model: str,
    img_size: ImageSize,
    num_classes: int,
    *,
    train_backbone: bool,
    model_args: Mapping[str, Any] | None = None,
) -> Flops:
    """Return the operations of an image, of a DeiT or of a model of timm's.

    Args:
        model: name.
        img_size: of the input; 0: the model's own.
        num_classes: outputs of its head.
        train_backbone: whether more than the head has a backward pass; of timm's models all has.
        model_args: shape that plain ViTs of timm's take, as in training.

    Raises:
        ModelError: no such model.
    """
    arch = catalog.find(model)
    if arch is not None:
        size = img_size or arch.img_size
        return compute_deit_flops(
            arch, num_classes=num_classes, img_size=size, train_backbone=train_backbone
        )
    import torch

    from deitctl.models.sources import require_timm_name
    from deitctl.models.timm_models import create_model, get_native_size, is_plain_vit
    from deitctl.profiling.flops import count_flops

    require_timm_name(model)
    size = img_size or get_native_size(model)
    with torch.device("meta"):  # shapes are counted; weights would take memory and time
        network = create_model(
            model,
            num_classes=num_classes,
            img_size=size,
            model_args=model_args if is_plain_vit(model) else None,
        )
    return count_flops(network, size)

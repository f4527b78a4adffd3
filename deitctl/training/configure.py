"""Resolution of a user's settings into a training configuration: recipe, initial weights and teacher."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from deitctl.config import (
    MAX_FOLDS,
    TEACHER_SETTINGS,
    DistillConfig,
    FeatureConfig,
    OptimConfig,
    Recipe,
    TaskChoice,
    TrainConfig,
)
from deitctl.data.classes import is_imagenet
from deitctl.data.dataset import ImageDataset
from deitctl.data.draws import count_draws
from deitctl.data.epoch_steps import fit_batch_size
from deitctl.data.group_by import check_group_by
from deitctl.data.named.names import is_named, spell
from deitctl.data.rand_augment import parse_rand_augment
from deitctl.data.readers.mistyped import is_like_address
from deitctl.data.readers.torch_dataset import PREFIX
from deitctl.data.sources import BUILT_IN
from deitctl.data.stores.address import hide_secrets, is_remote
from deitctl.data.training_data import Source, open_for_training
from deitctl.data.unlabeled import REST
from deitctl.distillation.teacher_size import fit_teacher_size
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.errors import ConfigError
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.models import catalog
from deitctl.models.build import has_class_rows
from deitctl.models.factory import find_architecture
from deitctl.models.sources import has_weights, is_model_folder, list_weight_files, name_weights
from deitctl.models.timm_models import is_plain_vit
from deitctl.recipes import (
    CUT_HEAD_INIT,
    DIGITS,
    DIGITS_STUDENT,
    DIGITS_TEACHER,
    DISTILL_DEFAULTS,
    DISTILL_REDUCTION,
    DISTILL_TOPK,
    DISTILL_VIEWS,
    FINETUNE,
    PAPER,
    RECIPES,
    SMALL,
    VIEW_PASSES,
    find_table,
    fit_to_data,
    fit_to_size,
    get_recipe,
    read_file_settings,
)
from deitctl.recipes.table import RecipeTable
from deitctl.settings import (
    MODEL_ARGS,
    check_ranges,
    convert,
    dotted_name,
    find_setting,
    override,
)
from deitctl.trackers.feed import parse_trackers
from deitctl.training.build import read_start_classes
from deitctl.training.checkpointer import parse_interval
from deitctl.training.class_balance import ClassCounts
from deitctl.training.freezing import check_freezing
from deitctl.training.input_shape import (
    cuts_blocks,
    find_in_chans,
    find_size,
    fit_color,
    fit_crop_ratio,
    require_input_shape,
)
from deitctl.training.objective import check_loss, sums_classes
from deitctl.training.optimizer_choice import check_optimizer, choose_rates, warn_of_rising_rate
from deitctl.training.schedule import compute_peak_lr
from deitctl.training.selection import choose_metric
from deitctl.training.several_teachers import (
    add_teachers,
    check_roles,
    map_teachers,
    settle_roles,
    split_settings,
    split_teachers,
)
from deitctl.training.strategy import check_strategy

DEFAULT_TRAIN_MODEL = "deit_small"
DEFAULT_TEACHER = "regnety_160"  # DeiT §5.2; its weights: catalog.TIMM_TAGS
SMALL_DATA = 50_000
"""Training images below which training from scratch takes the small-data recipe."""


def build_config(
    settings: Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    distilled: bool = False,
    datasets: tuple[ImageDataset, ImageDataset] | None = None,
    reporter: Reporter,
    world: World = SINGLE_PROCESS,
) -> tuple[TrainConfig, ImageDataset, ImageDataset]:
    """Resolve settings into a configuration, and open its data unless they are `datasets`.

    Args:
        settings: by dotted name of `TrainConfig`; `recipe` is a recipe's name or file. What is missing is chosen by
            the data, then by the recipe.
        overrides: settings that replace what was chosen.
        distilled: whether there is a teacher.
        datasets: training and validation images, if they are open already.
        reporter: receives what was chosen and why.
        world: the processes that train together, see `open_for_training`.

    Raises:
        ConfigError: a setting that does not exist or fit.
        DataError: no data to train on.
    """
    settings, more_teachers = split_settings(make_absolute(settings))
    data, model = settings.pop("data", ""), settings.pop("model", "")
    if not data:
        reporter.note(
            "No data named: using the built-in 'digits' (1,797 handwritten digits, 10 classes)."
        )
    data = data or BUILT_IN
    built_in = data == BUILT_IN
    own = {**settings, **(overrides or {})}
    named = add_file_settings(own)
    table = find_table(str(own["recipe"])) if own.get("recipe") else None
    require_input_shape(model or DEFAULT_TRAIN_MODEL, named, reporter)
    if in_chans := find_in_chans(model, named, reporter):
        settings["recipe.in_chans"] = named["recipe.in_chans"] = in_chans
    train, val = datasets or open_for_training(
        name_source(data, named), reporter=reporter, world=world
    )
    model_args: dict[str, Any] = {}
    if table is not None:
        _require_teacher(table, distilled=distilled)
        model_args = choose_model_args(table, model, reporter)
    if not model:
        on_digits = built_in and not settings.get("distill.teacher") and not model_args
        model = DIGITS_STUDENT if on_digits else table.model if table else DEFAULT_TRAIN_MODEL
    weights = settings.pop("weights", "")
    recipe = _choose_recipe(settings, model, weights, train, built_in)
    if table is not None and table.sizes:
        recipe = _fit_to_size(recipe, table, model, own, reporter)
    opt = RECIPES[table.name].optim.opt if table else OptimConfig.opt
    distill = build_distill_config(settings, built_in, recipe) if distilled else None
    config = TrainConfig(
        model=model,
        data=data,
        recipe=recipe,
        weights=weights,
        model_args=model_args,
        distill=distill,
    )
    rest = {k: v for k, v in settings.items() if k not in ("recipe", "recipe.pretrained")}
    config = override(override(config, rest), overrides or {})
    config = add_teachers(config, more_teachers)
    config = settle_roles(config, reporter)
    config = fit_crop_ratio(settle_task(config, train), named, reporter)
    config = fit_color(config, own, reporter)
    size = find_size(config, reporter)

    def fit_size(alone: TrainConfig) -> TrainConfig:
        named_size = alone.distill.teacher_img_size if alone.distill is not None else 0
        named = {"distill.teacher_img_size": named_size}
        return fit_teacher_size(alone, size, named, built_in=built_in, reporter=reporter)

    config = map_teachers(config, fit_size)
    config = add_tags(_fit_recipe(config, train, {**settings, **(overrides or {})}, opt, reporter))
    size = fit_batch_size(count_draws(train), config.recipe.batch_size)
    optim = config.recipe.optim
    warn_of_rising_rate(optim, compute_peak_lr(optim, size), reporter)
    counts = ClassCounts.of(train)
    if config.distill is not None and "distill.reduction" not in named:
        config = _choose_reduction(config, counts)
    if config.distill is not None and "distill.views" not in named:
        config = _choose_views(config, len(train.labels))
    check(config)
    check_loss(config, counts)
    return config, train, val


def _choose_views(config: TrainConfig, num_images: int) -> TrainConfig:
    """Give long training on few images more views, so that none of them comes more than ten times."""
    distill = config.distill
    if distill is None or not distill.views or num_images >= SMALL_DATA:
        return config
    views = max(distill.views, math.ceil(config.recipe.epochs / VIEW_PASSES))
    return replace(config, distill=replace(distill, views=views))


def _choose_reduction(config: TrainConfig, counts: ClassCounts) -> TrainConfig:
    """Sum a teacher's loss over classes where the task's is summed, so that alpha weighs like with like."""
    distill = config.distill
    if distill is None or sums_classes(config.recipe, is_multilabel=counts.is_multilabel):
        return config
    return replace(config, distill=replace(distill, reduction="mean"))


def settle_task(config: TrainConfig, train: ImageDataset) -> TrainConfig:
    """Return the configuration with the task that the data was opened for, which is never auto."""
    task: TaskChoice = "multilabel" if train.is_multilabel else "classification"
    return replace(config, task=task)


def add_file_settings(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of the recipe file that they name, if it is one; what is named itself counts."""
    recipe = str(named.get("recipe", ""))
    file = read_file_settings(recipe) if recipe.endswith(".toml") else {}
    return {**{f"recipe.{name}": value for name, value in file.items()}, **named}


def name_source(data: str, named: Mapping[str, Any]) -> Source:
    """Return the source of the images that settings name, before the others are resolved.

    Raises:
        ConfigError: a value that does not fit.
    """
    named = add_file_settings(named)
    split_seed, folds, fold, in_chans = (
        convert(named.get(name, 0), int, name)
        for name in ("split_seed", "folds", "fold", "recipe.in_chans")
    )
    source = Source(
        data,
        str(named.get("image_folder", "")),
        str(named.get("value_range", TrainConfig.value_range)),
        convert(named.get("task", TrainConfig.task), TaskChoice, "task"),
        str(named.get("group_by", "")),
        split_seed,
        folds,
        fold,
        convert(named.get("fraction", TrainConfig.fraction), float, "fraction"),
        str(named.get("distill.unlabelled", "")),
        in_chans,
        extra_data=convert(named.get("extra_data", ()), tuple[str, ...], "extra_data"),
        extra_weight=convert(named.get("extra_weight", ()), tuple[float, ...], "extra_weight"),
        cache_dir=str(named.get("cache_dir", "")),
        cache_size=str(named.get("cache_size", "")),
        has_teacher=any(name.startswith("distill.") for name in named),
    )
    check_split(source.group_by, source.folds, source.fold)
    check_extra(source.extra_data, source.extra_weight)
    return source


def _fit_recipe(
    config: TrainConfig,
    train: ImageDataset,
    named: Mapping[str, Any],
    opt: str,
    reporter: Reporter,
) -> TrainConfig:
    """Choose what the recipe leaves to the data and to the optimizer, except the settings that the
    user has `named`; `opt` is the optimizer that the recipe's rates are for."""
    fixed = {dotted_name(name).removeprefix("recipe.") for name in named if name != "recipe"}
    if source := named.get("recipe"):
        fixed.update(read_file_settings(str(source)))
    if not config.recipe.fits_data:
        return replace(config, recipe=_choose_rates(config.recipe, opt, fixed, reporter))
    is_new = not has_class_rows(
        config.model,
        config.weights,
        train.class_names,
        reporter,
        start_classes=read_start_classes(config),
        task=config.task,
    )
    recipe = fit_to_data(
        config.recipe,
        num_images=len(train.labels),
        has_new_head=is_new,
        is_deit=find_architecture(config.model, reporter) is not None,
        fixed=fixed,
    )
    if (
        is_new
        and recipe.head_init == "ridge"
        and "head_init" not in fixed
        and cuts_blocks(config, reporter)
    ):
        recipe = replace(recipe, head_init=CUT_HEAD_INIT)
        reporter.note(
            "The new head starts from random weights: of the weights' first blocks alone, a head that is "
            "fitted to the features makes the loss rise at once (--set head_init=ridge fits it)."
        )
    recipe = _choose_rates(recipe, opt, fixed, reporter)
    size = fit_batch_size(count_draws(train), recipe.batch_size)
    reporter.note(
        f"Recipe {recipe.name}, for {len(train.labels):,} training images and "
        f"{'a new head' if is_new else 'the head of the weights'}: "
        f"{recipe.batch_size} images a step, learning rate {compute_peak_lr(recipe.optim, size):.1e}."
    )
    return replace(config, recipe=recipe)


def _choose_rates(recipe: Recipe, opt: str, fixed: Collection[str], reporter: Reporter) -> Recipe:
    """Give an optimizer other than `opt`, the recipe's, the rates that go with it."""
    optim, reason = choose_rates(recipe.optim, fixed, recipe_opt=opt)
    if reason:
        reporter.note(reason)
    return replace(recipe, optim=optim)


def add_tags(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the full names of timm's published weights that it loads.

    So a later version of timm with another default for a name does not change a run.
    """
    if config.recipe.pretrained and catalog.find(config.model) is None:
        config = replace(config, model=name_weights(config.model, config.weights))
    return map_teachers(config, _add_teacher_tag)


def _add_teacher_tag(config: TrainConfig) -> TrainConfig:
    distill = config.distill
    if distill is None or distill.finetune_teacher == "scratch":
        return config
    teacher = name_weights(distill.teacher, distill.teacher_weights)
    return replace(config, distill=replace(distill, teacher=teacher))


def name_command(config: TrainConfig) -> str:
    """Return the command that repeats a run."""
    return "deitctl train" if config.distill is None else "deitctl distill"


def refuse_settings(names: list[str], path: Path) -> None:
    """Raise `ConfigError` if a file is to be combined with settings of its own."""
    if names:
        raise ConfigError(
            f"{path} has its own {names[0].rpartition('.')[2].replace('_', ' ')}.",
            "Leave yours out, or change a setting with --set.",
        )


def check_split(group_by: str, folds: int, fold: int) -> None:
    """Raise `ConfigError` for groups, a number of folds, or one of them, that there cannot be."""
    check_group_by(group_by)
    if not (folds == 0 or 2 <= folds <= MAX_FOLDS):
        raise ConfigError(f"--folds {folds} is not possible.", f"Use 2 to {MAX_FOLDS:,}.")
    if not 0 <= fold <= folds:
        raise ConfigError(
            f"There is no --fold {fold} of {folds}."
            if folds
            else f"--fold {fold} is of no --folds.",
            f"They are numbered from 1 to {folds}." if folds else "Add --folds K.",
        )


def check_extra(extra_data: Sequence[str], extra_weight: Sequence[float]) -> None:
    """Raise `ConfigError` unless there are as many weights as sources, or none."""
    if extra_weight and len(extra_weight) != len(extra_data):
        raise ConfigError(
            f"{len(extra_data)} --extra-data and {len(extra_weight)} --extra-weight do not go together.",
            "Name one weight for each source, in their order, or none.",
        )


def make_absolute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings whose paths are absolute, so that a run can be resumed from anywhere.

    A model's or teacher's name that is no file or model folder stays a name: there may be a folder of that name.
    """
    absolute = {name: _spell_path(value) for name, value in settings.items()}
    if len(teachers := split_teachers(absolute.get("distill.teacher") or "")) > 1:
        absolute["distill.teacher"] = teachers
    for name, value in absolute.items():
        if name in TEACHER_SETTINGS and isinstance(value, list):
            absolute[name] = [make_absolute({name: part})[name] for part in value]
            continue
        if name == "extra_data":
            parts = [value] if isinstance(value, str) else value
            absolute[name] = [make_absolute({"data": part})["data"] for part in parts]
            continue
        is_name = {
            "data": value in ("", BUILT_IN)
            or is_like_address(str(value))
            or str(value).startswith(PREFIX)
            or is_named(str(value)),
            "image_folder": not value,
            "distill.teacher_cache": value in ("", "off"),
            "distill.unlabelled": value in ("", REST) or is_remote(str(value)),
            "cache_dir": not value,
            "classes": not value,
            "distill.teacher_classes": not value,
        }
        if name in ("model", "weights", "distill.teacher", "distill.teacher_weights"):
            is_name[name] = not (expand_home(value).is_file() or is_model_folder(value))
        if is_remote(str(value)):
            absolute[name] = hide_secrets(str(value))
        elif not is_name.get(name, True):
            absolute[name] = str(expand_home(value).resolve())
        elif name == "data" and is_named(str(value)):
            absolute[name] = spell(str(value))
    return absolute


def _spell_path(value: Any) -> Any:
    """Return a path, or several, as text."""
    if isinstance(value, list):
        return [_spell_path(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _choose_recipe(
    settings: Mapping[str, Any],
    model: str,
    weights: str,
    train: ImageDataset,
    built_in: bool,
) -> Recipe:
    """Choose by the data: digits, ImageNet and other images each have a recipe."""
    pretrained = settings.get("recipe.pretrained")
    if pretrained is not None:
        pretrained = convert(pretrained, bool, "pretrained")
    starts_from = bool(weights) or has_weights(model)
    if settings.get("recipe"):
        recipe = get_recipe(convert(settings["recipe"], str, "recipe"))
    elif built_in:
        recipe = DIGITS
    elif starts_from or pretrained:
        recipe = FINETUNE
    elif is_imagenet(train.class_names):
        recipe = PAPER
    elif pretrained is None:
        recipe = FINETUNE
    else:
        recipe = SMALL if len(train.labels) < SMALL_DATA else PAPER
    if starts_from and pretrained is False:
        raise ConfigError(
            "--no-pretrained contradicts the weights that were named.", "Leave one of them out."
        )
    if pretrained is None:
        pretrained = recipe.pretrained
    return replace(recipe, pretrained=pretrained and not starts_from)


def _require_teacher(table: RecipeTable, *, distilled: bool) -> None:
    """Raise `ConfigError` where a recipe gives the labels no weight and there is no teacher."""
    alpha, _ = table.distill.get("alpha", (0.0, ""))
    if alpha == 1 and not distilled:
        raise ConfigError(
            f"{table.name} learns from a teacher alone, and there is none.",
            f"Name one: deitctl distill --recipe {table.name} --teacher NAME",
        )


def choose_model_args(table: RecipeTable, model: str, reporter: Reporter) -> dict[str, Any]:
    """Return the shape that a recipe has for its own model, and for others of timm's of that family.

    Args:
        table: the recipe's.
        model: that the user named; empty: the recipe's own.
        reporter: is warned where the model is another, which keeps its shape.
    """
    model_args = {name: value for name, (value, _) in table.model_args.items()}
    if not model_args or not model or (not has_weights(model) and is_plain_vit(model)):
        return model_args
    reporter.warn(
        f"Recipe {table.name} is for {table.model} with "
        f"{', '.join(f'model.{name}={value}' for name, value in model_args.items())}; "
        f"{model} keeps its own shape."
    )
    return {}


def _fit_to_size(
    recipe: Recipe, table: RecipeTable, model: str, named: Mapping[str, Any], reporter: Reporter
) -> Recipe:
    """Give a recipe what its table has for a DeiT of this width; another model has the recipe's own."""
    arch = find_architecture(model, reporter)
    if arch is None:
        reporter.note(
            f"Recipe {recipe.name} has no settings by size for {model}: it takes the recipe's own."
        )
        return recipe
    args = {k: v for k, v in named.items() if k == f"{MODEL_ARGS}embed_dim"}
    width = convert(args.popitem()[1], int, "model.embed_dim") if args else arch.embed_dim
    source = str(named.get("recipe", ""))
    fitted = fit_to_size(recipe, table, width, read_file_settings(source))
    size = table.find_size(width)
    if size is not None:
        chosen = {n: v for n, (v, _) in size.settings.items() if f"recipe.{n}" not in named}
        values = ", ".join(f"{name} {value}" for name, value in chosen.items())
        reporter.note(f"Recipe {recipe.name} for tokens of width {width} ({size.size}): {values}.")
    return fitted


def build_distill_config(
    settings: Mapping[str, Any], built_in: bool, recipe: Recipe
) -> DistillConfig:
    """Return the teacher's configuration before `settings` replace what they name.

    Args:
        settings: by dotted name of `TrainConfig`, paths being absolute.
        built_in: whether the data are the built-in digits, which have a default teacher.
        recipe: under which the student is trained.

    Raises:
        ConfigError: no teacher, weights for one that has its own, or no such mode.
    """
    table = find_table(str(settings.get("recipe") or recipe.name))
    own = {} if table is None else {name: value for name, (value, _) in table.distill.items()}
    mode = settings.get("distill.mode", own.get("mode", "hard"))
    if mode not in DISTILL_DEFAULTS:
        raise ConfigError(
            f"There is no distillation mode {mode!r}.",
            f"There are: {', '.join(DISTILL_DEFAULTS)}, none.",
        )
    teacher, weights = (settings.get(f"distill.{k}", "") for k in ("teacher", "teacher_weights"))
    if not teacher and not built_in and not weights:
        raise ConfigError(
            "No teacher named.",
            f"Pass --teacher, {name_weights(DEFAULT_TEACHER)} for example: the paper's.",
        )
    if weights and list_weight_files(teacher):
        raise ConfigError(
            f"{teacher} has weights of its own.",
            "Leave --teacher-weights out, or name an architecture as --teacher.",
        )
    if mode != own.get("mode", mode):  # weight and temperature are those of the recipe's mode
        own = {name: value for name, value in own.items() if name not in ("alpha", "tau")}
    # A mixed image is never seen twice: views that the user names are of unmixed ones.
    by_recipe = "unmixed" if "distill.views" in settings else own.get("teacher_input", "unmixed")
    teacher_input = settings.get("distill.teacher_input", by_recipe)
    views = own.get("views", DISTILL_VIEWS)
    return DistillConfig(
        teacher=teacher or (DIGITS_TEACHER if built_in else DEFAULT_TEACHER),
        mode=mode,
        alpha=own.get("alpha", DISTILL_DEFAULTS[mode].alpha),
        tau=own.get("tau", DISTILL_DEFAULTS[mode].tau),
        reduction=DISTILL_REDUCTION,
        # features alone leave a token nothing to learn
        dist_token=own.get("dist_token", mode != "features"),
        # With ImageNet's weights where there is a network, the first command would take minutes more.
        finetune_teacher="scratch" if built_in and not (teacher or weights) else "auto",
        teacher_input=teacher_input,
        views=views if teacher_input == "unmixed" else 0,
        logits_topk=DISTILL_TOPK,
        features=FeatureConfig(weight=DISTILL_DEFAULTS[mode].feature_weight),
    )


def _check_teacher(distill: DistillConfig) -> None:
    """Refuse settings of one teacher that contradict each other; raise `ConfigError`."""
    if distill.teacher_input == "mixed" and (
        distill.views or distill.teacher_cache not in ("", "off")
    ):
        raise ConfigError(
            "The teacher never sees a mixed image twice: --views and --teacher-cache do not go with it.",
            "Leave them out, or use --teacher-input unmixed.",
        )
    if distill.finetune_teacher != "scratch":
        return
    if distill.teacher_weights or has_weights(distill.teacher):
        raise ConfigError(
            f"--finetune-teacher scratch takes an architecture, and {distill.teacher} has weights.",
            "Leave the weights out, or use --finetune-teacher full.",
        )
    if distill.teacher_classes:
        raise ConfigError(
            "--teacher-classes names the classes of weights, and a teacher that is trained from scratch "
            "has none.",
            "Leave it out, or --finetune-teacher scratch.",
        )


def check(config: TrainConfig) -> None:
    """Refuse values that would train nothing or something else; raise `ConfigError`."""
    check_ranges(config)
    choose_metric(config.select, config.task)  # or it raises
    if config.distill is not None:
        check_features(config.distill, config.recipe)
        check_roles(config.distill)
        for distill in config.distill.list_teachers():
            _check_teacher(distill)
    augment = config.recipe.augment
    if augment.three_augment and augment.rand_augment:
        raise ConfigError(
            "augment.three_augment and augment.rand_augment do not go together: one replaces the other.",
            "Use --set augment.rand_augment= or --set augment.three_augment=false.",
        )
    starts = (0, *config.recipe.restart_epochs, config.recipe.epochs)
    if any(end <= start for start, end in pairwise(starts)):
        raise ConfigError(
            f"restart_epochs = {config.recipe.restart_epochs} does not fit {config.recipe.epochs} epochs.",
            "They rise, and the last is less than the epochs.",
        )
    planned = config.recipe.planned_epochs
    lengths = [end - start for start, end in pairwise(starts)]
    if planned and (
        len(planned) != len(lengths) - 1
        or any(epochs < length for epochs, length in zip(planned, lengths, strict=False))
    ):
        raise ConfigError(
            f"planned_epochs = {planned} does not fit restart_epochs = {config.recipe.restart_epochs}.",
            "There is one for each restart, at least the epochs until it.",
        )
    if config.window and config.data_order == "full":
        raise ConfigError(
            f"--window {config.window} is of window order, and --data-order is full.",
            "Leave one of them out.",
        )
    check_extra(config.extra_data, config.extra_weight)
    if config.recipe.sampling == "balanced" and any(w != 1 for w in config.extra_weight):
        raise ConfigError(
            "sampling = balanced draws every class equally often, and --extra-weight a source more often.",
            "Leave one of them out.",
        )
    check_optimizer(config.recipe.optim)
    check_freezing(config.recipe)
    check_strategy(config)
    parse_interval(config.save_every)
    parse_trackers(config.log)
    if config.recipe.augment.rand_augment:
        parse_rand_augment(config.recipe.augment.rand_augment)  # or it raises


def check_features(distill: DistillConfig, recipe: Recipe) -> None:
    """Refuse settings of features where none are learned, and what would learn nothing of them; raise
    `ConfigError`."""
    features, default = distill.features, FeatureConfig()
    if not distill.uses_features:
        changed = [f.name for f in fields(default) if getattr(features, f.name) != f.default]
        if changed:
            setting = find_setting(f"distill.features.{changed[0]}")
            typed = setting.flag if setting.option.panel else f"--set {setting.name}"
            raise ConfigError(
                f"{typed} is for modes with features, and the mode is {distill.mode}.",
                "Leave it out, or use --mode features, features+hard or features+soft.",
            )
        return
    if not distill.label_mode and distill.dist_token:
        raise ConfigError(
            "A distillation token learns a teacher's labels, and mode features has none.",
            "Leave it out, or use --mode features+hard or features+soft.",
        )
    if not distill.label_mode and distill.alpha:
        raise ConfigError(
            f"--alpha {distill.alpha:g} weighs a teacher's labels, and mode features has none.",
            "Leave it out; --feature-weight weighs the features.",
        )
    if not features.weight:
        raise ConfigError(
            "--feature-weight 0 learns no features.", "Use --mode hard or soft, or another weight."
        )
    if recipe.freeze == "backbone" and not recipe.thaw_epoch:
        raise ConfigError(
            "Features are learned by the backbone, and freeze=backbone trains the classifier alone.",
            "Leave one of them out.",
        )

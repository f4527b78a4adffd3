"""From what a user said to a whole training configuration: which recipe, which weights, which teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deitctl.config import DistillConfig, Recipe, TrainConfig
from deitctl.data.classes import is_imagenet
from deitctl.data.dataset import ImageDataset
from deitctl.data.open import BUILT_IN, open_for_training
from deitctl.data.rand_augment import rand_augment
from deitctl.errors import ConfigError, WeightsNotFound
from deitctl.events import Reporter
from deitctl.models import catalog
from deitctl.models.factory import HUB_PREFIX, find_architecture, is_model_folder, list_weight_files
from deitctl.models.weights import fetch_weights
from deitctl.recipes import (
    DIGITS,
    DIGITS_STUDENT,
    DIGITS_TEACHER,
    DISTILL_DEFAULTS,
    DISTILL_REDUCTION,
    DISTILL_TOPK,
    DISTILL_VIEWS,
    FINETUNE,
    MIXED_RECIPES,
    PAPER,
    SMALL,
    get_recipe,
)
from deitctl.settings import check_ranges, override
from deitctl.training.checkpointer import parse_interval

DEFAULT_TRAIN_MODEL = "deit_small"
DEFAULT_TEACHER = "regnety_160"  # DeiT §5.2
LITTLE_DATA = 50_000
"""Training images below which training from scratch takes the small-data recipe."""


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """What a user said of the teacher; empty or None: not said."""

    teacher: str = ""
    weights: str = ""
    mode: str = ""
    alpha: float | None = None
    tau: float | None = None
    reduction: str = ""
    token: bool = True
    adapt: str = ""
    img_size: int | None = None
    sees: str = ""
    views: int | None = None
    view_seed: int | None = None
    topk: int | None = None
    cache: str = ""
    """A folder, or `off`."""
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user said of a training; empty or None: not said."""

    data: str = ""
    model: str = ""
    recipe: str = ""
    pretrained: bool | None = None
    weights: str = ""
    teaching: Teaching | None = None
    output: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Settings by dotted name of `TrainConfig`; those that are None are from the recipe."""
    changes: Sequence[str] = ()
    """`key=value` texts, keys of the recipe or of the whole configuration."""


def configure(
    request: Request, reporter: Reporter, datasets: tuple[ImageDataset, ImageDataset] | None = None
) -> tuple[TrainConfig, ImageDataset, ImageDataset]:
    """Resolve a request into a configuration, and open its data unless they are `datasets`.

    Raises:
        ConfigError: a setting that does not exist or fit.
        DataError: no data to train on.
    """
    built_in = request.data in ("", BUILT_IN)
    if not request.data:
        reporter.note(
            "No data named: using the built-in 'digits' (1,797 handwritten digits, 10 classes)."
        )
    seed = int(request.given.get("seed") or 0)
    train, val = datasets or open_for_training(
        request.data or BUILT_IN, seed=seed, reporter=reporter
    )
    model = _whole_path(request.model) or _default_model(built_in, request)
    recipe, weights = _choose_recipe(request, model, train, built_in, reporter)
    config = TrainConfig(
        model=model,
        data=BUILT_IN if built_in else str(Path(request.data).expanduser().resolve()),
        recipe=recipe,
        weights=weights,
        distill=distill_config(request.teaching, built_in, recipe) if request.teaching else None,
        output_dir=request.output,
    )
    config = override(config, {k: v for k, v in request.given.items() if v is not None})
    config = override(config, dict(parse_change(c) for c in request.changes))
    check(config)
    return config, train, val


def _default_model(built_in: bool, request: Request) -> str:
    if built_in and not (request.teaching and request.teaching.teacher):
        return DIGITS_STUDENT
    return DEFAULT_TRAIN_MODEL


def _choose_recipe(
    request: Request, model: str, train: ImageDataset, built_in: bool, reporter: Reporter
) -> tuple[Recipe, str]:
    """Choose by the data: digits, ImageNet and one's own images each have a recipe; say which and why."""
    starts = (
        bool(request.weights)
        or Path(model).is_file()
        or is_model_folder(model)
        or model.startswith(HUB_PREFIX)
    )
    if request.recipe:
        recipe = get_recipe(request.recipe)
    elif built_in:
        recipe = DIGITS
    elif starts or request.pretrained:
        recipe = FINETUNE
    elif is_imagenet(train.class_names):
        recipe = PAPER
    elif request.pretrained is None and (
        request.teaching is None or _weights_within_reach(model, reporter)
    ):
        recipe = FINETUNE
    else:
        recipe = SMALL if len(train.labels) < LITTLE_DATA else PAPER
    pretrained = recipe.pretrained if request.pretrained is None else request.pretrained
    if starts and request.pretrained is False:
        raise ConfigError(
            "--no-pretrained contradicts the weights that were named.", "Leave one of them out."
        )
    return replace(recipe, pretrained=pretrained and not starts), _whole_path(request.weights)


def _whole_path(name: str) -> str:
    """Return a path that exists as it is seen from anywhere, so that a run can be resumed from anywhere."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_file() or is_model_folder(name) else name


def _weights_within_reach(model: str, reporter: Reporter) -> bool:
    arch = find_architecture(model, reporter)
    if arch is None:
        return True
    try:
        fetch_weights(catalog.get_distilled(arch), reporter)
    except WeightsNotFound as error:
        reporter.warn(
            f"{error.message} The student starts from scratch; with weights it would do better."
        )
        return False
    return True


def distill_config(said: Teaching, built_in: bool, recipe: Recipe) -> DistillConfig:
    """Resolve what was said of a teacher; raise `ConfigError` for what does not exist or fit."""
    mode = said.mode or "hard"
    if mode not in DISTILL_DEFAULTS:
        raise ConfigError(
            f"There is no distillation mode {mode!r}.",
            f"There are: {', '.join(DISTILL_DEFAULTS)}, none.",
        )
    defaults = DISTILL_DEFAULTS[mode]
    if not said.teacher and not built_in and not said.weights:
        raise ConfigError(
            "No teacher named.", f"Pass --teacher, {DEFAULT_TEACHER} for example: the paper's."
        )
    if said.weights and list_weight_files(said.teacher):
        raise ConfigError(
            f"{said.teacher} has weights of its own.",
            "Leave --teacher-weights out, or name an architecture as --teacher.",
        )
    sees = said.sees or (
        "mixed" if recipe.name in MIXED_RECIPES and said.views is None else "unmixed"
    )
    config = DistillConfig(
        teacher=_whole_path(said.teacher) or (DIGITS_TEACHER if built_in else DEFAULT_TEACHER),
        teacher_weights=_whole_path(said.weights),
        mode="hard",
        alpha=defaults.alpha if said.alpha is None else said.alpha,
        tau=defaults.tau if said.tau is None else said.tau,
        reduction="batchmean",
        dist_token=said.token,
        teacher_img_size=said.img_size or 0,
        teacher_input="unmixed",
        views=said.views if said.views is not None else DISTILL_VIEWS if sees == "unmixed" else 0,
        view_seed=said.view_seed or 0,
        logits_topk=DISTILL_TOPK if said.topk is None else said.topk,
        teacher_cache=str(Path(said.cache).expanduser().resolve())
        if said.cache not in ("", "off")
        else said.cache,
        allow_weak_teacher=said.force,
    )
    words = {
        "mode": mode,
        "reduction": said.reduction or DISTILL_REDUCTION,
        "finetune_teacher": said.adapt or "auto",
    }
    return override(config, {**words, "teacher_input": sees})


def parse_change(text: str) -> tuple[str, str]:
    """Split a `key=value` of --set; keys of the recipe may be named without saying so."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {text!r} is not key=value.", "Example: --set optim.weight_decay=0.1"
        )
    key = key.strip()
    top = key.partition(".")[0]
    if top in ("data", "seed", "model", "weights", "output_dir"):
        raise ConfigError(
            f"--set {key} is not for this.", f"Use the command's own argument or option for {top}."
        )
    if (
        top not in TrainConfig.__dataclass_fields__
    ):  # the recipe's settings may be named without saying so
        key = f"recipe.{key}"
    return key, value.strip()


def check(config: TrainConfig) -> None:
    """Refuse values that would train nothing or something else."""
    check_ranges(config)
    distill = config.distill
    if (
        distill is not None
        and distill.teacher_input == "mixed"
        and (distill.views or distill.teacher_cache not in ("", "off"))
    ):
        raise ConfigError(
            "A teacher that sees mixed images never sees one twice: --views and --teacher-cache are not for it.",
            "Leave them out, or use --teacher-sees unmixed.",
        )
    parse_interval(config.save_every)
    if config.recipe.augment.rand_augment:
        rand_augment(config.recipe.augment.rand_augment)  # or it raises

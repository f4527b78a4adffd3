"""Configurations: frozen dataclasses that a recipe fills, `--set` overrides and `run.toml` keeps."""

from __future__ import annotations

import dataclasses
import math
import reprlib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from deitctl.errors import ConfigError, did_you_mean
from deitctl.paths import read_text

C = TypeVar("C")
MAX_TOML = 2**18
"""Bytes of a TOML file; a run's has two thousand."""
MOST_DOTS = 100
"""In a line."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to a training image; every draw is a function of (seed, sample key)."""

    crop_scale: tuple[float, float]
    """Area of the random resized crop, as a share of the image. (1, 1): no crop, the whole image is resized."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratios of the crop (torchvision's default)."""
    hflip: float
    """Probability of a left-right flip."""
    affine: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Largest rotation (degrees), scaling (share) and shift (share of the side) of a small affine map."""
    rand_augment: str = ""
    """timm's RandAugment string, or empty for none."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation jitter; unused with RandAugment, as in timm."""
    random_erase_prob: float = 0.0
    """Probability of random erasing with per-pixel noise."""
    mixup: float = 0.0
    """Beta parameter of mixup, 0 for none."""
    cutmix: float = 0.0
    """Beta parameter of cutmix, 0 for none."""
    mixup_prob: float = 1.0
    """Probability that a batch is mixed at all."""
    mixup_switch_prob: float = 0.5
    """Probability of cutmix where both are on."""
    repeated_aug: int = 1
    """Repeated augmentation: views of an image per epoch; an epoch then sees 1/repeated_aug of the images."""
    student_affine: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """What a student sees on top of a view that comes again: largest rotation (degrees), scaling, shift (shares)."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up and a cosine."""

    lr: float
    """Learning rate for `lr_base_size` images a step; the rate used is lr * batch_size / lr_base_size."""
    lr_base_size: int = 512
    min_lr: float
    """Learning rate at the end of the cosine, not scaled."""
    warmup_lr: float
    """Learning rate of the first step, not scaled."""
    warmup_epochs: float
    weight_decay: float
    clip_grad: float = 0.0
    """Largest gradient norm, 0 for no clipping."""
    layer_decay: float = 1.0
    """Factor of the rate from each layer to the one below it (BEiT's fine-tuning), 1 for the same rate everywhere."""


@dataclass(frozen=True, kw_only=True)
class ProgressiveResize:
    """Smaller images in the first epochs, full ones in the last (FixRes, arXiv 1906.06423)."""

    scale: float = 1.0
    """Side of the input in the early epochs relative to `img_size`; position embeddings are resized to it. 1: none."""
    fraction: float = 0.0
    """Fraction of the epochs that are early."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about a training that the paper or experience decides, and nothing about the machine."""

    name: str
    pretrained: bool
    """Whether training starts from published weights."""
    img_size: int
    """Side of the input in pixels; 0: the model's own."""
    epochs: int
    batch_size: int
    """Images a step, over all processes and micro-batches."""
    smoothing: float
    """Label smoothing, of true labels only."""
    drop_path_rate: float
    """Stochastic depth of the last block; it grows linearly from 0 at the first."""
    ema_decay: float
    """Decay of the weights' moving average, 0 for none; shortened for short runs (see training/ema.py)."""
    freeze: Literal["none", "backbone"] = "none"
    """`backbone` trains the classifier alone: a linear probe."""
    freeze_bn_stats: bool = False
    """Whether batch norms go on with the means and variances that came with the weights, instead of the batch's."""
    augment: AugmentConfig
    optim: OptimConfig
    progressive_resize: ProgressiveResize = ProgressiveResize()

    @property
    def early_epochs(self) -> int:
        """Epochs at the lower resolution; the last epoch is at the full one."""
        return (
            min(round(self.progressive_resize.fraction * self.epochs), self.epochs - 1)
            if self.progressive_resize.scale < 1
            else 0
        )


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A teacher and how it is listened to."""

    teacher: str
    teacher_weights: str = ""
    mode: Literal["hard", "soft"]
    alpha: float
    """Weight of the teacher's term; the true labels have 1 - alpha."""
    tau: float
    """Temperature of the soft targets; unused by hard distillation."""
    reduction: Literal["batchmean", "mean"]
    """How the KL divergence is averaged: over images (the paper's Eq. 2) or over images and classes (its code)."""
    dist_token: bool
    """Whether the student has a distillation token of its own."""
    finetune_teacher: Literal["auto", "head", "full", "none"] = "auto"
    """How a teacher is fine-tuned on the data: `auto` if it knows other classes only, `head` and `full` always."""
    teacher_img_size: int = 0
    """Side of the teacher's input in pixels, 0 for its own."""
    teacher_input: Literal["mixed", "unmixed"]
    """`mixed`: the student's mixed images, as in the paper; `unmixed`: the views before mixing, whose words are mixed."""
    views: int
    """Views of an image that come again and again, 0 for new ones every epoch."""
    view_seed: int = 0
    """Seed of the views, apart from the run's, so that runs of every seed share the teacher's words."""
    logits_topk: int
    """Classes of a soft word that are kept one by one; the rest of its mass is spread over the others."""
    teacher_cache: str = ""
    """Folder of the teacher's words; empty: one named by what they depend on; `off`: none is kept."""
    allow_weak_teacher: bool = False
    """Go on with a teacher that scores near chance."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, resolved: what `run.toml` holds."""

    model: str
    data: str
    recipe: Recipe
    weights: str = ""
    """File with the weights to start from; empty: the published ones if the recipe is `pretrained`."""
    distill: DistillConfig | None = None
    seed: int = 0
    split_seed: int = -1
    """Seed by which validation images are held out of data that has none; -1: the run's."""
    workers: int = -1
    """Processes that decode and augment; -1: chosen from the machine."""
    micro_batch_size: int = 0
    """Images that a process takes at a time, their gradients being added up; 0: its whole share of a batch."""
    save_every: str = "5m"
    """Between two saves of the state: `500` steps, `90s`, `10m`, `1h`."""
    loss_spike_factor: float = 3.0
    """A loss this many times both its recent mean and that of guessing stops the run; 0: none does."""
    on_bad_image: Literal["skip", "stop"] = "skip"
    """What an image that cannot be read does: it is left out and named, or stops the run."""
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    """Whether torch compiles the student, block by block."""
    output_dir: str = ""
    """The run's folder; empty: a new one under runs/."""

    @property
    def data_seed(self) -> int:
        """The seed of the split."""
        return self.seed if self.split_seed < 0 else self.split_seed


MACHINE_SETTINGS = (
    "device",
    "precision",
    "compile",
    "workers",
    "micro_batch_size",
    "save_every",
    "loss_spike_factor",
    "on_bad_image",
    "output_dir",
)
"""What of a `TrainConfig` a run may change when it is resumed: where and how it runs, not what it learns."""


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Say in which settings two runs differ, but for the machine's."""
    was, now = (
        flat({k: v for k, v in to_dict(c).items() if k not in MACHINE_SETTINGS}) for c in (old, new)
    )
    return [
        f"{k} is {was.get(k, 'not set')}, not {now.get(k, 'set')}"
        for k in {**was, **now}
        if was.get(k) != now.get(k)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under their dotted names."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        )
    return result


def override(config: C, changes: Mapping[str, Any]) -> C:
    """Return `config` with dotted keys replaced, each value converted to its field's type.

    Raises:
        ConfigError: a key that does not exist (with the nearest one), or a value that does not fit.
    """
    for key, value in changes.items():
        config = _replace(config, key.split("."), value, key)
    return config


def _replace(config: C, path: list[str], value: Any, whole: str) -> C:
    hints = get_type_hints(type(config))
    if path[0] not in hints:
        prefix = whole.removesuffix(".".join(path))
        known = [prefix + name for name in setting_names(type(config))]
        raise ConfigError(f"There is no setting {whole!r}.", did_you_mean(whole, known))
    current = getattr(config, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(type(current)):
            raise ConfigError(
                f"{whole!r} cannot be set: {path[0]!r} holds no settings of its own here."
            )
        new: Any = _replace(current, path[1:], value, whole)
    else:
        new = convert(value, hints[path[0]], whole)
    return dataclasses.replace(config, **{path[0]: new})  # type: ignore[type-var]


def setting_names(kind: type, prefix: str = "") -> list[str]:
    """List the dotted names of every setting of a config class."""
    names = []
    for name, hint in get_type_hints(kind).items():
        inner = next((t for t in (hint, *get_args(hint)) if dataclasses.is_dataclass(t)), None)
        if isinstance(inner, type):
            names += setting_names(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def convert(value: Any, hint: Any, name: str) -> Any:
    """Convert a text or TOML value to the type of a field; raise `ConfigError` if it does not fit."""
    origin, args = get_origin(hint), get_args(hint)
    try:
        if origin is Literal:
            if value in args:
                return value
            raise ValueError(f"expected one of {', '.join(map(str, args))}")
        if origin in (Union, types.UnionType):
            return None if value is None else convert(value, args[0], name)
        if origin is tuple:
            parts = value.strip("()[] ").split(",") if isinstance(value, str) else list(value)
            if len(parts) != len(args):
                raise ValueError(f"expected {len(args)} numbers")
            return tuple(convert(p, a, name) for p, a in zip(parts, args, strict=True))
        if dataclasses.is_dataclass(hint):
            if isinstance(value, Mapping):
                return from_dict(hint, value, name)  # type: ignore[arg-type]
            if isinstance(value, cast(type, hint)):
                return value
            raise ValueError("it is a group of settings")
        if hint is bool:
            return _boolean(value)
        if hint is str and not isinstance(value, str):
            raise ValueError("expected a text")
        return _number(value, hint) if hint in (int, float) else hint(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{name} = {reprlib.repr(value)} does not fit: {error}.") from error


def _number(value: Any, kind: type) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise ValueError("expected a whole number")
    number = kind(value)
    if kind is float and not math.isfinite(number):
        raise ValueError("expected a finite number")
    return number


def _boolean(value: Any) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).lower() not in known:
        raise ValueError("expected true or false")
    return known[str(value).lower()]


def from_dict(kind: type[C], values: Mapping[str, Any], where: str) -> C:
    """Build a config from nested mappings; raise `ConfigError` on a missing, unknown or unfit entry."""
    hints = get_type_hints(kind)
    if unknown := [k for k in values if k not in hints]:
        raise ConfigError(
            f"{where} has no setting {unknown[0]!r}.", did_you_mean(unknown[0], hints)
        )
    given = {k: convert(v, hints[k], f"{where}.{k}") for k, v in values.items()}
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    absent = [
        n
        for n, f in fields.items()
        if n not in given
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if absent:
        raise ConfigError(f"{where} lacks the setting {absent[0]!r}.")
    return kind(**given)


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as nested dicts that TOML can hold (None is left out)."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items() if v is not None}
        return list(value) if isinstance(value, tuple) else value

    return {k: plain(v) for k, v in dataclasses.asdict(config).items() if v is not None}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; raise `ConfigError` if it is missing or broken."""
    try:
        text = read_text(path, MAX_TOML)
        if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
            raise ValueError(
                "it is nested too deeply"
            )  # tomllib takes minutes for a key of ten thousand parts
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply.") from error
    except ValueError as error:  # no TOML, no UTF-8, a number that Python will not read
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


def write_toml(config: Any) -> str:
    """Return a config as TOML text."""
    import tomli_w

    return tomli_w.dumps(to_dict(config))

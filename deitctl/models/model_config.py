"""The config of a classifier's weights, in timm's config.json layout, with its checks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from deitctl.config import MAX_CHANS, MAX_SIZE
from deitctl.errors import ConfigError, ModelError, did_you_mean
from deitctl.models.tasks import CLASSIFICATION, DEFAULT_THRESHOLD, MULTILABEL, TASKS
from deitctl.sizes import ImageSize, format_size, height_width, long_side, make_size, short_side

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # timm/data/constants.py; DeiT's datasets.py
IMAGENET_STD = (0.229, 0.224, 0.225)
HEADS = ("cls", "dist", "avg-logits", "avg-probs")
# Limits on what an untrusted config.json may claim, so that it cannot exhaust memory or time.
MAX_RESIZE = 4096  # pixels of the side before the crop
MAX_CLASSES = 1_000_000
MAX_ARGUMENT = 16_384  # of a number in model_args
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
CREATE_MODEL_ARGS = (
    "model_name",
    "checkpoint_path",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
    "features_only",
)
"""Refused in model_args: arguments of `timm.create_model`, of which one unpickles a file."""


class ValueRange(NamedTuple):
    """The stored values that become black and white, of images of more than 8 bits."""

    low: float
    """Becomes 0."""
    high: float
    """Becomes 255."""
    clips: bool = False
    """Whether values outside are clipped, as the user wants; else such an image is refused."""


def parse_value_range(text: str) -> ValueRange | None:
    """Parse `LOW,HIGH`, which clips what lies outside; None for `auto`.

    Raises:
        ConfigError: it is neither.
    """
    if text in ("", "auto"):
        return None
    try:
        low, high = map(float, text.split(","))
        if math.isfinite(low) and math.isfinite(high) and low < high:
            return ValueRange(low, high, clips=True)
    except ValueError:
        pass
    raise ConfigError(
        f"--value-range = {text!r} is neither auto nor LOW,HIGH with LOW below HIGH.",
        "Of 12-bit images it is 0,4095; of a CT window for example --value-range=-1024,3071.",
    )


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The evaluation transform: resize, center crop, normalize.

    The image is resized to cover `img_size / crop_pct` pixels and the center `img_size` is cropped
    (`crop_mode="squash"` resizes both sides to that size instead, whatever the aspect ratio); then
    values in 0..1 are normalized by `mean` and `std` per channel.
    """

    img_size: ImageSize = 224
    """Side of the input in pixels, or its height and width."""
    crop_pct: float = 0.9  # timm's for DeiT at 224; the released code uses 0.875
    """Side of the crop relative to the resized image."""
    interpolation: str = "bicubic"
    """Filter of the resize."""
    crop_mode: str = "center"
    """`center`, or `squash` for a resize of both sides."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Of the values of each channel, in 0..1: red, green and blue, or gray alone, or others."""
    std: tuple[float, ...] = IMAGENET_STD
    """Of the same."""
    value_range: ValueRange | None = None
    """Of images of more than 8 bits whose files state none, as in training; None: of no image there."""

    @property
    def resize_to(self) -> ImageSize:
        """Pixels that the image covers before the crop (timm rounds down): its short side, or a
        height and a width of which one is met."""
        height, width = self.hw
        return make_size(int(height / self.crop_pct), int(width / self.crop_pct))

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width of the input, in pixels."""
        return height_width(self.img_size)

    @property
    def without_normalization(self) -> Preprocessing:
        """The same resize and crop: models that differ in mean and std alone share their pixels."""
        return replace(self, mean=(0.0,) * self.in_chans, std=(1.0,) * self.in_chans)

    @property
    def in_chans(self) -> int:
        """Channels of the input: 3 of RGB, 1 of gray."""
        return len(self.mean)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A classifier's architecture, classes, preprocessing and head rule."""

    architecture: str
    """timm's name."""
    num_classes: int
    class_names: tuple[str, ...] | None = None
    """Names that data is matched by (WordNet ids for ImageNet), in the order of the logits."""
    descriptions: tuple[str, ...] | None = None
    """Names for people, where they differ."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    head: str = "cls"
    """One of `HEADS`, or `auto`."""
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """By head rule: the divisor of the logits that calibrates them (Guo et al. 2017, §4.2)."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of `timm.create_model`."""
    task: str = CLASSIFICATION
    """One of `TASKS`."""
    thresholds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of a multi-label model, by head rule: the calibrated probability from which each class is
    predicted, in the order of the logits. A rule without any has `DEFAULT_THRESHOLD` for all."""

    @property
    def is_multilabel(self) -> bool:
        """Whether an image has any number of classes, each with a probability of its own."""
        return self.task == MULTILABEL

    def list_thresholds(self, head: str) -> tuple[float, ...]:
        """Return the probability from which a head rule predicts each class, see `choose_labels`."""
        return self.thresholds.get(head) or (DEFAULT_THRESHOLD,) * self.num_classes

    def with_task(self, task: str = "auto", threshold: float | None = None) -> ModelConfig:
        """Return this config with another task, or another threshold.

        Args:
            task: a name of `TASKS`; `auto` for its own.
            threshold: of all classes under any head rule, 0..1; None for its own.

        Raises:
            ConfigError: no such task, or a threshold of a model with one class an image.
        """
        if task not in ("auto", *TASKS):
            raise ConfigError(
                f"There is no task {task!r}.",
                f"{did_you_mean(task, TASKS)} There are: auto, {', '.join(TASKS)}.".strip(),
            )
        changed = self if task in ("auto", self.task) else replace(self, task=task, thresholds={})
        if threshold is None:
            return changed
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold = {threshold}: it is a probability, 0 to 1.")
        if not changed.is_multilabel:
            raise ConfigError(
                f"--threshold is for several labels an image, and {self.architecture} has one.",
                "If it was trained on several, add --task multilabel.",
            )
        thresholds = (float(threshold),) * self.num_classes
        return replace(changed, thresholds=dict.fromkeys(HEADS, thresholds))

    def label(self, index: int) -> str:
        """Return the name of class `index` for people."""
        if self.descriptions is not None:
            return self.descriptions[index]
        return self.class_names[index] if self.class_names is not None else f"class {index}"

    def temperature(self, head: str) -> float:
        """Return the temperature of a head rule."""
        return self.temperatures.get(head, 1.0)

    def at_size(self, img_size: ImageSize) -> ModelConfig:
        """Return this config for another input size, in pixels."""
        return replace(self, preprocessing=replace(self.preprocessing, img_size=img_size))

    def with_channels(self, in_chans: int) -> ModelConfig:
        """Return this config for images of other channels, see `fit_channels`."""
        pre = self.preprocessing
        mean, std = (fit_channels(values, in_chans) for values in (pre.mean, pre.std))
        return replace(self, preprocessing=replace(pre, mean=mean, std=std))

    def with_value_range(self, value_range: ValueRange | None) -> ModelConfig:
        """Return this config with another range of images of more than 8 bits."""
        return replace(self, preprocessing=replace(self.preprocessing, value_range=value_range))


def to_timm_config(
    model_config: ModelConfig,
    *,
    classifier: tuple[str, ...],
    first_conv: str,
    fixed_input_size: bool,
) -> dict[str, Any]:
    """Return the config.json that `timm.create_model("local-dir:...")` reads.

    Args:
        model_config: what it says.
        classifier: the layers that timm replaces for another class count.
        first_conv: the layer that it replaces for other input channels.
        fixed_input_size: whether the architecture is built for one input size.
    """
    pre = model_config.preprocessing
    config: dict[str, Any] = {
        "architecture": model_config.architecture,
        "num_classes": model_config.num_classes,
        # without num_classes: transformers reads this file too and would get it twice
        "model_args": dict(model_config.model_args),
        "pretrained_cfg": {
            "num_classes": model_config.num_classes,
            "input_size": [pre.in_chans, *pre.hw],
            "fixed_input_size": fixed_input_size,
            "interpolation": pre.interpolation,
            # Stated even where it is the default: without it timm crops DeiT at 0.875 instead of
            # 0.9.
            "crop_pct": pre.crop_pct,
            "crop_mode": pre.crop_mode,
            "mean": list(pre.mean),
            "std": list(pre.std),
            "first_conv": first_conv,
            # timm takes a string for one layer, a sequence for several.
            "classifier": list(classifier) if len(classifier) > 1 else classifier[0],
        },
        "deitctl": {"head": model_config.head}
        | ({"temperatures": dict(model_config.temperatures)} if model_config.temperatures else {})
        | ({"value_range": list_range(pre.value_range)} if pre.value_range is not None else {})
        | list_task(model_config),
    }
    if model_config.class_names is not None:
        config["label_names"] = list(model_config.class_names)
    if model_config.class_names is not None and model_config.descriptions is not None:
        config["label_descriptions"] = dict(
            zip(model_config.class_names, model_config.descriptions, strict=True)
        )
    return config


def from_timm_config(config: Mapping[str, Any], where: str) -> ModelConfig:
    """Parse a timm config.json, ours or anybody's.

    Raises:
        ModelError: a field is missing, invalid or contradicts another; `where` names the file.
    """
    try:
        pretrained = config.get("pretrained_cfg") or {}
        own = config.get("deitctl") or {}
        class_names = _parse_names(config.get("label_names"))
        num_classes = int(config.get("num_classes", pretrained.get("num_classes", 1000)))
        model_args = dict(config.get("model_args") or {})
        # timm lets model_args override the weights' own config
        num_classes = int(model_args.pop("num_classes", num_classes))
        temperatures = dict(own.get("temperatures") or {})
        model_config = ModelConfig(
            architecture=str(config["architecture"]),
            num_classes=num_classes,
            class_names=class_names,
            descriptions=_parse_descriptions(class_names, config.get("label_descriptions")),
            preprocessing=replace(
                parse_preprocessing(pretrained),
                value_range=read_value_range(own.get("value_range")),
            ),
            # timm's files know no head rule: `auto` is resolved once the heads are known.
            head=str(own.get("head", "auto")),
            temperatures={str(rule): float(t) for rule, t in temperatures.items()},
            model_args=model_args,
            task=str(own.get("task", CLASSIFICATION)),
            thresholds=read_thresholds(own.get("thresholds")),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ModelError(
            f"{where} is not a model's config.json: {repr(error)[:200]}.",
            "Expected timm's layout with 'architecture'.",
        ) from error
    if problem := find_absurd_value(model_config):
        raise ModelError(f"{where} is refused: {problem}.", "Read it before you trust its weights.")
    if class_names is not None and len(class_names) != num_classes:
        raise ModelError(
            f"{where} names {len(class_names)} classes but num_classes is {num_classes}."
        )
    return model_config


def list_task(model_config: ModelConfig) -> dict[str, Any]:
    """Return the task and thresholds of a multi-label model as configs state them; else nothing."""
    if not model_config.is_multilabel:
        return {}
    thresholds = {rule: list(values) for rule, values in model_config.thresholds.items()}
    return {"task": MULTILABEL} | ({"thresholds": thresholds} if thresholds else {})


def read_thresholds(stated: Any) -> dict[str, tuple[float, ...]]:
    """Return the thresholds that a config states, by head rule.

    Raises:
        TypeError: they are no lists of numbers.
    """
    if stated is None:
        return {}
    if not isinstance(stated, Mapping) or not all(
        isinstance(values, list) and all(type(v) in (int, float) for v in values)
        for values in stated.values()
    ):
        raise TypeError(
            f"thresholds are {str(stated)[:80]}, not a list of numbers for each head rule"
        )
    return {str(rule): tuple(map(float, values)) for rule, values in stated.items()}


def require_count(
    class_names: Sequence[str],
    num_classes: int | None,
    where: str,
    *,
    option: str = "--classes",
) -> None:
    """Raise `ModelError` unless there is a name for each of a head's classes.

    Args:
        class_names: of `option`.
        num_classes: of the head; None for weights without one.
        where: the weights' file or name.
        option: which names them.
    """
    if num_classes is None:
        raise ModelError(f"{where} has no classifier head, whose classes could have names.")
    if len(class_names) != num_classes:
        raise ModelError(
            f"{option} names {len(class_names)} classes, and {where} has {num_classes}.",
            "Name the classes that it was trained on, in their order.",
        )


def describe_replaced_names(
    own: Sequence[str] | None, class_names: Sequence[str], where: str
) -> str:
    """Return a clause on a model's own class names that others replace; empty if it has none, or the same.

    Args:
        own: the model's, None if it names none.
        class_names: as many, which replace them.
        where: the model's file or name.
    """
    pairs = zip(own or (), class_names, strict=own is not None)
    for former, name in pairs:
        if former != name:
            return f"the class names of {where} are replaced, {former!r} by {name!r} for example"
    return ""


def parse_preprocessing(pretrained_cfg: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing of timm's `pretrained_cfg`, with timm's defaults."""
    mean, std = pretrained_cfg.get("mean"), pretrained_cfg.get("std")
    input_size = pretrained_cfg.get("input_size")
    channels = 3 if input_size is None else int(input_size[0])
    if not 1 <= channels <= MAX_CHANS:
        raise ValueError(f"images of {channels} channels, where up to {MAX_CHANS} are read")
    return Preprocessing(
        img_size=224 if input_size is None else make_size(*map(int, input_size[-2:])),
        # timm's DEFAULT_CROP_PCT; DeiT's published configs say 0.9.
        crop_pct=float(pretrained_cfg.get("crop_pct") or 0.875),
        interpolation=str(pretrained_cfg.get("interpolation") or "bicubic"),
        crop_mode=str(pretrained_cfg.get("crop_mode") or "center"),
        mean=fit_channels(IMAGENET_MEAN, channels)
        if mean is None
        else read_channels(mean, channels),
        std=fit_channels(IMAGENET_STD, channels) if std is None else read_channels(std, channels),
    )


def read_channels(values: Any, channels: int = 3) -> tuple[float, ...]:
    """Return the values of each channel; one number stands for all.

    Raises:
        ValueError: they are not as many numbers, or one of them is none.
        TypeError: the same.
    """
    if isinstance(values, int | float):
        values = (values,) * channels
    if not isinstance(values, list | tuple) or len(values) != channels:
        number = {1: "its one channel", 3: "each of three channels"}.get(
            channels, f"each of {channels} channels"
        )
        raise ValueError(f"{str(values)[:80]} is not a number for {number}")
    return tuple(float(value) for value in values)


def fit_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return the mean or deviation of other channels: those of gray are the average of RGB's.

    The result for more of them stands in until it is measured on the training images.
    """
    if len(values) == channels:
        return tuple(values)
    return (round(sum(values) / len(values), 6),) * channels


def list_range(value_range: ValueRange) -> list[float | bool]:
    """Return a range as configs state it, see `read_value_range`."""
    return list(value_range if value_range.clips else value_range[:2])


def read_value_range(values: Any) -> ValueRange | None:
    """Return the range that a config or packed shards state: low, high and whether it clips; None for none.

    Raises:
        ValueError: it is no range.
        TypeError: the same.
    """
    if values is None:
        return None
    low, high, *rest = values
    low, high, clips = float(low), float(high), any(map(bool, rest))
    if not (math.isfinite(low) and math.isfinite(high) and low < high and len(rest) <= 1):
        raise ValueError(f"value_range is {str(values)[:80]}")
    return ValueRange(low, high, clips)


def _parse_names(values: Any) -> tuple[str, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise TypeError("the class names are not a list of strings")
    for value in values:
        value.encode()  # raises for half of a surrogate pair, which no text file can hold
    return tuple(values)


def _parse_descriptions(class_names: tuple[str, ...] | None, values: Any) -> tuple[str, ...] | None:
    if not class_names or not values:
        return None
    if isinstance(values, Mapping):
        return _parse_names([values.get(name, name) for name in class_names])
    return _parse_names(values) if len(values) == len(class_names) else None


def find_absurd_value(model_config: ModelConfig) -> str:
    """Describe a value that no model has or that would exhaust memory; empty for none."""
    pre, bad_arg = model_config.preprocessing, _find_bad_argument(model_config.model_args)
    name, temperatures = model_config.architecture, model_config.temperatures
    thresholds = model_config.thresholds
    counts = " or ".join(str(n) for n in sorted({len(values) for values in thresholds.values()}))
    is_valid = {
        f"architecture is {name[:80]!r}": re.fullmatch(r"[A-Za-z0-9_.\-]{1,120}", name),
        # A billion classes would be allocated as a head before any weight is compared.
        # None: a network without a classifier, a teacher of features.
        f"num_classes is {model_config.num_classes}": 0 <= model_config.num_classes <= MAX_CLASSES,
        f"the input has {format_size(pre.img_size)} pixels": short_side(pre.img_size) >= 1
        and long_side(pre.img_size) <= MAX_SIZE,
        f"crop_pct is {pre.crop_pct}": 0 < pre.crop_pct <= 8
        and short_side(pre.img_size) / pre.crop_pct >= 1
        and long_side(pre.img_size) / pre.crop_pct <= MAX_RESIZE,
        f"mean is {pre.mean}": all(math.isfinite(m) for m in pre.mean),
        f"model_args has {bad_arg}": not bad_arg,
        f"temperatures are {str(temperatures)[:80]}": all(
            rule in HEADS and MIN_TEMPERATURE <= t <= MAX_TEMPERATURE
            for rule, t in temperatures.items()
        ),
        f"std is {pre.std}": all(math.isfinite(s) and s > 0 for s in pre.std),
        f"task is {model_config.task[:80]!r}": model_config.task in TASKS,
        f"thresholds are {str(thresholds)[:80]}": all(
            rule in HEADS and all(0 <= t <= 1 for t in values)
            for rule, values in thresholds.items()
        ),
        f"{counts} thresholds are for {model_config.num_classes} classes": all(
            len(values) == model_config.num_classes for values in thresholds.values()
        ),
        "thresholds are of a model with one class an image": model_config.is_multilabel
        or not thresholds,
    }
    return next((problem for problem, valid in is_valid.items() if not valid), "")


def _find_bad_argument(model_args: Mapping[str, Any]) -> str:
    """Return the name of an argument that locates weights or is larger than any model's."""
    for name, value in model_args.items():
        values = value if isinstance(value, list) else [value]
        numbers = [v for v in values if isinstance(v, int | float)]
        if (
            # pretrained_cfg and pretrained_cfg_overlay name files and URLs to load.
            name.startswith("pretrained")
            or name in CREATE_MODEL_ARGS
            or len(values) > 64
            or not all(-MAX_ARGUMENT <= n <= MAX_ARGUMENT for n in numbers)
        ):
            return repr(name[:80])
    return ""

"""What must travel with weights so that they answer the same everywhere: the model card, in timm's config.json layout."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deitctl.errors import ModelError

IMAGENET_MEAN = (
    0.485,
    0.456,
    0.406,
)  # of ImageNet's training images; DeiT's datasets.py and timm's constants.py
IMAGENET_STD = (0.229, 0.224, 0.225)
HEADS = ("cls", "dist", "avg-logits", "avg-probs")
MAX_SIZE = 2048
"""Largest side of an input, pixels; timm's largest is 1,280."""
MAX_CLASSES = 1_000_000
MAX_CROP = 4096
"""Pixels that a side is resized to before the crop, at most."""
LARGEST_ARGUMENT = 16_384
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
NOT_OF_A_MODEL = (
    "model_name",
    "checkpoint_path",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
    "features_only",
)
"""What timm's `create_model` takes for itself: one of them is a path that it would unpickle."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the model's input.

    The short side is resized to `img_size / crop_pct` pixels, then the center `img_size` square is cut out
    (`crop_mode="squash"` resizes both sides to that size instead, whatever the aspect ratio), then values in 0..1
    are normalized by `mean` and `std`, per RGB channel.
    """

    img_size: int = 224
    crop_pct: float = 0.9  # timm's for DeiT at 224; the released code evaluates at 0.875
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def resize_to(self) -> int:
        """Pixels of the short side before the crop (timm rounds down)."""
        return int(self.img_size / self.crop_pct)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """An architecture, its classes, its preprocessing and how its heads are joined.

    `class_names` are the names that data is matched by (WordNet ids for ImageNet), in the order of the logits;
    `descriptions` the names for people, where they differ. `head` is one of `HEADS`. `temperatures` are what the logits
    of a head rule are divided by before the softmax, so that the scores are right as often as they say (Guo et al. 2017,
    §4.2); a rule without one has 1.
    """

    architecture: str
    num_classes: int
    class_names: tuple[str, ...] | None = None
    descriptions: tuple[str, ...] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    head: str = "cls"
    temperatures: Mapping[str, float] = field(default_factory=dict)
    model_args: Mapping[str, Any] = field(default_factory=dict)

    def label(self, index: int) -> str:
        """Name class `index` for a person."""
        if self.descriptions is not None:
            return self.descriptions[index]
        return self.class_names[index] if self.class_names is not None else f"class {index}"

    def temperature(self, head: str) -> float:
        """Return the temperature of a head rule."""
        return self.temperatures.get(head, 1.0)

    def at_size(self, img_size: int) -> ModelConfig:
        """Return the card for another input size."""
        return replace(self, preprocessing=replace(self.preprocessing, img_size=img_size))


def to_timm_config(
    model_config: ModelConfig,
    *,
    classifier: tuple[str, ...],
    first_conv: str,
    fixed_input_size: bool,
) -> dict[str, Any]:
    """Return `model_config` as the config.json that `timm.create_model("local-dir:...")` reads.

    `classifier` and `first_conv` name the layers that timm replaces for other class counts and input channels; where
    `fixed_input_size` is true timm builds the model for its input size.
    """
    pre = model_config.preprocessing
    config: dict[str, Any] = {
        "architecture": model_config.architecture,
        "num_classes": model_config.num_classes,
        "model_args": dict(
            model_config.model_args
        ),  # not the classes: transformers, which reads this too, would name them twice
        "pretrained_cfg": {
            "num_classes": model_config.num_classes,
            "input_size": [3, pre.img_size, pre.img_size],
            "fixed_input_size": fixed_input_size,
            "interpolation": pre.interpolation,
            "crop_pct": pre.crop_pct,
            "crop_mode": pre.crop_mode,
            "mean": list(pre.mean),
            "std": list(pre.std),
            "first_conv": first_conv,
            "classifier": list(classifier) if len(classifier) > 1 else classifier[0],
        },
        "deitctl": {"head": model_config.head}
        | ({"temperatures": dict(model_config.temperatures)} if model_config.temperatures else {}),
    }
    if model_config.class_names is not None:
        config["label_names"] = list(model_config.class_names)
    if model_config.class_names is not None and model_config.descriptions is not None:
        config["label_descriptions"] = dict(
            zip(model_config.class_names, model_config.descriptions, strict=True)
        )
    return config


def from_timm_config(config: Mapping[str, Any], where: str) -> ModelConfig:
    """Read a timm config.json, ours or anybody's.

    Raises:
        ModelError: a field is missing or contradicts another; `where` names the file.
    """
    try:
        pretrained = config.get("pretrained_cfg") or {}
        names = _texts(config.get("label_names"))
        described = config.get("label_descriptions")
        own = config.get("deitctl") or {}
        num_classes = int(config.get("num_classes", pretrained.get("num_classes", 1000)))
        model_args = dict(config.get("model_args") or {})
        # timm lets model_args overrule what the weights' config says
        num_classes = int(model_args.pop("num_classes", num_classes))
        pre = Preprocessing(
            img_size=int(pretrained.get("input_size", (3, 224, 224))[-1]),
            crop_pct=float(
                pretrained.get("crop_pct") or 0.875
            ),  # timm's default where the config says nothing
            interpolation=str(pretrained.get("interpolation", "bicubic")),
            crop_mode=str(pretrained.get("crop_mode") or "center"),
            mean=_triple(pretrained.get("mean", IMAGENET_MEAN)),
            std=_triple(pretrained.get("std", IMAGENET_STD)),
        )
        model_config = ModelConfig(
            architecture=str(config["architecture"]),
            num_classes=num_classes,
            class_names=names,
            descriptions=_descriptions(names, described),
            preprocessing=pre,
            head=str(own.get("head", "auto")),
            temperatures={
                str(rule): float(t) for rule, t in dict(own.get("temperatures") or {}).items()
            },
            model_args=model_args,
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ModelError(
            f"{where} is not a model's config.json: {repr(error)[:200]}.",
            "Expected timm's layout with 'architecture'.",
        ) from error
    if absurd := _absurd(model_config):
        raise ModelError(f"{where} is not used: {absurd}.", "Read it before you trust its weights.")
    if model_config.class_names is not None and len(model_config.class_names) != num_classes:
        raise ModelError(
            f"{where} names {len(model_config.class_names)} classes but num_classes is {num_classes}."
        )
    return model_config


def _texts(values: Any) -> tuple[str, ...] | None:
    """Return a list of names; one that is no list, or holds what no text file can, is refused."""
    if values is None:
        return None
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise TypeError("the names of classes are not a list of texts")
    for value in values:
        value.encode()  # half of a surrogate pair raises
    return tuple(values)


def _absurd(model_config: ModelConfig) -> str:
    """Say what of a card no model has, or would take the memory or the time of the machine; empty for nothing."""
    pre = model_config.preprocessing
    rules = {
        f"architecture is {model_config.architecture[:80]!r}": re.fullmatch(
            r"[A-Za-z0-9_.\-]{1,120}", model_config.architecture
        ),
        f"num_classes is {model_config.num_classes}": 1 <= model_config.num_classes <= MAX_CLASSES,
        f"the input has {pre.img_size} pixels": 1 <= pre.img_size <= MAX_SIZE,
        f"crop_pct is {pre.crop_pct}": 0 < pre.crop_pct <= 8
        and 1 <= pre.img_size / pre.crop_pct <= MAX_CROP,
        f"mean is {pre.mean}": all(math.isfinite(m) for m in pre.mean),
        f"model_args has {_unfit(model_config.model_args)}": not _unfit(model_config.model_args),
        f"temperatures are {str(model_config.temperatures)[:80]}": all(
            rule in HEADS and MIN_TEMPERATURE <= t <= MAX_TEMPERATURE
            for rule, t in model_config.temperatures.items()
        ),
        f"std is {pre.std}": all(math.isfinite(s) and s > 0 for s in pre.std),
    }
    return next((what for what, fine in rules.items() if not fine), "")


def _unfit(model_args: Mapping[str, Any]) -> str:
    """Name an argument that says where weights are from and not what a model is, or is larger than any model's."""
    for name, value in model_args.items():
        numbers = value if isinstance(value, list) else [value]
        if name.startswith("pretrained") or name in NOT_OF_A_MODEL or len(numbers) > 64:
            return repr(name[:80])
        if any(
            isinstance(n, int | float) and not -LARGEST_ARGUMENT <= n <= LARGEST_ARGUMENT
            for n in numbers
        ):
            return repr(name[:80])
    return ""


def _triple(values: Any) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in values)
    return r, g, b


def _descriptions(names: tuple[str, ...] | None, described: Any) -> tuple[str, ...] | None:
    if not names or not described:
        return None
    if isinstance(described, Mapping):
        return _texts([described.get(n, n) for n in names])
    return _texts(described) if len(described) == len(names) else None

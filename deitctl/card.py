"""What must travel with weights so that they answer the same everywhere: the model card, in timm's config.json layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deitctl.errors import ModelError

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training images; DeiT's datasets.py and timm's constants.py
IMAGENET_STD = (0.229, 0.224, 0.225)
HEADS = ("cls", "dist", "avg-logits", "avg-probs")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes the model's input.

    The short side is resized to `img_size / crop_pct` pixels, then the centre `img_size` square is cut out
    (`crop_mode="squash"` resizes both sides to that size instead, whatever the aspect ratio), then values in 0..1
    are normalised by `mean` and `std`, per RGB channel.
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
class ModelCard:
    """An architecture, its classes, its preprocessing and how its heads are joined.

    `class_names` are the names that data is matched by (WordNet ids for ImageNet), in the order of the logits;
    `descriptions` the names for people, where they differ. `head` is one of `HEADS`.
    """

    architecture: str
    num_classes: int
    class_names: tuple[str, ...] | None = None
    descriptions: tuple[str, ...] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    head: str = "cls"
    model_args: Mapping[str, Any] = field(default_factory=dict)

    def label(self, index: int) -> str:
        """Name class `index` for a person."""
        if self.descriptions is not None:
            return self.descriptions[index]
        return self.class_names[index] if self.class_names is not None else f"class {index}"

    def at_size(self, img_size: int) -> ModelCard:
        """Return the card for another input size."""
        return replace(self, preprocessing=replace(self.preprocessing, img_size=img_size))


def to_timm_config(
    card: ModelCard, *, classifier: tuple[str, ...], first_conv: str, fixed_input_size: bool
) -> dict[str, Any]:
    """Return `card` as the config.json that `timm.create_model("local-dir:...")` reads.

    `classifier` and `first_conv` name the layers that timm replaces for other class counts and input channels; where
    `fixed_input_size` is true timm builds the model for its input size.
    """
    pre = card.preprocessing
    config: dict[str, Any] = {
        "architecture": card.architecture,
        "num_classes": card.num_classes,
        "model_args": {**card.model_args, "num_classes": card.num_classes},
        "pretrained_cfg": {
            "num_classes": card.num_classes,
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
        "deitctl": {"head": card.head},
    }
    if card.class_names is not None:
        config["label_names"] = list(card.class_names)
    if card.class_names is not None and card.descriptions is not None:
        config["label_descriptions"] = dict(zip(card.class_names, card.descriptions, strict=True))
    return config


def from_timm_config(config: Mapping[str, Any], where: str) -> ModelCard:
    """Read a timm config.json, ours or anybody's.

    Raises:
        ModelError: a field is missing or contradicts another; `where` names the file.
    """
    try:
        pretrained = config.get("pretrained_cfg") or {}
        names = config.get("label_names")
        described = config.get("label_descriptions")
        num_classes = int(config.get("num_classes", pretrained.get("num_classes", 1000)))
        model_args = dict(config.get("model_args") or {})
        # timm lets model_args overrule what the weights' config says
        num_classes = int(model_args.pop("num_classes", num_classes))
        pre = Preprocessing(
            img_size=int(pretrained.get("input_size", (3, 224, 224))[-1]),
            crop_pct=float(pretrained.get("crop_pct") or 0.875),  # timm's default where the config says nothing
            interpolation=str(pretrained.get("interpolation", "bicubic")),
            crop_mode=str(pretrained.get("crop_mode") or "center"),
            mean=_triple(pretrained.get("mean", IMAGENET_MEAN)),
            std=_triple(pretrained.get("std", IMAGENET_STD)),
        )
        card = ModelCard(
            architecture=str(config["architecture"]),
            num_classes=num_classes,
            class_names=tuple(str(n) for n in names) if names is not None else None,
            descriptions=_descriptions(names, described),
            preprocessing=pre,
            head=str(config.get("deitctl", {}).get("head", "auto")),
            model_args=model_args,
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{where} is not a model's config.json: {error!r}.", "Expected timm's layout with 'architecture'."
        ) from error
    if card.class_names is not None and len(card.class_names) != num_classes:
        raise ModelError(f"{where} names {len(card.class_names)} classes but num_classes is {num_classes}.")
    return card


def _triple(values: Any) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in values)
    return r, g, b


def _descriptions(names: Any, described: Any) -> tuple[str, ...] | None:
    if not names or not described:
        return None
    if isinstance(described, Mapping):
        return tuple(str(described.get(n, n)) for n in names)
    return tuple(str(d) for d in described) if len(described) == len(names) else None

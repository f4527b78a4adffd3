"""The image processors of transformers, as an evaluation transform."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deitctl.errors import ModelError
from deitctl.models.model_config import Preprocessing, read_channels

# Pillow's numbers of filters.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_HALF = (0.5, 0.5, 0.5)
_CLIP: Mapping[str, Any] = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "resample": 3,
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
    "default_to_square": False,
}
# What a class does where its file does not say: models/*/image_processing_*.py of transformers 5.24.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {
        "image_mean": _HALF,
        "image_std": _HALF,
        "resample": 2,
        "size": 224,
        "do_center_crop": False,
        "default_to_square": True,
    },
    "DeiT": {
        "image_mean": _HALF,
        "image_std": _HALF,
        "resample": 3,
        "size": 256,
        "crop_size": 224,
        "do_center_crop": True,
        "default_to_square": True,
    },
    "CLIP": _CLIP,
    "Bit": _CLIP,
}
_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}


def read_processor(stored: Any, model_type: str, where: str) -> Preprocessing:
    """Return what a preprocessor_config.json does to an image.

    Args:
        stored: its JSON value.
        model_type: of the config.json beside it, for a file that does not name its class.
        where: the file, for messages.

    Raises:
        ModelError: `Preprocessing` cannot say it.
        KeyError, TypeError, ValueError: it is malformed.
    """
    if not isinstance(stored, dict):
        raise TypeError("it is no JSON object")
    stated = {key: value for key, value in stored.items() if value is not None}
    name = str(stated.get("image_processor_type") or stated.get("feature_extractor_type") or "")
    kind = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", name)
    kind = kind or ("DeiT" if model_type == "deit" else "ViT")
    if kind not in _DEFAULTS:
        raise _refuse(where, f"it is of {name[:60]}")
    processor = {**_DEFAULTS[kind], **stated}
    if other := [k for k, v in stated.items() if k.startswith("do_") and v and k not in _STEPS]:
        raise _refuse(where, f"it has {other[0][:60]}")
    if not processor.get("do_resize", True):
        raise _refuse(where, "images keep their size")
    factor = float(processor.get("rescale_factor", 1 / 255))
    is_scaled = processor.get("do_rescale", True) and abs(factor * 255 - 1) < 1e-6
    if not is_scaled or processor.get("rescale_offset"):
        raise _refuse(where, "values are scaled to another range than 0..1")
    resized, squash = _read_size(processor["size"], bool(processor["default_to_square"]))
    cropped, is_square = resized, squash
    if processor["do_center_crop"]:
        cropped, is_square = _read_size(processor["crop_size"], True)
    if not is_square or cropped > resized:
        raise _refuse(where, "its images are not cropped to a square")
    crop_pct = cropped / resized
    if int(cropped / crop_pct) != resized:  # rounded down, as timm does
        crop_pct = cropped / (resized + 0.5)
    if int(processor["resample"]) not in _RESAMPLE:
        raise ValueError(f"resample = {processor['resample']}")
    normalizes = processor.get("do_normalize", True)
    return Preprocessing(
        img_size=cropped,
        crop_pct=crop_pct,
        interpolation=_RESAMPLE[int(processor["resample"])],
        crop_mode="squash" if squash else "center",
        mean=read_channels(processor["image_mean"] if normalizes else (0, 0, 0)),
        std=read_channels(processor["image_std"] if normalizes else (1, 1, 1)),
    )


def _refuse(where: str, what: str) -> ModelError:
    return ModelError(
        f"{where} says a preprocessing that deitctl has not ({what}): images are resized, cropped at "
        "the center, scaled to 0..1 and normalized.",
        "Use it with transformers itself.",
    )


def _read_size(value: Any, square: bool) -> tuple[int, bool]:
    """Return a side in pixels, and whether both sides get it, whatever the aspect ratio.

    Args:
        value: a number, a pair, or a dictionary.
        square: whether a number is that of both sides, as in processors of ViT and DeiT; the short
            side's in CLIP's.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return _require_side(value), square
    if isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if not isinstance(value, Mapping) or not value.keys() <= {"shortest_edge", "height", "width"}:
        raise ValueError(f"size = {str(value)[:80]}")
    if "shortest_edge" in value:
        return _require_side(value["shortest_edge"]), False
    if value["height"] != value["width"]:
        raise ValueError(f"images of {value['height']} x {value['width']} pixels")
    return _require_side(value["height"]), True


def _require_side(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"a side of {str(value)[:40]} pixels")
    return value

"""Settings that trainers store beside weights: the architecture's name, and how images were prepared."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from deitctl.config import MAX_SIZE
from deitctl.models.pickles import StandIn
from deitctl.sizes import long_side, parse_size

# deit, timm, DINO and MAE: `args`; Lightning: `hyper_parameters`; own loops: the others.
_SETTINGS = ("args", "hyper_parameters", "config", "cfg", "opt", "data_config", "pretrained_cfg")
_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


def find_architecture(loaded: Any) -> str:
    """Return the architecture's name that timm (`arch`) or deit (`args.model`) stored."""
    if not isinstance(loaded, dict):
        return ""
    stored = [loaded.get("arch"), *(s.get("model") for s in _list_settings(loaded, ("args",)))]
    names = [n for n in stored if isinstance(n, str) and re.fullmatch(r"[\w.]{1,80}", n)]
    return names[0] if names else ""


def read_preprocessing(loaded: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the values of `Preprocessing` that a checkpoint's settings state, by timm's options.

    Returns:
        The values, and sentences on those that cannot be used. Settings that are None or empty, as
        timm's are where the model decides, count as not stated.
    """
    stated: dict[str, Any] = {}
    notes: list[str] = []
    for settings in _list_settings(loaded, _SETTINGS):
        for key, name in _OPTIONS.items():
            value = settings.get(key)
            if value is None or value in ("", "random") or name in stated:
                continue
            parsed = _parse(name, value)
            if parsed is None:
                notes.append(f"its setting {key} = {str(value)[:40]!r} is not used")
            else:
                stated[name] = parsed
    mean, std = stated.pop("mean", None), stated.pop("std", None)
    if pair := pair_channels(mean, std):
        stated["mean"], stated["std"] = pair
    elif mean or std:
        notes.append(f"its settings' mean {mean} and std {std} are not used")
    return stated, notes


_OPTIONS = {
    "mean": "mean",
    "std": "std",
    "crop_pct": "crop_pct",
    "eval_crop_ratio": "crop_pct",  # deit's main.py
    "crop_mode": "crop_mode",
    "interpolation": "interpolation",
    "img_size": "img_size",
    "input_size": "img_size",
}
"""timm's names of options, and those of `Preprocessing`."""


def _list_settings(loaded: Any, keys: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    if not isinstance(loaded, dict):
        return
    for key in keys:
        value = loaded.get(key)
        value = value.state if isinstance(value, StandIn) else value
        if isinstance(value, dict):
            yield value


def _parse(name: str, value: Any) -> Any:
    """Return a value as `Preprocessing` has it; None if it cannot be one."""
    if name in ("mean", "std"):
        return value if isinstance(value, list | tuple) else None
    if name == "img_size":
        try:  # a list ends with height and width: (3, 224, 224), (224, 224), (224,)
            size = parse_size(list(value[-2:]) if isinstance(value, list | tuple) else value)
        except ValueError:
            return None
        return size if 0 < long_side(size) <= MAX_SIZE else None
    if name == "crop_pct":
        is_share = isinstance(value, int | float) and 0.05 <= value <= 1
        return float(value) if is_share else None
    allowed = _FILTERS if name == "interpolation" else ("center", "squash")
    return value if value in allowed else None


def pair_channels(
    mean: Any, std: Any
) -> tuple[tuple[float, float, float], tuple[float, float, float]] | None:
    """Return mean and std of images in 0..1 (one number stands for three), None if they are none."""
    channels: list[list[float]] = []
    for values in (mean, std):
        if not isinstance(values, list | tuple) or len(values) not in (1, 3):
            return None
        if not all(isinstance(v, int | float) and math.isfinite(v) and v >= 0 for v in values):
            return None
        channels.append([float(v) for v in values] * (3 // len(values)))
    if min(channels[1]) <= 0:
        return None
    # Of values in 0..255: (255 x - mean) / std is the same with both divided by 255.
    scale = 255 if max(*channels[0], *channels[1]) > 1 else 1
    (r, g, b), (r_std, g_std, b_std) = ([v / scale for v in values] for values in channels)
    return (r, g, b), (r_std, g_std, b_std)

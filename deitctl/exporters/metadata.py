"""The metadata of an export: its model, classes, preprocessing and golden sample."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deitctl import __version__
from deitctl.errors import ExportError
from deitctl.exporters.golden import GOLDEN, make_golden_input, make_golden_sample
from deitctl.exporters.network import BareClassifier, ExportedClassifier
from deitctl.exporters.verification_images import compute_reference
from deitctl.models.model_config import ModelConfig, ValueRange, read_value_range
from deitctl.paths import read_json, write_json

METADATA = "deitctl.json"
FORMAT = "format"
BARE_LAYOUT = "NCHW float32"


def collect_metadata(
    network: ExportedClassifier, model_config: ModelConfig, to: str
) -> dict[str, str]:
    """Return an export's metadata: `describe_model`'s, the format `to` and the golden sample."""
    pre = model_config.preprocessing
    pixels = make_golden_input(pre.img_size, pre.in_chans)
    # The model's own logits, not the traced graph's: a mistake in the graph must fail its golden
    # sample.
    logits = compute_reference(network.model, model_config, network.head, pixels)[0, 0]
    metadata = describe_model(model_config, network.head, bare=isinstance(network, BareClassifier))
    return {**metadata, FORMAT: to, GOLDEN: make_golden_sample(logits, pre.img_size, pre.in_chans)}


def describe_model(model_config: ModelConfig, head: str, *, bare: bool = False) -> dict[str, str]:
    """Return a model's metadata: version, architecture, classes, and what a reader preprocesses.

    Args:
        model_config: the model's config.
        head: the rule by which the heads were fused.
        bare: whether the network is a `BareClassifier`.
    """
    pre = model_config.preprocessing
    preprocessing: dict[str, Any] = {
        "img_size": pre.img_size,
        "resize_to": pre.resize_to,
        "crop_pct": pre.crop_pct,
        "crop_mode": pre.crop_mode,
        "interpolation": pre.interpolation,
        "channels": {1: "L", 3: "RGB"}.get(pre.in_chans, f"{pre.in_chans} bands"),
        "layout": BARE_LAYOUT if bare else "NHWC uint8",
        "normalization": {
            "where": "left to the reader" if bare else "inside the network",
            "mean": pre.mean,
            "std": pre.std,
        },
    }
    if pre.value_range is not None:
        preprocessing["value_range"] = pre.value_range
    # ONNX's custom metadata and OpenVINO's rt_info hold strings alone, so all formats do.
    metadata = {
        "deitctl_version": __version__,
        "architecture": model_config.architecture,
        "head": head,
        "temperature": repr(model_config.temperature(head)),
        "preprocessing": json.dumps(preprocessing),
    }
    if model_config.is_multilabel:
        metadata["task"] = model_config.task
        metadata["thresholds"] = json.dumps(model_config.list_thresholds(head))
    if model_config.class_names is not None:
        metadata["class_names"] = json.dumps(model_config.class_names, ensure_ascii=False)
    if model_config.descriptions is not None:
        metadata["descriptions"] = json.dumps(model_config.descriptions, ensure_ascii=False)
    return metadata


def read_stated_range(metadata: Mapping[str, str]) -> ValueRange | None:
    """Return the value range in an export's metadata; None if there is none.

    Raises:
        ExportError: it cannot be read.
    """
    try:
        return read_value_range(json.loads(metadata.get("preprocessing", "{}")).get("value_range"))
    except (ValueError, TypeError, AttributeError) as error:
        raise ExportError(
            "The export has unreadable metadata: preprocessing.", "Export it again."
        ) from error


def write_metadata(folder: Path, metadata: Mapping[str, str]) -> None:
    """Write a folder's deitctl.json, atomically."""
    write_json(folder / METADATA, dict(metadata))


def read_metadata(folder: Path) -> dict[str, str]:
    """Read a folder's deitctl.json.

    Raises:
        ExportError: there is none, or one that cannot be read.
    """
    path = folder / METADATA
    if not path.is_file():
        raise ExportError(
            f"{folder} has no {METADATA}: it was not exported by deitctl, or by an older one."
        )
    try:
        metadata = read_json(path)
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}", "Export it again.") from error
    if not isinstance(metadata, dict) or not all(
        isinstance(text, str) for item in metadata.items() for text in item
    ):
        raise ExportError(f"{path} has metadata that cannot be read.", "Export it again.")
    return metadata

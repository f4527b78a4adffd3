"""Keeps fitted thresholds and temperatures in the config.json of a model's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deitctl.models.checkpoint_io import CONFIG
from deitctl.paths import read_json, write_json

OWN = "deitctl"
"""Key of config.json below which our own values are."""


def store_thresholds(folder: Path, thresholds: Sequence[float]) -> None:
    """Keep the probabilities from which a model predicts its classes, in the order of its logits."""
    _store(folder, {"thresholds": list(thresholds)})


def store_temperatures(folder: Path, temperatures: Mapping[str, float], head: str) -> None:
    """Keep the temperature of each head rule.

    Thresholds that the folder has are changed with them, so that the same images reach them.

    Args:
        folder: of the model.
        temperatures: by head rule.
        head: whose probabilities the thresholds are of.
    """
    own = read_json(folder / CONFIG).get(OWN) or {}
    values: dict[str, object] = {"temperatures": dict(temperatures)}
    if (thresholds := own.get("thresholds")) is not None and head in temperatures:
        factor = (own.get("temperatures") or {}).get(head, 1.0) / temperatures[head]
        values["thresholds"] = scale_thresholds(thresholds, factor)
    _store(folder, values)


def scale_thresholds(thresholds: Sequence[float], factor: float) -> list[float]:
    """Return the probabilities that thresholds become where all logits are multiplied by a factor."""
    probs = np.asarray(thresholds, np.float64)
    with np.errstate(divide="ignore", over="ignore"):
        logits = np.log(probs) - np.log1p(-probs)
        scaled: list[float] = (1 / (1 + np.exp(-factor * logits))).tolist()
    return scaled


def _store(folder: Path, values: Mapping[str, object]) -> None:
    config = read_json(folder / CONFIG)
    config[OWN] = {**(config.get(OWN) or {}), **values}
    write_json(folder / CONFIG, config)

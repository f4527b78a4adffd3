"""Keeps fitted thresholds and temperatures in the config.json of a model's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deitctl.evaluation.multilabel_result import MultilabelResult, Result
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.models.checkpoint_io import CONFIG, load_model_config
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


def save_temperatures(result: Result, reporter: Reporter) -> bool:
    """Store the fitted temperatures in the folder of a result's model; warn and return whether there are any."""
    calibration = result.calibration
    if calibration is None:
        score = "" if isinstance(result, MultilabelResult) else f" (top-1 {result.top1:.1f} %)"
        reporter.warn(
            f"No temperature fits {result.model} on {result.data}{score}, "
            "so none is stored. Use more images, among them some that it predicts wrongly."
        )
        return False
    folder = expand_home(result.model)
    store_temperatures(folder, calibration.temperatures, result.head)
    reporter.note(
        f"Stored in {folder / CONFIG}: temperature {calibration.temperature:.3f} (head {result.head}); "
        f"expected calibration error {result.ece:.4f} -> {calibration.ece:.4f}."
    )
    return True


def save_thresholds(result: MultilabelResult, temperature: float, reporter: Reporter) -> None:
    """Store the thresholds that are fitted to a result's images in the folder of its model.

    Classes of the model that the data does not have keep theirs.

    Args:
        result: of a model that is in a folder.
        temperature: that the folder has for the head rule by now.
        reporter: receives what was stored.
    """
    assert result.subject is not None
    folder, rows = expand_home(result.model), result.subject.match.rows
    values = list(load_model_config(folder).list_thresholds())
    fitted = list(result.fitted.thresholds.values())
    for row, value in zip(
        rows, scale_thresholds(fitted, result.temperature / temperature), strict=True
    ):
        values[row] = value
    store_thresholds(folder, values)
    reporter.note(
        f"Stored in {folder / CONFIG}: thresholds of {len(rows)} classes (head {result.head}), "
        f"{min(values):.2f} to {max(values):.2f}; macro F1 {result.macro_f1:.2f} % -> "
        f"{result.fitted.macro_f1:.2f} %, cross-fitted."
    )


def _store(folder: Path, values: Mapping[str, object]) -> None:
    config = read_json(folder / CONFIG)
    config[OWN] = {**(config.get(OWN) or {}), **values}
    write_json(folder / CONFIG, config)

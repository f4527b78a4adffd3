"""Keeps fitted thresholds and temperatures in the config.json of a model's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deitctl.evaluation.multilabel import fit_thresholds_by_class
from deitctl.evaluation.multilabel_accumulator import to_float64_probs
from deitctl.evaluation.multilabel_result import MultilabelResult, Result
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.models.checkpoint_io import CONFIG, load_model_config
from deitctl.models.heads import fuse_heads
from deitctl.models.model_config import HEADS
from deitctl.models.tasks import MULTILABEL
from deitctl.paths import read_json, write_json

OWN = "deitctl"
"""Key of config.json below which our own values are."""


def fit_by_head(
    result: MultilabelResult, temperatures: Mapping[str, float]
) -> dict[str, list[float]]:
    """Return the threshold of each class that maximizes its F1 on a result's images, by head rule.

    Args:
        result: with the logits of all heads.
        temperatures: by head rule, with which the thresholds are going to be used.
    """
    heads, labels = result.logits, result.labels
    fitted = {}
    for rule in (result.head,) if heads.dist is None else HEADS:
        logits = fuse_heads(heads, rule, MULTILABEL)
        probs = to_float64_probs(logits / temperatures.get(rule, 1.0))
        fitted[rule] = fit_thresholds_by_class(labels, probs).tolist()
    return fitted


def store_thresholds(folder: Path, thresholds: Mapping[str, Sequence[float]]) -> None:
    """Keep the probabilities from which a model predicts its classes, by head rule, in the order of its
    logits; other rules keep theirs."""
    own = read_json(folder / CONFIG).get(OWN) or {}
    lists = {rule: list(values) for rule, values in thresholds.items()}
    _store(folder, {"thresholds": {**(own.get("thresholds") or {}), **lists}})


def store_temperatures(folder: Path, temperatures: Mapping[str, float]) -> None:
    """Keep the temperature of each head rule.

    Thresholds that the folder has are changed with them, so that the same images reach them.
    """
    own = read_json(folder / CONFIG).get(OWN) or {}
    values: dict[str, object] = {"temperatures": dict(temperatures)}
    if thresholds := own.get("thresholds"):
        former = own.get("temperatures") or {}
        values["thresholds"] = {
            rule: scale_thresholds(probs, former.get(rule, 1.0) / temperatures.get(rule, 1.0))
            for rule, probs in thresholds.items()
        }
    _store(folder, values)


def scale_thresholds(thresholds: Sequence[float], factor: float) -> list[float]:
    """Return the probabilities that thresholds become where all logits are multiplied by a factor."""
    probs = np.asarray(thresholds, np.float64)
    with np.errstate(divide="ignore", over="ignore"):
        logits = np.log(probs) - np.log1p(-probs)
        scaled = 1 / (1 + np.exp(-factor * logits))
    # Every image reaches 0, which a small one must not become in fp32.
    above_zero = np.maximum(scaled, np.finfo(np.float32).tiny)
    listed: list[float] = np.where(probs > 0, above_zero, 0).tolist()
    return listed


def save_temperatures(result: Result, reporter: Reporter) -> None:
    """Store the fitted temperatures in the folder of a result's model; warn if there are none."""
    calibration = result.calibration
    if calibration is None:
        score = "" if isinstance(result, MultilabelResult) else f" (top-1 {result.top1:.1f} %)"
        reporter.warn(
            f"No temperature fits {result.model} on {result.data}{score}, "
            "so none is stored. Use more images, among them some that it predicts wrongly."
        )
        return
    folder = expand_home(result.model)
    store_temperatures(folder, calibration.temperatures)
    reporter.note(
        f"Stored in {folder / CONFIG}: temperature {calibration.temperature:.3f} (head {result.head}); "
        f"expected calibration error {result.ece:.4f} -> {calibration.ece:.4f}."
    )


def save_thresholds(result: MultilabelResult, reporter: Reporter) -> None:
    """Store the thresholds that are fitted to a result's images, for each head rule, in the folder of
    its model and for the temperatures there.

    Classes of the model that the data does not have keep theirs.

    Args:
        result: of a model that is in a folder.
        reporter: receives what was stored.
    """
    assert result.subject is not None
    folder, rows = expand_home(result.model), result.subject.match.rows
    model_config = load_model_config(folder)
    fitted = fit_by_head(result, model_config.temperatures)
    thresholds = {rule: list(model_config.list_thresholds(rule)) for rule in fitted}
    for rule, probs in fitted.items():
        for row, prob in zip(rows, probs, strict=True):
            thresholds[rule][row] = prob
    store_thresholds(folder, thresholds)
    values = thresholds[result.head]
    reporter.note(
        f"Stored in {folder / CONFIG}: thresholds of {len(rows)} classes (head {result.head}), "
        f"{min(values):.2f} to {max(values):.2f}; macro F1 {result.macro_f1:.2f} % -> "
        f"{result.fitted.macro_f1:.2f} %, cross-fitted."
    )


def _store(folder: Path, values: Mapping[str, object]) -> None:
    config = read_json(folder / CONFIG)
    config[OWN] = {**(config.get(OWN) or {}), **values}
    write_json(folder / CONFIG, config)

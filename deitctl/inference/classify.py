"""Classify images with any model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from deitctl.errors import ConfigError, ModelError
from deitctl.events import Reporter, SilentReporter
from deitctl.inference.inputs import expand
from deitctl.inference.onnx_classifier import SUFFIX, OnnxClassifier, load_onnx_classifier
from deitctl.inference.predict import Classifier, Prediction, predict_stream
from deitctl.models.catalog import DEFAULT_MODEL


def predict(
    inputs: Iterable[str],
    *,
    model: str = "",
    weights: str = "",
    topk: int = 5,
    head: str = "auto",
    batch_size: int = 16,
    device: str = "auto",
    precision: str = "auto",
    img_size: int = 0,
    stdin: Iterable[str] = (),
    keep_pixels: bool = False,
    reporter: Reporter | None = None,
) -> Iterator[Prediction]:
    """Yield one prediction an input, in order: files, folders (recursive), web addresses, `-` for the lines of `stdin`.

    The model is loaded before this returns, so that a wrong name raises at once. A `model` that is an `.onnx` file
    answers without torch. With `keep_pixels` each prediction carries the image as the model saw it.

    Raises:
        ModelError: no such model, or weights that do not fit.
        ConfigError: a number out of range.
    """
    if topk < 1 or batch_size < 1:
        raise ConfigError(f"topk = {topk} and batch_size = {batch_size}: both are 1 or more.")
    how = {
        "weights": weights,
        "head": head,
        "img_size": img_size,
        "device": device,
        "precision": precision,
    }
    classifier = _load(model or DEFAULT_MODEL, how, reporter or SilentReporter())
    return predict_stream(
        classifier,
        expand(inputs, stdin),
        topk=topk,
        batch_size=batch_size,
        keep_pixels=keep_pixels,
        whole=isinstance(classifier, OnnxClassifier) and classifier.takes_whole,
    )


def _load(ref: str, how: dict[str, Any], reporter: Reporter) -> Classifier:
    if ref.lower().endswith(SUFFIX):
        return load_onnx_classifier(ref, **how, whole=True)
    if how["weights"].lower().endswith(SUFFIX):
        raise ModelError(
            f"{how['weights']} is a model with its weights.", f"Use --model {how['weights']} alone."
        )
    from deitctl.inference.torch_classifier import (
        load_torch_classifier,
    )  # takes seconds, which an ONNX file saves

    return load_torch_classifier(ref, **how, reporter=reporter)

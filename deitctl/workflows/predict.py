"""Classify pictures with any model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from deitctl.catalog import DEFAULT_MODEL
from deitctl.device import INFERENCE_PRECISION, choose_device
from deitctl.errors import ConfigError
from deitctl.events import Reporter, SilentReporter
from deitctl.inference.inputs import expand
from deitctl.inference.predict import Prediction, predict_stream
from deitctl.models.build import load_model
from deitctl.models.heads import choose_head


def predict(
    inputs: Iterable[str], *, model: str = "", weights: str = "", topk: int = 5, head: str = "auto",
    batch_size: int = 16, device: str = "auto", precision: str = "auto", img_size: int = 0,
    stdin: Iterable[str] = (), reporter: Reporter | None = None,
) -> Iterator[Prediction]:  # fmt: skip
    """Yield one prediction an input, in order: files, folders (recursive), web addresses, `-` for the lines of `stdin`.

    The model is loaded before this returns, so that a wrong name raises at once.

    Raises:
        ModelError: no such model, or weights that do not fit.
        ConfigError: a number out of range.
    """
    if topk < 1 or batch_size < 1:
        raise ConfigError(f"topk = {topk} and batch_size = {batch_size}: both are 1 or more.")
    loaded = load_model(
        model or DEFAULT_MODEL, weights=weights, img_size=img_size, reporter=reporter or SilentReporter()
    )
    where = choose_device(device, INFERENCE_PRECISION if precision == "auto" else precision)
    how = choose_head(head, loaded.card.head, loaded.model)
    return predict_stream(
        where.place(loaded.model), replace(loaded.card, head=how), expand(inputs, stdin),
        topk=topk, head=how, device=where, batch_size=batch_size,
    )  # fmt: skip

"""Evaluations small enough to be counted by hand, and a log as a run writes it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from deitctl.data.dataset import Source
from deitctl.report.contents import (
    OUTSIDE,
    Bin,
    Calibrated,
    Comparison,
    Contents,
    Curves,
    Data,
    Evaluated,
    Example,
)
from deitctl.report.examples import confident_mistakes, thumbnail, unsure_hits

ANIMALS = ("cat", "dog", "owl")
LABELS = [0, 0, 0, 1, 1, 1, 2, 2]
ANSWERS = [0, 0, 1, 1, 0, OUTSIDE, 2, 2]
"""Right: 5 of 8. A cat for a dog, a dog for a cat, a dog for a fox, which the data does not have."""
CONFIDENCES = [0.9, 0.6, 0.8, 0.55, 0.7, 0.95, 0.99, 0.5]


@pytest.fixture(scope="session")
def pixels(digit_sources: tuple[Source, Source]) -> Callable[[int], np.ndarray]:
    """Return the nth validation image as a model sees it, [3,32,32]."""

    def read(n: int) -> np.ndarray:
        return np.asarray(digit_sources[1].read(n).resize((32, 32)).convert("RGB")).transpose(
            2, 0, 1
        )

    return read


@pytest.fixture(scope="session")
def animals() -> Data:
    """Eight images of three classes."""
    names = [f"/data/val/{ANIMALS[label]}/{n}.jpg" for n, label in enumerate(LABELS)]
    return Data(name="animals", classes=ANIMALS, names=names, labels=np.array(LABELS))


@pytest.fixture(scope="session")
def evaluated(animals: Data, pixels: Callable[[int], np.ndarray]) -> Callable[..., Evaluated]:
    """Make an evaluation of the animals, anything of it replaced."""

    def make(data: Data = animals, **changes: object) -> Evaluated:
        predicted = np.asarray(changes.get("predicted", ANSWERS))
        confidences = np.asarray(changes.get("confidences", CONFIDENCES))
        correct = predicted == data.labels
        halves = [confidences <= 0.75, confidences > 0.75]
        bins = [
            Bin(
                lower,
                lower + 0.25,
                int(k.sum()),
                float(confidences[k].mean()),
                float(correct[k].mean()),
            )
            for lower, k in zip((0.5, 0.75), halves, strict=True)
            if k.any()
        ]

        def example(n: int) -> Example:
            guesses = [
                (data.classes[max(0, predicted[n])], float(confidences[n])),
                (data.classes[data.labels[n]], 0.1),
            ]
            maps = {
                "class token": thumbnail(pixels(n + 20)),
                "distillation token": thumbnail(pixels(n + 40)),
            }
            return Example(index=n, guesses=guesses, thumbnail=thumbnail(pixels(n)), maps=maps)

        fields = {
            "name": "deit_tiny",
            "data": data,
            "predicted": predicted,
            "confidences": confidences,
            "outside": {int(n): "fox" for n in np.flatnonzero(predicted == OUTSIDE)},
            "top1": 100 * float(correct.mean()),
            "top5": 100.0,
            "loss": 0.75,
            "ece": 0.125,
            "reliability": [Bin(0.0, 0.5, 0, 0.0, 0.0), *bins],
            "intervals": {"top1": (25.0, 87.5)},
        }
        if "mistakes" not in changes:
            fields["mistakes"] = [example(n) for n in confident_mistakes(correct, confidences)]
        if "unsure" not in changes:
            fields["unsure"] = [example(n) for n in unsure_hits(correct, confidences)]
        return Evaluated(
            **(fields | changes | {"predicted": predicted, "confidences": confidences})
        )

    return make


@pytest.fixture(scope="session")
def distilled(
    evaluated: Callable[..., Evaluated], pixels: Callable[[int], np.ndarray]
) -> Evaluated:
    """A model with two heads, better on the animals, that has been calibrated."""
    said = {"class head": ("cat", 0.6), "distillation head": ("dog", 0.7)}
    example = Example(index=2, guesses=[("dog", 0.5)], thumbnail=thumbnail(pixels(2)), heads=said)
    return evaluated(
        name="distilled",
        predicted=[0, 0, 0, 1, 1, 0, 2, 2],
        heads={"cls": 75.0, "dist": 62.5},
        agreement=87.5,
        calibrated=Calibrated(
            temperature=1.5, ece=0.0625, reliability=[Bin(0.5, 1.0, 8, 0.8, 0.875)], note="on train"
        ),
        disagreements=[example],
        top1_among=100.0,
    )


@pytest.fixture(scope="session")
def curves() -> Curves:
    """Three epochs of ten steps each."""
    steps = [
        {
            "kind": "step",
            "step": s,
            "epoch": 1 + s // 10,
            "lr": 1e-3 - 3e-5 * s,
            "loss": 2 - s / 20,
            "labels": 1.5,
            "grad_norm": 9.0,
        }
        for s in range(0, 30, 5)
    ]
    epochs = [
        {
            "kind": "epoch",
            "epoch": n,
            "step": 10 * n,
            "val_loss": 2 / n,
            "top1": 30.0 * n,
            "heads": {"cls": 30.0 * n, "dist": 29.0 * n},
        }
        for n in (1, 2, 3)
    ]
    return Curves(run="runs/animals", steps=steps, epochs=epochs, teacher_top1=95.0)


@pytest.fixture(scope="session")
def contents() -> Callable[..., Contents]:
    """Make the contents of a report."""

    def make(*evaluated: Evaluated, **changes: object) -> Contents:
        fields = {
            "title": "Animals",
            "created": "1 May 2026, 12:00",
            "version": "0.1.0",
            "command": "deitctl eval animals",
            "facts": (("Device", "cpu, fp32"),),
            "evaluated": evaluated,
        }
        return Contents(**(fields | changes))

    return make


@pytest.fixture
def better() -> Comparison:
    """The plain model against the distilled one."""
    return Comparison(
        a="deit_tiny",
        b="distilled",
        difference=-25.0,
        interval=(-50.0, -5.0),
        only_a=0,
        only_b=2,
        p_value=0.5,
    )

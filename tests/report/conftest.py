"""Evaluations small enough to be counted by hand, and a log as a run writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deitctl.data.classes import ClassMatch
from deitctl.data.dataset import ImageDataset
from deitctl.evaluation.bootstrap import PairedComparison
from deitctl.evaluation.calibration import Calibration
from deitctl.evaluation.intervals import Interval
from deitctl.evaluation.metrics import ReliabilityBin
from deitctl.evaluation.result import EvalResult
from deitctl.evaluation.subject import EvalSubject
from deitctl.models.model_config import ModelConfig
from deitctl.report.build import select_mistakes, select_unsure
from deitctl.report.contents import OUTSIDE, Contents, Curves, Example, ModelSection
from deitctl.report.thumbnails import encode_thumbnail

ANIMALS = ("cat", "dog", "owl")
LABELS = [0, 0, 0, 1, 1, 1, 2, 2]
PREDS = [0, 0, 1, 1, 0, OUTSIDE, 2, 2]
"""Correct: 5 of 8. A cat as a dog, a dog as a cat, a dog as a fox, which the data does not have."""
CONFIDENCES = [0.9, 0.6, 0.8, 0.55, 0.7, 0.95, 0.99, 0.5]


@pytest.fixture(scope="session")
def pixels(digit_datasets: tuple[ImageDataset, ImageDataset]) -> Callable[[int], np.ndarray]:
    """Return the nth validation image as a model sees it, [3,32,32]."""

    def read(n: int) -> np.ndarray:
        return np.asarray(digit_datasets[1].read(n).resize((32, 32)).convert("RGB")).transpose(
            2, 0, 1
        )

    return read


@pytest.fixture(scope="session")
def evaluated(pixels: Callable[[int], np.ndarray]) -> Callable[..., ModelSection]:
    """Build the section of a model on the animals, or on other images and predictions."""

    def build(
        *,
        data: str = "animals",
        classes: Sequence[str] = ANIMALS,
        names: Sequence[str] | None = None,
        labels: Sequence[int] | np.ndarray = LABELS,
        preds: Sequence[int] | np.ndarray = PREDS,
        outside: dict[int, str] | None = None,
        confidences: Sequence[float] | np.ndarray = CONFIDENCES,
        galleries: dict[str, list[Example]] | None = None,
        facts: Sequence[tuple[str, str]] = (),
        **changes: object,
    ) -> ModelSection:
        labels, preds = torch.as_tensor(labels), torch.as_tensor(preds)
        num_classes, rows = len(classes), torch.arange(len(labels))
        if names is None:
            names = [
                f"/data/val/{classes[label]}/{n}.jpg" for n, label in enumerate(labels.tolist())
            ]
        if outside is None:
            outside = dict.fromkeys(torch.nonzero(preds == OUTSIDE)[:, 0].tolist(), "fox")
        # The model has the data's classes, then the others that it predicts.
        others = list(dict.fromkeys(outside.values()))
        model_preds = preds.clone()
        for row, title in outside.items():
            model_preds[row] = num_classes + others.index(title)
        correct = preds == labels
        confidence = torch.as_tensor(confidences)
        halves = [confidence <= 0.75, confidence > 0.75]
        bins = [
            ReliabilityBin(
                lower,
                lower + 0.25,
                int(half.sum()),
                float(confidence[half].mean()),
                float(correct[half].double().mean()),
            )
            for lower, half in zip((0.5, 0.75), halves, strict=True)
            if half.any()
        ]
        model_config = ModelConfig(
            architecture="deit_tiny",
            num_classes=num_classes + len(others),
            class_names=(*classes, *others),
        )
        subject = EvalSubject(
            ref="deit_tiny",
            protocol="native",
            eval_model=SimpleNamespace(),
            model_config=model_config,
            dataset=SimpleNamespace(name=names.__getitem__, class_names=tuple(classes)),
            match=ClassMatch(tuple(range(num_classes)), "same"),
            class_titles=classes,
        )
        fields = {
            "name": "deit_tiny",
            "model": "deit_tiny",
            "data": data,
            "num_images": len(labels),
            "unreadable": [],
            "top1": 100 * float(correct.double().mean()),
            "top5": 100.0,
            "loss": 0.75,
            "ece": 0.125,
            "balanced_accuracy": 100 * float(correct.double().mean()),
            "macro_f1": 50.0,
            "top1_interval": Interval(25.0, 87.5),
            "top5_interval": Interval(70.0, 100.0),
            "num_classes": num_classes,
            "top1_among_classes": None,
            "top5_among_classes": None,
            "head": "cls",
            "heads": None,
            "head_intervals": None,
            "head_agreement": None,
            "teacher_agreement": None,
            "temperature": 1.0,
            "reliability": bins,
            "images_per_second": 10.0,
            "read_errors": [],
            "indices": rows,
            "labels": labels,
            "targets": labels,
            "topk_preds": model_preds[:, None],
            "data_preds": torch.where(preds == OUTSIDE, num_classes, preds),
            "preds_among_classes": preds,
            "confidences": confidence,
            "losses": torch.zeros(len(labels)),
            "correct_by_head": {"cls": correct},
            "heads_differ": None,
            "logits": None,
            "logit_rows": rows[:0],
            "subject": subject,
        }
        result = EvalResult(**(fields | changes))

        def build_example(n: int) -> Example:
            return Example(
                index=n,
                guesses=[
                    (subject.get_title(int(model_preds[n])), float(confidence[n])),
                    (classes[labels[n]], 0.1),
                ],
                thumbnail=encode_thumbnail(pixels(n)),
                maps={
                    "class token": encode_thumbnail(pixels(n + 20)),
                    "distillation token": encode_thumbnail(pixels(n + 40)),
                },
                heads={},
            )

        if galleries is None:
            mistakes = select_mistakes(correct.numpy(), confidence.numpy(), 24)
            unsure = select_unsure(correct.numpy(), confidence.numpy(), 24)
            galleries = {
                "mistakes": [build_example(n) for n in mistakes],
                "unsure": [build_example(n) for n in unsure],
            }
        empty = {"mistakes": [], "unsure": [], "disagreements": []}
        return ModelSection(result=result, facts=facts, galleries=empty | galleries)

    return build


@pytest.fixture(scope="session")
def distilled(
    evaluated: Callable[..., ModelSection], pixels: Callable[[int], np.ndarray]
) -> ModelSection:
    """A model with two heads, better on the animals, with a fitted temperature."""
    example = Example(
        index=2,
        guesses=[("dog", 0.5)],
        thumbnail=encode_thumbnail(pixels(2)),
        maps={},
        heads={"class head": ("cat", 0.6), "distillation head": ("dog", 0.7)},
    )
    preds = [0, 0, 0, 1, 1, 0, 2, 2]
    plain = evaluated(preds=preds)
    return evaluated(
        name="distilled",
        preds=preds,
        heads={"cls": 75.0, "dist": 62.5},
        head_intervals={"cls": Interval(50.0, 90.0), "dist": Interval(25.0, 87.5)},
        head_agreement=87.5,
        calibration=Calibration(
            temperature=1.5,
            temperatures={"cls": 1.5},
            loss=0.5,
            ece=0.0625,
            num_images=8,
            reliability=[ReliabilityBin(0.5, 1.0, 8, 0.8, 0.875)],
        ),
        galleries={**plain.galleries, "disagreements": [example]},
        top1_among_classes=100.0,
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
            "task_loss": 1.5,
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
    """Build the contents of a report."""

    def build(*sections: ModelSection, **changes: object) -> Contents:
        fields = {
            "title": "Animals",
            "created": "1 May 2026, 12:00",
            "version": "0.1.0",
            "command": "deitctl eval animals",
            "facts": (("device", "cpu, fp32"),),
            "sections": sections,
        }
        return Contents(**(fields | changes))

    return build


@pytest.fixture
def better() -> PairedComparison:
    """The plain model against the distilled one."""
    return PairedComparison(
        a="deit_tiny",
        b="distilled",
        num_images=8,
        top1_difference=-25.0,
        interval=Interval(-50.0, -5.0),
        only_a_correct=0,
        only_b_correct=2,
        p_value=0.5,
        among_classes=False,
    )

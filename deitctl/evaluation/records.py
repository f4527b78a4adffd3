"""What an evaluation ends with, as records for a script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deitctl.data.classes import ClassMatch
from deitctl.data.dataset import ImageDataset
from deitctl.evaluation.accumulator import EvalModel
from deitctl.evaluation.bootstrap import Difference, Interval
from deitctl.evaluation.calibration import Calibration
from deitctl.evaluation.metrics import BINS, reliability
from deitctl.evaluation.per_class import ClassScore, confusions, score_classes
from deitctl.evaluation.real_labels import RealScore
from deitctl.evaluation.result import Evaluation
from deitctl.models.model_config import ModelConfig

MOST_CONFUSIONS = 10
OTHER = "a class that the data does not have"


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """An evaluation and what it was of."""

    name: str
    """What tells it from the others of the same data, in few words."""
    model: str
    protocol: str
    data: str
    model_config: ModelConfig
    dataset: ImageDataset
    match: ClassMatch
    contender: EvalModel
    """The model on its device, and how its answers were taken."""
    scores: Evaluation
    intervals: dict[str, Interval]
    """95 % bootstrap intervals: top1, top5 and each head rule's top-1 in percent, loss."""
    calibration: Calibration | None
    real: RealScore | None

    def class_name(self, label: int) -> str:
        """Name a class of the data, or what is none of them."""
        return self.dataset.class_names[label] if label < len(self.dataset.class_names) else OTHER

    def class_title(self, label: int) -> str:
        """Name a class of the data for people: a WordNet id with what it stands for."""
        name = self.class_name(label)
        if name == OTHER:
            return name
        said = self.model_config.label(self.match.rows[label])
        return (
            name
            if said == name or self.model_config.descriptions is None
            else f"{name} {said.split(',')[0]}"
        )

    @cached_property
    def classes(self) -> list[ClassScore]:
        """Recall, precision and F1 of every class that has images."""
        s = self.scores
        return score_classes(s.labels.numpy(), s.answers.numpy(), len(self.dataset.class_names))

    def per_class(self) -> dict[str, dict[str, float]]:
        """Return images, top-1, precision and F1 of every class that has images, in percent."""
        return {
            self.dataset.class_names[c.label]: {
                "num_images": c.num_images,
                "top1": c.recall,
                "precision": c.precision,
                "f1": c.f1,
            }
            for c in self.classes
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        s, by_class, kept = self.scores, self.classes, self.calibration
        found = reliability(s.confidences, s.correct)
        return {
            "model": self.model,
            "data": self.data,
            "protocol": self.protocol,
            "num_images": s.num_images,
            "unreadable": [self.dataset.name(i) for i, _ in s.unreadable],
            "top1": s.top1,
            "top5": s.top5,
            "loss": s.loss,
            "ece": s.ece,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "mean_class_top1": sum(c.recall for c in by_class) / len(by_class),
            "macro_f1": sum(c.f1 for c in by_class) / len(by_class),
            "classes": len(self.match.rows),
            "top1_among_classes": s.top1_among,
            "top5_among_classes": s.top5_among,
            "real_labels": None if self.real is None else self.real._asdict(),
            "head": s.head,
            "heads": s.heads,
            "agreement": s.agreement,
            "temperature": self.contender.temperature,
            "calibration": None
            if kept is None
            else {
                "temperature": kept.temperature,
                "temperatures": kept.temperatures,
                "loss": kept.loss,
                "ece": kept.ece,
                "num_images": kept.num_images,
            },
            "reliability": [
                {
                    "from": n / BINS,
                    "to": (n + 1) / BINS,
                    "images": images,
                    "confidence": confidence,
                    "accuracy": accuracy,
                }
                for n, (images, confidence, accuracy) in enumerate(
                    zip(*(x.tolist() for x in found), strict=True)
                )
                if images
            ],
            "confusions": [
                {
                    "label": self.class_name(c.label),
                    "answer": self.class_name(c.answer),
                    "num_images": c.num_images,
                }
                for c in confusions(s.labels.numpy(), s.answers.numpy(), MOST_CONFUSIONS)
            ],
            "per_class": self.per_class(),
            "images_per_second": round(s.images_per_second, 2),
        }

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield one record an image: its name, its label, the model's answer, in the order of the data."""
        s = self.scores
        rows = zip(
            s.indices.tolist(),
            s.labels.tolist(),
            s.predictions.tolist(),
            s.confidences.tolist(),
            s.losses.tolist(),
            s.correct.tolist(),
            strict=True,
        )
        who = {"model": self.model, "protocol": self.protocol}
        for index, label, prediction, confidence, loss, correct in rows:
            yield who | {
                "input": self.dataset.name(index),
                "label": self.dataset.class_names[label],
                "prediction": {
                    "index": prediction,
                    "label": self.model_config.label(prediction),
                    "score": confidence,
                },
                "correct": correct,
                "loss": loss,
                "error": None,
            }
        for index, why in s.unreadable:
            yield who | {
                "input": self.dataset.name(index),
                "label": None,
                "prediction": None,
                "correct": None,
                "loss": None,
                "error": why,
            }


@dataclass(frozen=True, kw_only=True)
class EvalResults:
    """One or several evaluations of the same images, and how they differ."""

    results: tuple[EvalResult, ...]
    differences: tuple[Difference, ...]
    """The first against each of the others."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the one, or one object with all."""
        if len(self.results) == 1:
            return self.results[0].to_dict()
        return {
            "data": self.results[0].data,
            "evaluations": [r.to_dict() for r in self.results],
            "differences": [
                {
                    "a": d.a,
                    "b": d.b,
                    "num_images": d.num_images,
                    "top1_difference": d.difference,
                    "interval": list(d.interval),
                    "only_a": d.only_a,
                    "only_b": d.only_b,
                    "p_value": d.p_value,
                    "among_classes": d.among_classes,
                }
                for d in self.differences
            ],
        }

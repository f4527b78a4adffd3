"""Score any model on any labelled pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deitctl.card import ModelCard
from deitctl.catalog import DEFAULT_MODEL
from deitctl.checkpoint import write_bytes
from deitctl.data.classes import ClassMatch, match_classes
from deitctl.data.open import BUILT_IN, open_for_evaluation
from deitctl.data.sources import Source
from deitctl.device import INFERENCE_PRECISION, choose_device
from deitctl.errors import ConfigError, DataError
from deitctl.evaluation.evaluate import Evaluation, evaluate
from deitctl.evaluation.protocols import preprocessing_for
from deitctl.events import Reporter, SilentReporter
from deitctl.models.build import load_model
from deitctl.models.heads import choose_head
from deitctl.world import joined


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """An evaluation and what it was of."""

    model: str
    data: str
    card: ModelCard
    source: Source
    match: ClassMatch
    head: str
    scores: Evaluation

    def per_class(self) -> dict[str, dict[str, float]]:
        """Return pictures and top-1 of every class of the data, in percent."""
        hits: dict[int, list[bool]] = {}
        for index, right in zip(self.scores.indices, self.scores.correct.tolist(), strict=True):
            hits.setdefault(int(self.source.labels[index]), []).append(right)
        return {
            self.source.class_names[label]: {"images": len(h), "top1": 100 * sum(h) / len(h)}
            for label, h in sorted(hits.items())
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        s = self.scores
        record = {
            "model": self.model, "data": self.data, "images": s.images,
            "unreadable": [self.source.name(i) for i, _ in s.unreadable],
            "top1": s.top1, "top5": s.top5, "loss": s.loss, "ece": s.ece, "per_class": self.per_class(),
            "heads": s.heads, "images_per_second": round(s.images_per_second, 2), "head": self.head,
        }  # fmt: skip
        if s.top1_among is not None:
            record |= {"classes": len(self.match.rows), "top1_among_classes": s.top1_among}
        return record

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield one record a picture: its name, its label, the model's answer, in the order of the data."""
        s = self.scores
        rows = zip(s.indices, s.predictions.tolist(), s.confidences.tolist(), s.correct.tolist(), strict=True)
        for index, prediction, confidence, correct in rows:
            yield {
                "input": self.source.name(index),
                "label": self.source.class_names[int(self.source.labels[index])],
                "prediction": {"index": prediction, "label": self.card.label(prediction), "score": confidence},
                "correct": correct,
                "error": None,
            }
        for index, why in s.unreadable:
            yield {"input": self.source.name(index), "label": None, "prediction": None, "correct": None, "error": why}


def evaluate_model(
    data: str = "", *, model: str = "", weights: str = "", head: str = "auto", protocol: str = "native",
    batch_size: int = 64, img_size: int = 0, workers: int = -1, device: str = "auto", precision: str = "auto",
    predictions: str = "", on_bad_image: str = "skip", reporter: Reporter | None = None,
) -> EvalResult:  # fmt: skip
    """Score `model` on `data`, labels matched by class name or WordNet id.

    Args:
        data: a folder, tar, table or `digits`; of train and val the latter.
        model: see `load_model`.
        weights: see `load_model`.
        head: which head answers.
        protocol: whose preprocessing, see `preprocessing_for`.
        batch_size: pictures at a time.
        img_size: another input size, pixels; 0 for the model's own.
        workers: loader processes, -1 chosen from the machine.
        device: see `choose_device`.
        precision: `auto` is fp32.
        predictions: file to write a record a picture to, as JSON lines.
        on_bad_image: `skip` leaves a picture that cannot be read out and names it, `stop` ends there.
        reporter: told of progress.

    Raises:
        ConfigError: no such device, protocol or way with bad images.
        DataError: no such data, classes that the model does not know, or with `stop` a picture that cannot be read.
        ModelError: no such model.
    """
    reporter = reporter or SilentReporter()
    if on_bad_image not in ("skip", "stop"):
        raise ConfigError(
            f"There is no way {on_bad_image!r} with pictures that cannot be read.", "There are: skip, stop."
        )
    source = open_for_evaluation(data or BUILT_IN, reporter)
    loaded = load_model(model or DEFAULT_MODEL, weights=weights, img_size=img_size, reporter=reporter)
    match = match_classes(loaded.card, source.class_names)
    if match is None:
        raise DataError(
            _strangers(loaded.card, source, data or BUILT_IN), "Evaluate a model that was trained on these classes."
        )
    where = choose_device(device, INFERENCE_PRECISION if precision == "auto" else precision)
    how = choose_head(head, loaded.card.head, loaded.model)
    with joined(where.torch_device) as world:
        scores = evaluate(
            where.place(loaded.model), source, preprocessing_for(loaded.card, protocol), rows=match.rows, head=how,
            device=where, batch_size=batch_size, workers=where.loader_workers(workers), reporter=reporter, world=world,
            stop_on_bad_image=on_bad_image == "stop",
        )  # fmt: skip
    result = EvalResult(
        model=model or DEFAULT_MODEL, data=data or BUILT_IN, card=loaded.card, source=source, match=match, head=how,
        scores=scores,
    )  # fmt: skip
    if predictions and world.is_main:
        write_bytes(Path(predictions), "".join(json.dumps(r) + "\n" for r in result.records()).encode())
    return result


def _strangers(card: ModelCard, source: Source, data: str) -> str:
    unknown = [n for n in source.class_names if match_classes(card, [n]) is None]
    example = f", for example {unknown[0]!r}" if unknown else ""
    known = "without names" if card.class_names is None else f"such as {card.label(0)!r}"
    return (
        f"The model does not know {len(unknown)} of the {len(source.class_names)} classes of {data}{example}; "
        f"its {card.num_classes} classes are {known}."
    )

"""From pictures to named scores, one record an input, in input order, as it is computed. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deitctl.card import ModelCard
from deitctl.data.eval_view import Pixels
from deitctl.inference.inputs import batches

Scores = NDArray[np.float32]


class Classifier(Protocol):
    """A network that answers, whatever runs it, with its card."""

    @property
    def card(self) -> ModelCard:
        """What pictures it takes and what its classes are called."""

    def scores(self, pixels: Pixels) -> Scores:
        """Classify pictures, uint8 [B,3,S,S]: probabilities [B,K], calibrated where the card has a temperature."""


@dataclass(frozen=True)
class Guess:
    """One class with its probability, 0..1."""

    index: int
    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """What the model says of one input, best first, or why it says nothing."""

    input: str
    guesses: tuple[Guess, ...]
    error: str | None
    pixels: Pixels | None = field(default=None, repr=False, compare=False)
    """The picture as the model saw it, uint8 [3,S,S], where it was asked for; no part of the record."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the command line's json and jsonl."""
        guesses = [{"index": g.index, "label": g.label, "score": g.score} for g in self.guesses]
        return {"input": self.input, "predictions": guesses, "error": self.error}


def predict_stream(
    classifier: Classifier, names: Iterable[str], *, topk: int, batch_size: int, keep_pixels: bool = False
) -> Iterator[Prediction]:
    """Classify inputs one after another in constant memory.

    Args:
        classifier: what answers.
        names: files or addresses, see `expand`.
        topk: how many classes a record names; more than there are means all.
        batch_size: pictures at a time.
        keep_pixels: let each prediction carry its picture.
    """
    card = classifier.card
    for batch in batches(names, card.preprocessing, batch_size):
        readable = [item.pixels for item in batch if item.pixels is not None]
        answers: Iterator[Scores] = iter(classifier.scores(np.stack(readable))) if readable else iter(())
        for item in batch:
            if item.pixels is None:
                yield Prediction(item.name, (), item.error)
                continue
            scores = next(answers)
            if not np.isfinite(scores).all():
                yield Prediction(item.name, (), f"{item.name}: the model answers with values that are not numbers.")
                continue
            best = np.argsort(-scores, kind="stable")[:topk].tolist()  # of equal scores the first class is first
            guesses = tuple(Guess(i, card.label(i), float(scores[i])) for i in best)
            yield Prediction(item.name, guesses, None, item.pixels if keep_pixels else None)

"""From images to named scores, one record an input, in input order, as it is computed. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.eval_transform import Pixels, eval_transform
from deitctl.inference.inputs import batches, whole_image
from deitctl.models.model_config import ModelConfig, Preprocessing

Scores = NDArray[np.float32]


class Classifier(Protocol):
    """A network that answers, whatever runs it, with its card."""

    @property
    def model_config(self) -> ModelConfig:
        """What images it takes and what its classes are called."""

    def scores(self, pixels: Pixels) -> Scores:
        """Classify images, uint8 [B,3,S,S], or one whole [1,3,H,W]: probabilities [B,K].

        They are calibrated where the card has a temperature.
        """


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
    """The image as the model saw it, uint8 [3,S,S], where it was asked for; no part of the record."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the command line's json and jsonl."""
        guesses = [{"index": g.index, "label": g.label, "score": g.score} for g in self.guesses]
        return {"input": self.input, "predictions": guesses, "error": self.error}


def predict_stream(
    classifier: Classifier,
    names: Iterable[str],
    *,
    topk: int,
    batch_size: int,
    keep_pixels: bool = False,
    whole: bool = False,
) -> Iterator[Prediction]:
    """Classify inputs one after another in constant memory.

    Args:
        classifier: what answers.
        names: files or addresses, see `expand`.
        topk: how many classes a record names; more than there are means all.
        batch_size: images at a time.
        keep_pixels: let each prediction carry its image.
        whole: hand images over as they are, one by one, to a classifier that resizes them.
    """
    model_config = classifier.model_config
    view, batch_size = (whole_image, 1) if whole else (eval_transform, batch_size)
    for batch in batches(names, model_config.preprocessing, batch_size, view):
        readable = [item.pixels for item in batch if item.pixels is not None]
        answers: Iterator[Scores] = (
            iter(classifier.scores(np.stack(readable))) if readable else iter(())
        )
        for item in batch:
            if item.pixels is None:
                yield Prediction(item.name, (), item.error)
                continue
            scores = next(answers)
            if not np.isfinite(scores).all():
                yield Prediction(
                    item.name,
                    (),
                    f"{item.name}: the model answers with values that are not numbers.",
                )
                continue
            best = np.argsort(-scores, kind="stable")[
                :topk
            ].tolist()  # of equal scores the first class is first
            guesses = tuple(Guess(i, model_config.label(i), float(scores[i])) for i in best)
            seen = (
                _view(item.pixels, model_config.preprocessing)
                if whole and keep_pixels
                else item.pixels
            )
            yield Prediction(item.name, guesses, None, seen if keep_pixels else None)


def _view(image: Pixels, pre: Preprocessing) -> Pixels:
    """Return what a file that resizes sees of an image [3,H,W], but for a level or two of 255: uint8 [3,S,S]."""
    return eval_transform(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), pre)

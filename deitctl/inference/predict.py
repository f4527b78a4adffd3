"""From pictures to named scores, one record an input, in input order, as it is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from deitctl.card import ModelCard
from deitctl.data.mixing import normalise
from deitctl.device import Device
from deitctl.inference.inputs import batches
from deitctl.models.heads import forward_heads, fuse_heads


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

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the command line's json and jsonl."""
        guesses = [{"index": g.index, "label": g.label, "score": g.score} for g in self.guesses]
        return {"input": self.input, "predictions": guesses, "error": self.error}


@torch.inference_mode()
def predict_stream(
    model: nn.Module, card: ModelCard, names: Iterable[str], *, topk: int, head: str, device: Device, batch_size: int
) -> Iterator[Prediction]:
    """Classify inputs one after another in constant memory.

    Args:
        model: a classifier in eval mode, on `device`.
        card: its card.
        names: files or addresses, see `expand`.
        topk: how many classes a record names; more than there are means all.
        head: the rule that joins the heads.
        device: where, and in which precision.
        batch_size: pictures at a time.
    """
    for batch in batches(names, card.preprocessing, batch_size):
        readable = [item.pixels for item in batch if item.pixels is not None]
        answers: Iterator[tuple[list[int], list[float]]] = iter(())
        if readable:
            images = normalise(device.move(torch.from_numpy(np.stack(readable))), card.preprocessing)
            with device.autocast():
                heads = forward_heads(model, images)
            scores = fuse_heads(heads, head).float().softmax(dim=1).cpu()
            best = scores.topk(min(topk, scores.shape[1]), dim=1)
            answers = iter(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        for item in batch:
            if item.pixels is None:
                yield Prediction(item.name, (), item.error)
                continue
            indices, values = next(answers)
            if not math.isfinite(sum(values)):
                yield Prediction(item.name, (), f"{item.name}: the model answers with values that are not numbers.")
                continue
            guesses = tuple(Guess(i, card.label(i), v) for i, v in zip(indices, values, strict=True))
            yield Prediction(item.name, guesses, None)

"""ImageNet's validation images with all the labels that are right (ReaL, Beyer et al. 2020)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import torch
from torch import Tensor

from deitctl.data.dataset import Source
from deitctl.errors import DataError
from deitctl.evaluation.metrics import percent
from deitctl.evaluation.result import Evaluation
from deitctl.models.catalog import imagenet_classes
from deitctl.paths import read_json

NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
MOST_BYTES = 64 * 2**20
CLASSES = 1000
NO_CLASS = -1


class RealScore(NamedTuple):
    """Percent of the images that have labels whose answer, or one of five, is among them."""

    num_images: int
    top1: float
    top5: float


def read_real_labels(path: Path) -> list[list[int]]:
    """Read real.json: for ImageNet's validation images, in order of their numbers, the classes that each shows.

    Raises:
        DataError: it cannot be read, or is not that.
    """
    try:
        labels: list[list[int]] = read_json(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(
            f"The labels {path} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from error
    fine = isinstance(labels, list) and all(
        isinstance(row, list) and all(type(c) is int and 0 <= c < CLASSES for c in row)
        for row in labels
    )
    if not fine:
        raise DataError(
            f"{path} is not a file of ReaL labels: a list with the class numbers of each image.",
            "It is real.json of google-research/reassessed-imagenet.",
        )
    return labels


def require_known(source: Source, labels: list[list[int]]) -> None:
    """Raise `DataError` unless every image has a place among the labels: to be asked before the work."""
    for index in range(len(source.labels)):
        _number(source.name(index), len(labels))


def imagenet_numbers(class_names: Sequence[str]) -> Tensor:
    """Return the number in ImageNet of each of a model's classes, [K], `NO_CLASS` for others; raise `DataError` if all are."""
    number = {name: n for n, name in enumerate(imagenet_classes()[0])}
    known = torch.tensor([number.get(name, NO_CLASS) for name in class_names])
    if (known == NO_CLASS).all():
        raise DataError(
            "The model's classes are not ImageNet's, so ReaL labels say nothing of it.",
            "Leave them out.",
        )
    return known


def score_real(
    scores: Evaluation, source: Source, numbers: Tensor, labels: list[list[int]]
) -> RealScore:
    """Score answers by them; images without a label are left out, as in the paper.

    Args:
        scores: the answers, in the model's numbering.
        source: the images.
        numbers: of the model's classes, from `imagenet_numbers`.
        labels: from `read_real_labels`, in ImageNet's numbering.

    Raises:
        DataError: an image is not one of ImageNet's validation set, or none has labels.
    """
    first, five = [], []
    for index, best in zip(
        scores.indices.tolist(), numbers[scores.best.long()].tolist(), strict=True
    ):
        real = set(labels[_number(source.name(index), len(labels))])
        if real:
            first.append(best[0] in real)
            five.append(bool(real.intersection(best)))
    if not first:
        raise DataError("None of the images has a ReaL label.")
    return RealScore(len(first), percent(torch.tensor(first)), percent(torch.tensor(five)))


def _number(name: str, count: int) -> int:
    found = NUMBER.search(PurePath(name).name)
    number = int(found[1]) if found else 0
    if not 1 <= number <= count:
        raise DataError(
            f"{name} has no ReaL labels: they are for ILSVRC2012_val_00000001 to {count:08d}.",
            "Leave --real-labels out, or evaluate ImageNet's own validation images.",
        )
    return number - 1

"""ReaL labels: all right labels of ImageNet's validation images (Beyer et al. 2020)."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

import torch
from torch import Tensor

from deitctl.data.dataset import ImageDataset
from deitctl.errors import DataError
from deitctl.evaluation.metrics import mean_percent
from deitctl.evaluation.result import EvalResult, RealLabelScore
from deitctl.models.catalog import load_imagenet_classes
from deitctl.models.model_config import ModelConfig
from deitctl.paths import read_json, suggest_path

IMAGE_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
MAX_BYTES = 64 * 2**20
NUM_CLASSES = 1000
NO_CLASS = -1


def read_real_labels(path: Path) -> list[list[int]]:
    """Read real.json: the classes of each of ImageNet's validation images, by the images' numbers.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        labels: list[list[int]] = read_json(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(
            f"The labels {path} cannot be read: {getattr(error, 'strerror', None) or error}.",
            suggest_path(path),
        ) from error
    is_valid = isinstance(labels, list) and all(
        isinstance(row, list) and all(type(c) is int and 0 <= c < NUM_CLASSES for c in row)
        for row in labels
    )
    if not is_valid:
        raise DataError(
            f"{path} is not a file of ReaL labels: a list with the class numbers of each image.",
            "It is real.json of google-research/reassessed-imagenet.",
        )
    return labels


def require_real_labels(dataset: ImageDataset, labels: list[list[int]]) -> None:
    """Raise `DataError` unless every image has a place in the labels."""
    for index in range(len(dataset.labels)):
        _parse_number(dataset.name(index), len(labels))


def map_to_imagenet(model_config: ModelConfig) -> Tensor:
    """Return ImageNet's index of each of a model's classes, [K], `NO_CLASS` for other classes.

    Raises:
        DataError: none is a class of ImageNet.
    """
    index = {name: n for n, name in enumerate(load_imagenet_classes()[0])}
    indices = torch.tensor([index.get(name, NO_CLASS) for name in model_config.class_names or ()])
    if (indices == NO_CLASS).all():
        raise DataError(
            "The model's classes are not ImageNet's, so ReaL labels cannot score it.",
            "Leave out --real-labels.",
        )
    return indices


def score_real_labels(
    result: EvalResult, dataset: ImageDataset, to_imagenet: Tensor, labels: list[list[int]]
) -> RealLabelScore:
    """Score predictions by ReaL labels; images without one are left out, as in the paper.

    Args:
        result: the predictions, as classes of the model.
        dataset: the images.
        to_imagenet: of the model's classes, from `map_to_imagenet`.
        labels: from `read_real_labels`, as classes of ImageNet.

    Raises:
        DataError: an image is not one of ImageNet's validation set, or none has labels.
    """
    top1, top5 = [], []
    topk_preds = to_imagenet[result.topk_preds.long()].tolist()
    for index, preds in zip(result.indices.tolist(), topk_preds, strict=True):
        right = set(labels[_parse_number(dataset.name(index), len(labels))])
        if right:
            top1.append(preds[0] in right)
            top5.append(bool(right.intersection(preds)))
    if not top1:
        raise DataError("None of the images has a ReaL label.")
    return RealLabelScore(
        len(top1),
        mean_percent(torch.tensor(top1)),
        mean_percent(torch.tensor(top5)) if len(to_imagenet) > 5 else None,
    )


def _parse_number(name: str, count: int) -> int:
    """Return an image's index in the labels from its file name."""
    match = IMAGE_NUMBER.search(PurePath(name).name)
    number = int(match[1]) if match else 0
    if not 1 <= number <= count:
        raise DataError(
            f"{name} has no ReaL labels: they are for ILSVRC2012_val_00000001 to {count:08d}.",
            "Leave out --real-labels, or evaluate ImageNet's own validation images.",
        )
    return number - 1

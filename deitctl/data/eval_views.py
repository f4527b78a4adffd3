"""Evaluation views of images, and their batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deitctl.data.collation import Label, get_label, stack_images, stack_labels
from deitctl.data.dataset import ImageDataset
from deitctl.data.eval_transform import Pixels, eval_transform
from deitctl.errors import DataError
from deitctl.models.model_config import Preprocessing


class EvalSample(NamedTuple):
    """An evaluation image; without `views` if it is unreadable, and `error` has the reason."""

    views: tuple[Pixels, ...]
    """One for each preprocessing."""
    label: Label
    position: int
    error: str


class EvalBatch(NamedTuple):
    """The readable images of an evaluation batch."""

    images: list[Tensor]
    """uint8 [B,C,H,W] for each preprocessing."""
    labels: Tensor
    """int64 [B], or of several labels an image bool [B,K]."""
    indices: Tensor
    """Position of each image in the dataset, int64 [B]."""
    errors: list[tuple[int, str]]
    """Position of each unreadable image, and the reason."""


class EvalViews:
    """Evaluation views by position; each image is decoded once for all preprocessings of a value range."""

    def __init__(self, dataset: ImageDataset, preprocessings: Sequence[Preprocessing]) -> None:
        self.dataset, self.preprocessings = dataset, list(preprocessings)
        self._by_range = {
            pre.value_range: (
                dataset if pre.value_range is None else dataset.with_value_range(pre.value_range)
            )
            for pre in preprocessings
        }

    def __eq__(self, other: object) -> bool:
        """Return whether the other's batches are the same."""
        return (
            isinstance(other, EvalViews)
            and self.dataset is other.dataset
            and self.preprocessings == other.preprocessings
        )

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.dataset.labels)

    def __getitem__(self, index: int) -> EvalSample:
        label = get_label(self.dataset, index)
        try:
            # Decoded by Pillow and in full: an evaluation's pixels are timm's to the bit.
            images = {pre: dataset.read(index) for pre, dataset in self._by_range.items()}
        except DataError as error:
            return EvalSample((), label, index, str(error))
        views = tuple(eval_transform(images[pre.value_range], pre) for pre in self.preprocessings)
        return EvalSample(views, label, index, "")

    def collate(self, samples: Sequence[EvalSample]) -> EvalBatch:
        """Stack the readable samples."""
        good = [s for s in samples if not s.error]
        return EvalBatch(
            [stack_images([s.views[n] for s in good]) for n in range(len(self.preprocessings))],
            stack_labels([s.label for s in samples], [not s.error for s in samples]),
            torch.tensor([s.position for s in good], dtype=torch.int64),
            [(s.position, s.error) for s in samples if s.error],
        )

    def prefetch(self, positions: Sequence[int]) -> None:
        """Start reading the images at these positions."""
        self.dataset.prefetch(positions)

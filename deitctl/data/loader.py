"""Batches of uint8 pictures, decoded and augmented by worker processes, the same whatever their number."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deitctl.card import Preprocessing
from deitctl.config import AugmentConfig
from deitctl.data.samplers import SampleKey, TrainBatches
from deitctl.data.sources import Source
from deitctl.data.transforms import Pixels, eval_view, train_view
from deitctl.errors import DataError


class Sample(NamedTuple):
    """One picture as a worker returns it; `pixels` is None where it could not be read, and `error` says why."""

    pixels: Pixels | None
    label: int
    key: SampleKey
    error: str


class Batch(NamedTuple):
    """The readable pictures of a batch, uint8 [B,3,S,S], labels [B], their keys, and what could not be read."""

    images: Tensor
    labels: Tensor
    keys: list[SampleKey]
    errors: list[tuple[int, str]]
    """Index in the source, and why."""


class TrainViews(Dataset[Sample]):
    """Augmented views by key."""

    def __init__(self, source: Source, augment: AugmentConfig, img_size: int, seed: int) -> None:
        self.source, self.augment, self.img_size, self.seed = source, augment, img_size, seed

    def __getitem__(self, key: SampleKey) -> Sample:
        label = int(self.source.labels[key.index])
        try:
            image = self.source.read(key.index)
        except DataError as error:
            return Sample(None, label, key, str(error))
        return Sample(train_view(image, self.augment, self.img_size, self.seed, *key), label, key, "")


class EvalViews(Dataset[Sample]):
    """The one view of each picture that evaluation uses, by position."""

    def __init__(self, source: Source, preprocessing: Preprocessing) -> None:
        self.source, self.preprocessing = source, preprocessing

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> Sample:
        key, label = SampleKey(0, index, 0), int(self.source.labels[index])
        try:
            return Sample(eval_view(self.source.read(index), self.preprocessing), label, key, "")
        except DataError as error:
            return Sample(None, label, key, str(error))


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack the readable samples; the others are named, never replaced by another picture."""
    good = [s for s in samples if s.pixels is not None]
    images = np.stack([s.pixels for s in good if s.pixels is not None]) if good else np.empty((0, 3, 0, 0), np.uint8)
    return Batch(
        torch.from_numpy(images),
        torch.tensor([s.label for s in good], dtype=torch.int64),
        [s.key for s in good],
        [(s.key.index, s.error) for s in samples if s.pixels is None],
    )


def train_batches(
    source: Source, augment: AugmentConfig, img_size: int, batches: TrainBatches, *, workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """Yield every training batch from `batches.first_step` to the end of the last epoch, in one stream."""
    return _stream(
        TrainViews(source, augment, img_size, batches.seed),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
    )


def eval_batches(
    source: Source, preprocessing: Preprocessing, *, batch_size: int, workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """Yield every picture of a source once, in order."""
    return _stream(
        EvalViews(source, preprocessing),
        batch_size=batch_size,
        num_workers=workers if len(source.labels) > batch_size else 0,
        pin_memory=pin_memory,
    )


def _stream(views: Dataset[Sample], **options: Any) -> Iterator[Batch]:
    with warnings.catch_warnings():  # the number of processes is the user's to choose
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return iter(DataLoader(views, collate_fn=collate, worker_init_fn=_leave_signals_to_the_parent, **options))


def _leave_signals_to_the_parent(_: int) -> None:
    """Let signals that reach the whole process group be the training process's to handle; it ends its loaders."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

"""Batches of uint8 images, decoded and augmented by worker processes, the same whatever their number."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deitctl.config import AugmentConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.eval_transform import Pixels, eval_transform
from deitctl.data.samplers import SampleKey, TrainBatches, view_of
from deitctl.data.transforms import train_transform
from deitctl.errors import DataError
from deitctl.models.model_config import Preprocessing


class Sample(NamedTuple):
    """One image as a worker returns it; `pixels` is None where it could not be read, and `error` says why."""

    pixels: Pixels | None
    label: int
    key: SampleKey
    error: str
    teacher_pixels: Pixels | None = None
    """The same view in the teacher's input size, where it will be asked about it."""


class Batch(NamedTuple):
    """The readable images of a batch, uint8 [B,3,S,S], labels [B], their keys, and what could not be read."""

    images: Tensor
    labels: Tensor
    keys: list[SampleKey]
    slots: list[int]
    """Their places in the batch, in which what cannot be read has a place too."""
    unreadable: list[tuple[SampleKey, str]]
    """Key, and why."""
    teacher_images: Tensor
    """Views for a teacher to be asked about, uint8 [M,3,T,T]; M is 0 without a teacher."""
    teacher_rows: list[int]
    """Which images of the batch they are."""

    @property
    def errors(self) -> list[tuple[int, str]]:
        """Index in the source of each image that could not be read, and why."""
        return [(key.index, why) for key, why in self.unreadable]

    def parts(self, size: int) -> Iterator[Batch]:
        """Yield the readable images in batches of `size` slots, which is even, so that neighbors stay together."""
        if not size or size >= max(self.slots, default=0) + 1:
            yield self
            return
        groups: dict[int, list[int]] = {}
        for row, slot in enumerate(self.slots):
            groups.setdefault(slot // size, []).append(row)
        for rows in groups.values():
            place = {row: n for n, row in enumerate(rows)}
            asked = [n for n, row in enumerate(self.teacher_rows) if row in place]
            yield Batch(
                self.images[rows],
                self.labels[rows],
                [self.keys[r] for r in rows],
                [self.slots[r] for r in rows],
                [],
                self.teacher_images[asked],
                [place[self.teacher_rows[n]] for n in asked],
            )


@dataclass(frozen=True)
class ViewPlan:
    """Which view a sample shows, and whether a teacher is to see it too."""

    seed: int
    """Of the views."""
    views: int = 0
    """How many come again and again; 0: new ones every epoch."""
    repeats: int = 1
    teacher_size: int = 0
    """Side of the teacher's input in pixels; 0: no teacher looks at views."""
    known: Callable[[int, int], bool] | None = None
    """Whether the teacher's word about (view, image) is at hand already."""
    early_epochs: int = 0
    """Epochs that see the student's views smaller."""
    early_size: int = 0
    """Their side in pixels."""


class TrainViews(Dataset[Sample]):
    """Augmented views by key, in the student's size, and in the teacher's where it must be asked."""

    def __init__(
        self, dataset: ImageDataset, augment: AugmentConfig, img_size: int, plan: ViewPlan
    ) -> None:
        self.dataset, self.augment, self.img_size, self.plan = dataset, augment, img_size, plan

    def __getitem__(self, key: SampleKey) -> Sample:
        plan, label = self.plan, int(self.dataset.labels[key.index])
        view = view_of(key, views=plan.views, repeats=plan.repeats)
        img_size = plan.early_size if key.epoch < plan.early_epochs else self.img_size
        unasked = not plan.teacher_size or (plan.known is not None and plan.known(view, key.index))
        try:
            image = self.dataset.open(key.index)
            pixels = train_transform(image, self.augment, img_size, plan.seed, view, key.index)
            if unasked or plan.teacher_size == img_size:
                return Sample(pixels, label, key, "", None if unasked else pixels)
            shown = train_transform(
                image, self.augment, plan.teacher_size, plan.seed, view, key.index
            )
        except DataError as error:
            return Sample(None, label, key, str(error))
        return Sample(pixels, label, key, "", shown)


class EvalSample(NamedTuple):
    """One image for evaluation, once a preprocessing; no `views` where it could not be read, and `error` says why."""

    views: tuple[Pixels, ...]
    label: int
    position: int
    error: str


class EvalBatch(NamedTuple):
    """The readable images of a batch: uint8 [B,3,S,S] for each preprocessing, labels [B], positions in the source [B]."""

    images: list[Tensor]
    labels: Tensor
    indices: Tensor
    errors: list[tuple[int, str]]
    """Position of each image that could not be read, and why."""


class EvalViews(Dataset[EvalSample]):
    """The views of each image that evaluation uses, by position; an image is read once for all of them."""

    def __init__(self, dataset: ImageDataset, preprocessings: Sequence[Preprocessing]) -> None:
        self.dataset, self.preprocessings = dataset, preprocessings

    def __len__(self) -> int:
        return len(self.dataset.labels)

    def __getitem__(self, index: int) -> EvalSample:
        label = int(self.dataset.labels[index])
        try:
            image = self.dataset.read(index)
        except DataError as error:
            return EvalSample((), label, index, str(error))
        return EvalSample(
            tuple(eval_transform(image, p) for p in self.preprocessings), label, index, ""
        )

    def collate(self, samples: Sequence[EvalSample]) -> EvalBatch:
        """Stack the readable samples."""
        good = [s for s in samples if not s.error]
        return EvalBatch(
            [_stack([s.views[n] for s in good]) for n in range(len(self.preprocessings))],
            torch.tensor([s.label for s in good], dtype=torch.int64),
            torch.tensor([s.position for s in good], dtype=torch.int64),
            [(s.position, s.error) for s in samples if s.error],
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack the readable samples; the others are named, never replaced by another image."""
    slots = [slot for slot, s in enumerate(samples) if s.pixels is not None]
    good = [samples[slot] for slot in slots]
    return Batch(
        _stack([s.pixels for s in good if s.pixels is not None]),
        torch.tensor([s.label for s in good], dtype=torch.int64),
        [s.key for s in good],
        slots,
        [(s.key, s.error) for s in samples if s.pixels is None],
        _stack([s.teacher_pixels for s in good if s.teacher_pixels is not None]),
        [row for row, s in enumerate(good) if s.teacher_pixels is not None],
    )


def _stack(images: Sequence[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(images) if images else np.empty((0, 3, 0, 0), np.uint8))


def build_train_loader(
    dataset: ImageDataset,
    augment: AugmentConfig,
    img_size: int,
    batches: TrainBatches,
    *,
    workers: int,
    pin_memory: bool,
    plan: ViewPlan | None = None,
    share: slice = slice(None),
) -> Iterator[Batch]:
    """Yield every training batch from `batches.first_step` to the end of the last epoch, in one stream.

    Without a `plan` every epoch shows new views of the batches' seed. Of several processes each takes its `share`.
    """
    plan = plan or ViewPlan(batches.seed, repeats=batches.repeats)
    mine = (keys[share] for keys in batches)
    return _training_stream(TrainViews(dataset, augment, img_size, plan), mine, workers, pin_memory)


def build_view_loader(
    dataset: ImageDataset,
    augment: AugmentConfig,
    img_size: int,
    view_seed: int,
    wanted: Iterable[list[SampleKey]],
    *,
    workers: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """Yield the views that batches of keys ask for, each key's `epoch` being the number of a view."""
    return _training_stream(
        TrainViews(dataset, augment, img_size, ViewPlan(view_seed)), wanted, workers, pin_memory
    )


def _training_stream(
    views: TrainViews, keys: Iterable[list[SampleKey]], workers: int, pin_memory: bool
) -> Iterator[Batch]:
    ahead = 4 if workers else None
    return _stream(
        views,
        collate_fn=collate,
        batch_sampler=keys,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=ahead,
    )


def build_eval_loader(
    dataset: ImageDataset,
    preprocessings: Sequence[Preprocessing],
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    share: slice = slice(None),
) -> Iterator[EvalBatch]:
    """Yield every image of a source once, in order; of several processes each takes its `share` of the positions."""
    mine, views = range(len(dataset.labels))[share], EvalViews(dataset, preprocessings)
    return _stream(
        views,
        collate_fn=views.collate,
        sampler=mine,
        batch_size=batch_size,
        num_workers=workers if len(mine) > batch_size else 0,
        pin_memory=pin_memory,
    )


def _stream(views: Dataset[Any], **options: Any) -> Iterator[Any]:
    with warnings.catch_warnings():  # the number of processes is the user's to choose
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return iter(DataLoader(views, worker_init_fn=ignore_signals, **options))


def ignore_signals(_: int) -> None:
    """Let signals that reach the whole process group be the training process's to handle; it ends its loaders."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

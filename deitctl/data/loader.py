"""Batches of uint8 images, decoded and augmented by worker processes.

The same for any number of workers.

Letters: B images of a batch, S and T pixels of the student's and the teacher's input side, M images
for the teacher.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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
from deitctl.errors import DataError, DeitctlError
from deitctl.models.model_config import Preprocessing


class Sample(NamedTuple):
    """A training image as a worker returns it.

    `pixels` is None if it is unreadable, and `error` has the reason.
    """

    pixels: Pixels | None
    label: int
    key: SampleKey
    error: str
    teacher_pixels: Pixels | None = None
    """The same view at the teacher's input size, if its targets are not cached."""


class Batch(NamedTuple):
    """The readable images of a training batch."""

    images: Tensor
    """uint8 [B,3,S,S]."""
    labels: Tensor
    """int64 [B]."""
    keys: list[SampleKey]
    slots: list[int]
    """Place of each image in the batch as sampled, where unreadable images have places too."""
    unreadable: list[tuple[SampleKey, str]]
    """Key and reason."""
    teacher_images: Tensor
    """Views whose teacher targets are not cached, uint8 [M,3,T,T]; M is 0 without a teacher."""
    teacher_rows: list[int]
    """Row of each of them in the batch."""

    @property
    def errors(self) -> list[tuple[int, str]]:
        """Index in the dataset of each unreadable image, and the reason."""
        return [(key.index, why) for key, why in self.unreadable]

    def split(self, size: int) -> Iterator[Batch]:
        """Yield micro-batches of `size` slots (0: all).

        `size` must be even, so that mixed pairs stay together.
        """
        if not size or size >= max(self.slots, default=0) + 1:
            yield self
            return
        # By slot, not by row: an unreadable image then moves no other into another micro-batch.
        groups: dict[int, list[int]] = {}
        for row, slot in enumerate(self.slots):
            groups.setdefault(slot // size, []).append(row)
        for rows in groups.values():
            new_rows = {row: n for n, row in enumerate(rows)}
            teacher = [n for n, row in enumerate(self.teacher_rows) if row in new_rows]
            yield Batch(
                images=self.images[rows],
                labels=self.labels[rows],
                keys=[self.keys[r] for r in rows],
                slots=[self.slots[r] for r in rows],
                unreadable=[],
                teacher_images=self.teacher_images[teacher],
                teacher_rows=[new_rows[self.teacher_rows[n]] for n in teacher],
            )


@dataclass(frozen=True)
class ViewPlan:
    """Which view each sample shows, at which sizes."""

    seed: int
    """Of the views."""
    views: int = 0
    """Views per image, cycled over the epochs; 0: fresh views every epoch."""
    repeats: int = 1
    """Of repeated augmentation."""
    teacher_size: int = 0
    """Side of the teacher's input in pixels; 0: no teacher sees views."""
    is_cached: Callable[[int, int], bool] | None = None
    """Whether the teacher's targets of (view, image) are cached."""
    early_epochs: int = 0
    """Epochs of progressive resizing."""
    early_size: int = 0
    """The student's input side during these, in pixels."""


class TrainViews(Dataset[Sample]):
    """Augmented views by key, at the student's size.

    At the teacher's too, where the teacher must compute targets.
    """

    def __init__(
        self, dataset: ImageDataset, augment: AugmentConfig, img_size: int, plan: ViewPlan
    ) -> None:
        self.dataset, self.augment, self.img_size, self.plan = dataset, augment, img_size, plan

    def __getitem__(self, key: SampleKey) -> Sample:
        plan, label = self.plan, int(self.dataset.labels[key.index])
        view = view_of(key, views=plan.views, repeats=plan.repeats)
        img_size = plan.early_size if key.epoch < plan.early_epochs else self.img_size
        is_cached = plan.is_cached is not None and plan.is_cached(view, key.index)
        teacher_size = 0 if is_cached else plan.teacher_size
        try:
            # Opened, not decoded: the crop decides at which scale a JPEG is decoded.
            image = self.dataset.open(key.index)
            pixels = {
                size: train_transform(image, self.augment, size, plan.seed, view, key.index)
                for size in {img_size, teacher_size or img_size}
            }
        except DataError as error:
            return Sample(None, label, key, str(error))
        return Sample(pixels[img_size], label, key, "", pixels.get(teacher_size))


class EvalSample(NamedTuple):
    """An evaluation image; without `views` if it is unreadable, and `error` has the reason."""

    views: tuple[Pixels, ...]
    """One for each preprocessing."""
    label: int
    position: int
    error: str


class EvalBatch(NamedTuple):
    """The readable images of an evaluation batch."""

    images: list[Tensor]
    """uint8 [B,3,S,S] for each preprocessing."""
    labels: Tensor
    """int64 [B]."""
    indices: Tensor
    """Position of each image in the dataset, int64 [B]."""
    errors: list[tuple[int, str]]
    """Position of each unreadable image, and the reason."""


class EvalViews(Dataset[EvalSample]):
    """Evaluation views by position; each image is decoded once for all preprocessings."""

    def __init__(self, dataset: ImageDataset, preprocessings: Sequence[Preprocessing]) -> None:
        self.dataset, self.preprocessings = dataset, preprocessings

    def __len__(self) -> int:
        return len(self.dataset.labels)

    def __getitem__(self, index: int) -> EvalSample:
        label = int(self.dataset.labels[index])
        try:
            # Decoded by Pillow and in full: an evaluation's pixels are timm's to the bit.
            image = self.dataset.read(index)
        except DataError as error:
            return EvalSample((), label, index, str(error))
        views = tuple(eval_transform(image, pre) for pre in self.preprocessings)
        return EvalSample(views, label, index, "")

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
    """Stack the readable samples; unreadable ones are reported, never replaced by another image."""
    slots = [slot for slot, s in enumerate(samples) if s.pixels is not None]
    good = [samples[slot] for slot in slots]
    return Batch(
        images=_stack([s.pixels for s in good if s.pixels is not None]),
        labels=torch.tensor([s.label for s in good], dtype=torch.int64),
        keys=[s.key for s in good],
        slots=slots,
        unreadable=[(s.key, s.error) for s in samples if s.pixels is None],
        teacher_images=_stack([s.teacher_pixels for s in good if s.teacher_pixels is not None]),
        teacher_rows=[row for row, s in enumerate(good) if s.teacher_pixels is not None],
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
    shard: slice = slice(None),
) -> Iterator[Batch]:
    """Iterate over the training batches from `batches.first_step` to the last epoch.

    Without a break between epochs.

    Args:
        plan: default: fresh views every epoch, of the batches' seed.
        shard: of each batch, for one of several processes.
    """
    plan = plan or ViewPlan(batches.seed, repeats=batches.repeats)
    # Every process draws the global batch and takes a slice of it, so results do not depend on the
    # number of processes.
    keys = (keys[shard] for keys in batches)
    return _iterate_views(TrainViews(dataset, augment, img_size, plan), keys, workers, pin_memory)


def build_view_loader(
    dataset: ImageDataset,
    augment: AugmentConfig,
    img_size: int,
    view_seed: int,
    batches: Iterable[list[SampleKey]],
    *,
    workers: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    """Iterate over the views of batches of keys, in which `epoch` is the number of a view."""
    views = TrainViews(dataset, augment, img_size, ViewPlan(view_seed))
    return _iterate_views(views, batches, workers, pin_memory)


def _iterate_views(
    views: TrainViews, batches: Iterable[list[SampleKey]], workers: int, pin_memory: bool
) -> Iterator[Batch]:
    return _iterate(
        views,
        collate,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        # torch refuses a prefetch factor without workers.
        prefetch_factor=4 if workers else None,
    )


def build_eval_loader(
    dataset: ImageDataset,
    preprocessings: Sequence[Preprocessing],
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    shard: slice = slice(None),
) -> Iterator[EvalBatch]:
    """Iterate over every image of a dataset once, in order.

    `shard` selects positions for one of several processes.
    """
    positions, views = range(len(dataset.labels))[shard], EvalViews(dataset, preprocessings)
    return _iterate(
        views,
        views.collate,
        sampler=positions,
        batch_size=batch_size,
        # Starting workers takes longer than one batch.
        num_workers=workers if len(positions) > batch_size else 0,
        pin_memory=pin_memory,
    )


def _iterate(views: Dataset[Any], collate_fn: Callable[..., Any], **options: Any) -> Iterator[Any]:
    with warnings.catch_warnings():  # on more workers than cores, which is the user's choice
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return iter(
            DataLoader(views, collate_fn=collate_fn, worker_init_fn=ignore_signals, **options)
        )


def ignore_signals(_: int) -> None:
    """Ignore signals in a worker.

    They reach the whole process group, and the training process ends its loaders.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


@contextmanager
def translate_worker_errors(hint: str) -> Iterator[None]:
    """Turn torch's errors of a loader process into one line.

    `hint` says how to go on with fewer processes.
    """
    try:
        yield
    except DeitctlError as error:
        # torch puts the traceback of the process in front of the message
        if not error.message.startswith("Caught "):
            raise
        last = error.message.strip().splitlines()[-1]
        raise type(error)(last.partition(": ")[2] or last) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DeitctlError("A loader process died, most often of lack of memory.", hint) from error

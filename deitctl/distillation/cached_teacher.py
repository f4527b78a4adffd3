"""Teacher targets of a batch's views: read from the cache, or computed by the network if missing.

Letters: B images, K classes, M of the images without a cached target, T the teacher's input side.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import Batch, build_view_loader
from deitctl.data.samplers import SampleKey, view_of
from deitctl.device import Device
from deitctl.distillation.joint_targets import Cache, JointCodec
from deitctl.distillation.targets import Records, TeacherTargets, teacher_targets
from deitctl.distillation.teacher import Teacher, TeacherOutput
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.errors import DataChanged, DataError, ReadError, TeacherError
from deitctl.events import Reporter

REWRITE_S = 0.05
"""Until a record that another program writes is whole, which takes microseconds on a disk."""


class Filling(NamedTuple):
    """What filling a cache has done."""

    num_computed: int
    """Targets that were missing."""
    unread: frozenset[int]
    """Images that could not be read, whose targets are still missing."""


@dataclass(frozen=True)
class CachedTeacher:
    """Returns the teacher targets of a batch's views, and caches what it computes."""

    codec: JointCodec
    tau: float
    cache: Cache | None
    """None: every target is computed every time."""
    load_network: Callable[[], Teacher]
    """Called when a target is missing, so perhaps never."""
    device: Device
    views: int
    """Views per image that are cycled over the epochs, 0 for fresh ones."""
    repeats: int
    """Views of an image in one epoch, see `view_of`."""
    place: int = 0
    """Of its input among those that the batch has views for, see `Batch.teacher_images`."""

    @property
    def has_target(self) -> Callable[[int, int], bool] | None:
        """Whether the target of (view, image) is cached, so that a loader need not render the view.

        The cache's own method, which is pickled to a loader process without the network. None: no
        cache.
        """
        return self.cache.has_target if self.cache is not None else None

    def __call__(self, batch: Batch, size: int = 0) -> TeacherTargets:
        """Return the targets of a batch's views; those that are computed are cached.

        Args:
            batch: with the views whose targets are missing.
            size: of the batches that the network gets, to which a smaller one is padded: the last bit of a
                result can depend on it, and an epoch's last batch would give a view other targets than others do.
        """
        # Cached or not, a target passes through its stored form, so that both train the same.
        size = max(size, len(batch.keys))
        if self.cache is None:
            images = batch.teacher_images[self.place]
            padded = _pad_batch(images, range(len(images)), size)
            return self.codec.decode(self.compute(padded)[: len(images)])
        views = (view_of(key, views=self.views, repeats=self.repeats) for key in batch.keys)
        keys = [(view, key.index) for view, key in zip(views, batch.keys, strict=True)]
        records, cached = self.cache.read(keys)
        if not cached.all():
            own_rows = batch.teacher_rows[self.place]
            rendered = [(n, row) for n, row in enumerate(own_rows) if not cached[row]]
            rows = [row for _, row in rendered]
            self._read_again(keys, sorted({*np.flatnonzero(~cached).tolist()} - {*rows}), records)
            if rows:
                images = batch.teacher_images[self.place][[n for n, _ in rendered]]
                computed = self.compute(_pad_batch(images, rows, size))[rows]
                records[rows] = self.codec.complete(records[rows], computed)
                self.cache.write([keys[row] for row in rows], records[rows])
        return self.codec.decode(records)

    def _read_again(
        self, keys: Sequence[tuple[int, int]], rows: Sequence[int], records: Records
    ) -> None:
        """Read the records of `rows` once more, whose views were not rendered because they had targets.

        Another program that fills the same cache may just be writing them.

        Raises:
            DataChanged: they are gone.
        """
        if not rows:
            return
        assert self.cache is not None
        time.sleep(REWRITE_S)
        records[rows], cached = self.cache.read([keys[row] for row in rows])
        if not cached.all():
            raise DataChanged(
                f"The teacher targets in {self.cache.root} were changed while in use.",
                "Targets that are gone are computed again.",
            )

    def compute(self, pixels: Tensor) -> Records:
        """Compute the target records of views, uint8 [B,3,T,T]; raise if outputs are not finite."""
        with torch.no_grad(), self.device.autocast():
            output = self.load_network().forward_views(self.device.to_device(pixels))
        return self.codec.encode(convert_output(output, self.codec, self.tau))

    def fill(
        self,
        dataset: ImageDataset,
        augment: AugmentConfig,
        view_seed: int,
        num_views: int,
        *,
        batch_size: int,
        workers: int,
        reporter: Reporter,
        world: World = SINGLE_PROCESS,
        pause: Callable[[], None] = lambda: None,
    ) -> Filling:
        """Compute all missing targets of the first `num_views` views.

        An image that cannot be decoded is marked in the cache. One that could not be read stays
        missing, so that the next start computes its targets. The processes of a `world` split the
        images; other programs may fill the cache at the same time. `pause` is called between two
        batches, where it may save or stop.
        """
        cache = self.cache
        if cache is None:
            return Filling(0, frozenset())
        num_missing = cache.count_missing(num_views)
        if not any(world.all_gather_object(num_missing)):
            return Filling(0, frozenset())
        num_computed, unread = 0, set[int]()
        own = self.load_network().model_config.preprocessing
        batches = build_view_loader(
            dataset,
            augment,
            own.img_size,
            view_seed,
            _iter_missing(cache, num_views, batch_size, world),
            in_chans=own.in_chans,
            workers=workers,
            pin_memory=self.device.pins_memory,
            pause=pause,
            reporter=reporter,
        )
        with reporter.task("compute teacher targets", num_missing) as task:
            for batch in batches:
                pause()
                for key, _ in batch.unreadable:
                    if _is_damaged(dataset, key.index):
                        cache.mark_damaged([(key.epoch, key.index)])
                    else:
                        unread.add(key.index)
                if batch.keys:
                    images = _pad_batch(batch.images, range(len(batch.keys)), batch_size)
                    computed = self.compute(images)[: len(batch.keys)]
                    keys = [(key.epoch, key.index) for key in batch.keys]
                    records, _ = cache.read(keys)
                    cache.write(keys, self.codec.complete(records, computed))
                num_computed += len(batch.keys)
                task.advance(world.size * (len(batch.keys) + len(batch.unreadable)))
        parts = world.all_gather_object((num_computed, unread))
        return Filling(sum(n for n, _ in parts), frozenset().union(*(s for _, s in parts)))


def convert_output(output: TeacherOutput, codec: JointCodec, tau: float) -> TeacherTargets:
    """Return what a student learns of a teacher's output, not rounded yet.

    Args:
        output: of B images.
        codec: of what is learned.
        tau: temperature of soft labels.

    Raises:
        TeacherError: logits that are not finite.
    """
    labels: Tensor | None = None
    features: tuple[Tensor, ...] = ()
    if codec.labels is not None:
        assert output.logits is not None
        if not output.logits.isfinite().all():
            raise TeacherError(
                "The teacher's logits are not finite.", "Check its weights; or --precision fp32."
            )
        mode, is_multilabel = codec.labels.mode, codec.labels.is_multilabel
        labels = output.logits.float()
        if mode != "logits":
            labels = teacher_targets(labels, mode, tau, is_multilabel)
    if codec.features is not None:
        assert output.features is not None
        features = (output.features.float(),)
    return TeacherTargets(labels, features)


def _is_damaged(dataset: ImageDataset, index: int) -> bool:
    """Return whether an image that failed can be read now, and not decoded."""
    try:
        dataset.read(index)
    except ReadError:
        return False
    except DataError:
        return True
    return False


def _iter_missing(
    cache: Cache, num_views: int, batch_size: int, world: World
) -> Iterator[list[SampleKey]]:
    """Yield batches of (view, image) keys without a target, a share of them in each process.

    The order differs from process to process, and each batch is checked again when its turn comes:
    so several programs that fill one cache at once rarely compute the same target.
    """
    # Strings passed to `rng` are part of the seed: they are not renamed with the code.
    draw = rng.generator("teach", os.getpid())
    for view in draw.permutation(num_views).tolist():
        missing = cache.missing_indices(view)
        # The share depends on the image's index alone: processes that see different states of the
        # cache still cover every image once.
        missing = missing[missing // batch_size % world.size == world.rank]
        starts = range(0, len(missing), batch_size)
        for turn in draw.permutation(len(starts)).tolist():
            chunk = missing[starts[turn] : starts[turn] + batch_size]
            still_missing = cache.missing_indices(view, int(chunk[0]), int(chunk[-1]) + 1)
            if left := np.intersect1d(chunk, still_missing, assume_unique=True).tolist():
                yield [SampleKey(view, index, 0) for index in left]


def _pad_batch(images: Tensor, rows: Sequence[int], size: int) -> Tensor:
    """Put views [M,3,T,T] into `rows` of a batch of `size`, black elsewhere.

    A partially cached batch is padded to its full size, because the last bit of a result can
    depend on the batch size; a resumed run then gets identical logits.
    """
    if len(images) == size:
        return images
    batch = images.new_zeros((size, *images.shape[1:]))
    batch[list(rows)] = images
    return batch

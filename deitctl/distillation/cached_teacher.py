"""Teacher targets of a batch's views: read from the cache, or computed by the network if missing.

Letters: B images, K classes, M of the images without a cached target, T the teacher's input side.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import Batch, build_view_loader
from deitctl.data.samplers import SampleKey, view_of
from deitctl.device import Device
from deitctl.distillation.compact_targets import (
    BAD_FEATURES,
    BAD_LOGITS,
    CompactTargets,
    PendingTargets,
    complete_targets,
    place_targets,
    refuse_fault,
)
from deitctl.distillation.joint_targets import Cache, JointCodec
from deitctl.distillation.targets import Records, TeacherTargets, teacher_targets, to_records
from deitctl.distillation.teacher import Teacher, TeacherOutput
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.errors import DataChanged, DataError, ReadError
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
    name_image: Callable[[int], str] = "image {}".format
    """What an image is called, by its index in the data set."""
    pending: PendingTargets = field(default_factory=PendingTargets)
    """What is computed and not stored yet."""

    @property
    def has_target(self) -> Callable[[int, int], bool] | None:
        """Whether the target of (view, image) is cached, so that a loader need not render the view.

        The cache's own method, which is pickled to a loader process without the network. None: no
        cache.
        """
        return self.cache.has_target if self.cache is not None else None

    def __call__(self, batch: Batch, size: int = 0) -> TeacherTargets:
        """Return the targets of a batch's views at once; see `read` and `complete`."""
        images = [self.device.to_device(images) for images in batch.teacher_images]
        return self.complete(self.read(batch), images, batch.teacher_rows, size)

    def read(self, batch: Batch) -> tuple[CompactTargets, ...]:
        """Read what is cached of a batch's targets, and begin to copy it to the device.

        Returns:
            One of this teacher; several teachers have more.

        Raises:
            DataChanged: a target is gone whose view was not rendered.
        """
        views = (view_of(key, views=self.views, repeats=self.repeats) for key in batch.keys)
        keys = [(view, key.index) for view, key in zip(views, batch.keys, strict=True)]
        if self.cache is None or not keys:
            shape = (len(keys), len(self.codec.parts))
            records = np.zeros((len(keys), 0), np.uint16)
            return (CompactTargets(keys, records, np.zeros(shape, bool), None, None),)
        records, cached = self.cache.read(keys)
        if not cached.all():
            missing = set(np.flatnonzero(~cached).tolist())
            self._read_again(keys, sorted(missing - {*batch.teacher_rows[self.place]}), records)
        return (place_targets(keys, records, self._find_stored(records, cached), self.device),)

    def complete(
        self,
        targets: Sequence[CompactTargets],
        images: Sequence[Tensor],
        rows: Sequence[Sequence[int]],
        size: int = 0,
    ) -> TeacherTargets:
        """Return the targets of a batch's views on the device; those that are computed are stored when they are
        on the host, see `mark`.

        Args:
            targets: that were read.
            images: see `Batch.teacher_images`, on the device.
            rows: see `Batch.teacher_rows`.
            size: of the batches that the network gets, to which a smaller one is padded: the last bit of a
                result can depend on it, and an epoch's last batch would give a view other targets than others do.

        Raises:
            TeacherError: outputs that are not finite, of this batch on a CPU, of an earlier one on an accelerator.
        """
        (compact,) = targets
        compact = self._look_again(compact)
        # Cached or not, a target passes through its stored form, so that both train the same.
        if compact.is_complete:
            assert compact.numbers is not None
            return self.codec.unpack(compact.numbers)
        views = self._pad(
            images[self.place],
            rows[self.place],
            compact.find_missing(),
            max(size, len(compact.keys)),
        )
        computed, faults = (x[: len(compact.keys)] for x in self._run(views))
        self._store_later(compact, computed, faults)
        return self.codec.unpack(complete_targets(compact, computed, self.codec))

    def mark(self) -> Callable[[], None]:
        """Return what stores the targets that were computed so far, waits for them if need be, and raises
        `TeacherError` if some are not finite."""
        last = self.pending.last
        return lambda: self.pending.flush(last)

    def _look_again(self, compact: CompactTargets) -> CompactTargets:
        """Return targets with those that have been stored since they were read: of an earlier batch or part of this
        one, of an attempt at which memory ran out, or by another program."""
        if self.cache is None or compact.is_complete:
            return compact
        rows = compact.find_missing()
        keys = [compact.keys[row] for row in rows]
        if self.pending.holds_any(keys):
            self.pending.flush()
        records, cached = self.cache.read(keys)
        stored = self._find_stored(records, cached)
        if np.array_equal(stored, compact.stored[rows]):
            return compact
        all_records, all_stored = compact.records.copy(), compact.stored.copy()
        all_records[rows], all_stored[rows] = records, stored
        return place_targets(compact.keys, all_records, all_stored, self.device)

    def _find_stored(self, records: Records, cached: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return whether each kind of target is stored, [B, kinds]; `cached`: whether all are, [B]."""
        if len(self.codec.parts) == 1:
            return cached[:, None]
        return self.codec.find_valid(records)

    def _pad(self, images: Tensor, rows: Sequence[int], missing: list[int], size: int) -> Tensor:
        """Put the views [M,3,T,T] of rows that are missing into their rows of a batch of `size`, black elsewhere.

        A partially cached batch is padded to its full size, because the last bit of a result can
        depend on the batch size; a resumed run then gets identical logits.
        """
        needed = set(missing)
        chosen = [n for n, row in enumerate(rows) if row in needed]
        if len(chosen) < len(images):
            images = images[self._send(chosen)]
        if len(images) == size:
            return images
        batch = images.new_zeros((size, *images.shape[1:]))
        batch[self._send([rows[n] for n in chosen])] = images
        return batch

    def _send(self, indices: list[int]) -> Tensor:
        return self.device.to_device(self.device.pin(torch.tensor(indices, dtype=torch.int64)))

    def _store_later(self, compact: CompactTargets, computed: Tensor, faults: Tensor) -> None:
        """Begin to read computed targets, and store them when they are on the host."""
        rows = compact.find_missing()
        keys = [compact.keys[row] for row in rows]
        cache = self.cache
        values = faults[:, None] if cache is None else torch.cat([faults[:, None], computed], 1)

        def store(values: Tensor) -> None:
            refuse_fault(values[rows, 0], lambda n: self.name_image(keys[n][1]))
            if cache is not None:
                # A program that fills the same cache may have been faster.
                records, _ = cache.read(keys)
                own = self.codec.seal(to_records(values[rows, 1:]))
                cache.write(keys, self.codec.complete(records, own))

        self.pending.add(self.device.read_later(values), keys, store)

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

    def compute(self, pixels: Tensor, keys: Sequence[tuple[int, int]] = ()) -> Records:
        """Compute the target records of views, uint8 [B,3,T,T], of which only the first have `keys` where there are
        any; raise `TeacherError` if outputs are not finite."""
        count = len(keys) or len(pixels)
        numbers, faults = (x[:count] for x in self._run(self.device.to_device(pixels)))
        names = [self.name_image(index) for _, index in keys]
        refuse_fault(faults.cpu(), lambda row: names[row] if names else f"view {row}")
        return self.codec.seal(to_records(numbers))

    def _run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers of views on the device, uint8 [B,3,T,T], int16 [B,W], and what is wrong with
        them, int16 [B]."""
        with torch.no_grad(), self.device.autocast():
            output = self.load_network().forward_views(pixels)
        with torch.no_grad():
            return self.codec.pack(convert_output(output, self.codec, self.tau)), find_faults(
                output, self.codec
            )

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
                    keys = [(key.epoch, key.index) for key in batch.keys]
                    rows = range(len(keys))
                    images = self._pad(batch.images, rows, [*rows], batch_size)
                    computed = self.compute(images, keys)
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
    """
    labels: Tensor | None = None
    features: tuple[Tensor, ...] = ()
    if codec.labels is not None:
        assert output.logits is not None
        mode, is_multilabel = codec.labels.mode, codec.labels.is_multilabel
        labels = output.logits.float()
        if mode != "logits":
            labels = teacher_targets(labels, mode, tau, is_multilabel)
    if codec.features is not None:
        assert output.features is not None
        features = (output.features.float(),)
    return TeacherTargets(labels, features)


def find_faults(output: TeacherOutput, codec: JointCodec) -> Tensor:
    """Return for each image what of a teacher's output cannot be learned, int16 [B] on its device; see `FAULTS`."""
    faults = []
    if codec.labels is not None:
        assert output.logits is not None
        faults.append(~output.logits.isfinite().all(dim=1) * BAD_LOGITS)
    if codec.features is not None:
        assert output.features is not None
        faults.append(~codec.features.can_store(output.features) * BAD_FEATURES)
    worst = faults[0] if len(faults) == 1 else torch.maximum(*faults)
    return worst.to(torch.int16)


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

"""A training batch on the device, with what a step draws for it and what the host needs to know of it.

Letters: B images, C channels, H and W pixels, K classes, L blocks, M images for a teacher, T its side.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from deitctl import rng
from deitctl.data.batch_table import BatchTable, draw_table, fill_mixing
from deitctl.data.loader import Batch
from deitctl.data.mixup import MixGroup, sample_mixup
from deitctl.data.samplers import SampleKey
from deitctl.distillation.compact_targets import CompactTargets
from deitctl.models.vit import VisionTransformer
from deitctl.sizes import make_size
from deitctl.training.context import TrainContext
from deitctl.training.state import TrainState


class DeviceBatch(NamedTuple):
    """The readable images of a batch, as a step takes them.

    Every draw is a function of (seed, step), of (seed, key) or of an image's slot in the global batch, so that
    neither micro-batches nor processes change what an image becomes.
    """

    step: int
    """Of the run, which draws are a function of."""
    images: Tensor
    """uint8 [B,C,H,W]."""
    labels: Tensor
    """See `Batch.labels`."""
    keys: list[SampleKey]
    slots: list[int]
    """Place of each image in this process's batch as sampled, ascending; unreadable images have places too."""
    first_slot: int
    """Of this process's batch in the global batch."""
    unreadable: list[tuple[SampleKey, str]]
    """Key and reason."""
    table: BatchTable
    """What is drawn for each image."""
    groups: list[MixGroup]
    """How the images are mixed, for the host."""
    drop_path_mask: Tensor | None
    """See `VisionTransformer.sample_drop_path`, [L,2,B]; None where nothing is dropped."""
    teacher_images: list[Tensor]
    """For each of the teachers' inputs the views whose targets are not cached, uint8 [M,3,T,T]."""
    teacher_rows: list[list[int]]
    """Likewise the row of each of them in the batch."""
    targets: tuple[CompactTargets, ...]
    """Of each teacher that sees views what is cached."""

    @property
    def errors(self) -> list[tuple[int, str]]:
        """Index in the dataset of each unreadable image, and the reason."""
        return [(key.index, why) for key, why in self.unreadable]

    @property
    def tensors(self) -> list[Tensor]:
        """What is on the device."""
        stored = [x for own in self.targets for x in (own.numbers, own.is_stored)]
        own = [self.images, self.labels, *self.table, self.drop_path_mask, *self.teacher_images]
        return [tensor for tensor in (*own, *stored) if tensor is not None]

    def split(self, size: int) -> Iterator[DeviceBatch]:
        """Yield micro-batches of `size` slots (0: all) that have readable images.

        `size` must be even, so that mixed pairs stay together.
        """
        if not size or size >= max(self.slots, default=0) + 1:
            if self.keys:
                yield self
            return
        # By slot, not by row: an unreadable image then moves no other into another micro-batch.
        for first in range(0, self.slots[-1] + 1, size):
            start, stop = (bisect_left(self.slots, slot) for slot in (first, first + size))
            if start < stop:
                yield self._take(start, stop)

    def _take(self, start: int, stop: int) -> DeviceBatch:
        """Return the images of rows `start` to `stop`, whole pairs."""
        rows = slice(start, stop)
        of_teachers = [
            slice(bisect_left(own, start), bisect_left(own, stop)) for own in self.teacher_rows
        ]
        mask = self.drop_path_mask
        return self._replace(
            images=self.images[rows],
            labels=self.labels[rows],
            keys=self.keys[rows],
            slots=self.slots[rows],
            unreadable=[],
            groups=[
                MixGroup(slice(max(own.start, start) - start, min(own.stop, stop) - start), mix)
                for own, mix in self.groups
                if own.start < stop and start < own.stop
            ],
            table=BatchTable(self.table.values[rows], self.table.seeds[rows]),
            drop_path_mask=None if mask is None else mask[..., rows],
            teacher_images=[
                images[of] for images, of in zip(self.teacher_images, of_teachers, strict=True)
            ],
            teacher_rows=[
                [row - start for row in own[of]]
                for own, of in zip(self.teacher_rows, of_teachers, strict=True)
            ],
            targets=tuple(compact.take(rows) for compact in self.targets),
        )


def place_batch(context: TrainContext, state: TrainState, batch: Batch, step: int) -> DeviceBatch:
    """Draw what a step draws for a batch, and move it to the device.

    Args:
        context: of the run.
        state: whose model is trained.
        batch: of this process.
        step: of the run.
    """
    device, recipe = context.device, context.recipe
    first = context.world.shard(recipe.batch_size).start
    slots = [first + slot for slot in batch.slots]  # of the global batch
    size = make_size(*batch.images.shape[-2:])
    mask = draw_drop_path(context, state, step)
    table = batch.table
    if table is None:
        table = draw_table(batch.keys, recipe.augment, size, context.table_draws)
    groups = sample_mixup(recipe.augment, size, context.seed, step, slots)
    table = fill_mixing(table, groups, slots)
    return DeviceBatch(
        step=step,
        images=device.to_device(batch.images),
        labels=device.to_device(batch.labels),
        keys=batch.keys,
        slots=batch.slots,
        first_slot=first,
        unreadable=batch.unreadable,
        table=BatchTable(*(device.to_device(device.pin(tensor)) for tensor in table)),
        groups=groups,
        drop_path_mask=None if mask is None else device.to_device(device.pin(mask[..., slots])),
        teacher_images=[device.to_device(images) for images in batch.teacher_images],
        teacher_rows=batch.teacher_rows,
        targets=() if context.cached_teacher is None else context.cached_teacher.read(batch),
    )


def draw_drop_path(context: TrainContext, state: TrainState, step: int) -> Tensor | None:
    """Draw stochastic depth of a step's global batch on the CPU, [L,2,B]; None where nothing is dropped."""
    if not isinstance(
        state.model, VisionTransformer
    ):  # timm's draw their own, in the scope of the step
        return None
    generator = rng.torch_generator(context.seed, "drop-path", step)
    return state.model.sample_drop_path(context.recipe.batch_size, generator)

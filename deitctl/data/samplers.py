"""The order of training images, a function of seed and epoch.

With repeated augmentation for data of any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from deitctl import rng

REPEAT_BLOCK = 8  # images whose repeats are shuffled together


class SampleKey(NamedTuple):
    """What a sample's augmentation is a function of, besides the seed."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which no key needs
    repeat: int


def view_of(key: SampleKey, *, views: int, repeats: int) -> int:
    """Return the number of the view that a sample shows.

    `views` in turn, or with 0 a new one each time.
    """
    number = key.epoch * repeats + key.repeat
    return number % views if views else number


class EpochOrder:
    """The `count` keys of an epoch over `count` images.

    Stores the images' order, and makes keys when sliced.

    Repeated augmentation (Hoffer et al. 2020; DeiT §6): each of the first 1/repeats of a shuffle
    comes `repeats` times, each time as another view. Repeats are close together, so that they meet
    in a batch, but never adjacent, because mixup pairs neighbors. Unlike DeiT's `RASampler`, the
    order does not depend on the number of processes and does not drop images to reach a multiple of
    256.
    """

    def __init__(self, count: int, *, seed: int, epoch: int, repeats: int = 1) -> None:
        self.count, self.seed, self.epoch, self.repeats = count, seed, epoch, repeats
        shuffle = rng.generator(seed, "order", epoch).permutation(count)[: -(-count // repeats)]
        # Four bytes an image for ImageNet. Keys are made when a batch is sliced: making all at once
        # took 1.4 s an epoch, 5 s with three repeats.
        self._order = shuffle.astype(np.min_scalar_type(count))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, places: slice) -> list[SampleKey]:
        """Return the keys of a range of places, in time proportional to its length."""
        start, stop, _ = places.indices(self.count)
        if self.repeats == 1:
            return [SampleKey(self.epoch, index, 0) for index in self._order[start:stop].tolist()]
        width = REPEAT_BLOCK * self.repeats
        first = start // width
        keys = [
            key
            for block in range(first, -(-stop // width))
            for key in self._make_block(block * REPEAT_BLOCK)
        ]
        return keys[start - first * width : stop - first * width]

    def _make_block(self, start: int) -> list[SampleKey]:
        """Return all repeats of `REPEAT_BLOCK` images; each block is shuffled on its own."""
        block = self._order[start : start + REPEAT_BLOCK]
        keys: list[SampleKey] = []
        for repeat in range(self.repeats):
            turn = rng.generator(self.seed, "repeat", self.epoch, start, repeat).permutation(block)
            # Only the seam of two repeats can put an image beside itself.
            if keys and len(block) > 1 and keys[-1].index == turn[0]:
                turn = np.roll(turn, 1)
            keys += [SampleKey(self.epoch, index, repeat) for index in turn.tolist()]
        return keys


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of batches in an epoch over `count` images.

    The fewest that hold all images in whole pairs; an odd `batch_size` is rounded up to one.
    """
    return -(-_count_pairs(count) // _count_pairs(batch_size))


def batch_start(count: int, batch_size: int, number: int) -> int:
    """Return the place in an epoch's order at which its batch `number` begins."""
    # A full batch after the other would leave a rest, of one image at worst: noise as a gradient,
    # and an error in a batch norm. Dropping it, as DeiT does, leaves out up to a batch of images,
    # much of a small data set. Mixing pairs neighbors, so batches begin at even places.
    steps = steps_per_epoch(count, batch_size)
    return min(count, 2 * (_count_pairs(count) * number // steps))


def fit_batch_size(count: int, batch_size: int) -> int:
    """Return the images of the largest batch that `batch_size` comes to.

    Named in its place, it gives the same batches.
    """
    pairs, steps = _count_pairs(count), steps_per_epoch(count, batch_size)
    last_is_largest = steps == 1 or pairs % steps == 1  # all others have a pair less
    return 2 * -(-pairs // steps) - (count % 2 if last_is_largest else 0)


def _count_pairs(count: int) -> int:
    return -(-count // 2)


class TrainBatches:
    """Batch sampler: keys of each batch from step `first_step` to the last epoch.

    Every image of an epoch's order comes once in it. Sizes differ by at most 2, and all but the
    last are even.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        epochs: int,
        repeats: int = 1,
        first_step: int = 0,
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epochs, self.repeats, self.first_step = epochs, repeats, first_step
        self.steps_per_epoch = steps_per_epoch(count, batch_size)

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # Any step can be the first, because the order is a function of the epoch: resuming reads no
        # skipped image.
        start_epoch, start_batch = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(start_epoch, self.epochs):
            order = EpochOrder(self.count, seed=self.seed, epoch=epoch, repeats=self.repeats)
            for batch in range(start_batch, self.steps_per_epoch):
                yield order[self._start(batch) : self._start(batch + 1)]
            start_batch = 0

    def _start(self, batch: int) -> int:
        return batch_start(self.count, self.batch_size, batch)

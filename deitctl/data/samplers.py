"""In which order images come: a function of seed and epoch, with repeated augmentation on data of any size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from deitctl import rng

REPEAT_BLOCK = 8  # images whose repeats are shuffled together


class SampleKey(NamedTuple):
    """What an augmentation is a function of, besides the seed."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which no key needs
    repeat: int


def view_of(key: SampleKey, *, views: int, repeats: int) -> int:
    """Number the view that a sample shows: a new one every time, or with `views` of them in turn (0: new ones)."""
    number = key.epoch * repeats + key.repeat
    return number % views if views else number


class EpochOrder:
    """The `count` keys of an epoch over `count` images; kept is an array of the images, the keys are made when asked for.

    With repeated augmentation (Hoffer et al. 2020; DeiT §6) each of the first 1/repeats of a shuffle comes `repeats`
    times, in views of their own, close together so that they meet in a batch, but never as neighbors, which mixing
    pairs. Unlike the released sampler this needs no processes, seeds by `seed`, and leaves no image out for the sake
    of a multiple of 256.
    """

    def __init__(self, count: int, *, seed: int, epoch: int, repeats: int = 1) -> None:
        self.count, self.seed, self.epoch, self.repeats = count, seed, epoch, repeats
        shuffle = rng.generator(seed, "order", epoch).permutation(count)[: -(-count // repeats)]
        self._chosen = shuffle.astype(np.min_scalar_type(count))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, places: slice) -> list[SampleKey]:
        """Return the keys of a range of places; it costs what the range is long."""
        start, stop, _ = places.indices(self.count)
        if self.repeats == 1:
            return [SampleKey(self.epoch, index, 0) for index in self._chosen[start:stop].tolist()]
        width = REPEAT_BLOCK * self.repeats
        first = start // width
        keys = [
            key
            for block in range(first, -(-stop // width))
            for key in self._block(block * REPEAT_BLOCK)
        ]
        return keys[start - first * width : stop - first * width]

    def _block(self, start: int) -> list[SampleKey]:
        """Return all repeats of the images from a place of the shuffle on; blocks share none, so each is on its own."""
        block = self._chosen[start : start + REPEAT_BLOCK]
        keys: list[SampleKey] = []
        for repeat in range(self.repeats):
            turn = rng.generator(self.seed, "repeat", self.epoch, start, repeat).permutation(block)
            if keys and len(block) > 1 and keys[-1].index == turn[0]:
                turn = np.roll(turn, 1)
            keys += [SampleKey(self.epoch, index, repeat) for index in turn.tolist()]
        return keys


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the full batches of an epoch; data smaller than a batch is one batch."""
    return max(1, count // batch_size)


class TrainBatches:
    """Batches of keys from a step on, for all epochs to come; the images left over by an epoch are dropped."""

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
        self.count, self.batch_size, self.seed, self.epochs, self.repeats = (
            count,
            batch_size,
            seed,
            epochs,
            repeats,
        )
        self.first_step = first_step
        self.steps_per_epoch = steps_per_epoch(count, batch_size)

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        start_epoch, start_batch = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(start_epoch, self.epochs):
            order = EpochOrder(self.count, seed=self.seed, epoch=epoch, repeats=self.repeats)
            for batch in range(start_batch, self.steps_per_epoch):
                yield order[batch * self.batch_size : (batch + 1) * self.batch_size]
            start_batch = 0

"""The order of training images, a function of seed and epoch, with repeated augmentation for data of any size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deitctl import rng
from deitctl.data.draws import BalancedDraws, Draws
from deitctl.data.epoch_steps import batch_start, steps_per_epoch
from deitctl.data.many_draws import derive_seeds, draw_permutations
from deitctl.data.windows import Windows

REPEAT_BLOCK = 8  # images whose repeats are shuffled together


class SampleKey(NamedTuple):
    """What a sample's augmentation is a function of, besides the seed."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which no key needs
    repeat: int
    """Of the image in this epoch; of `Draws` in all epochs: how often it came before."""


def view_of(key: SampleKey, *, views: int, repeats: int) -> int:
    """Return the number of the view that a sample shows.

    Args:
        key: of the sample.
        views: that an image has, which it shows in turn; 0: a new one each time.
        repeats: of an image in an epoch; 0: the keys of `Draws`, whose `repeat` counts on
            over the epochs.
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

    With `draws` the images are those that they draw. One that is drawn often can be its own neighbor,
    as another view.

    With `windows` the order is that of images that are read by blocks. With repeats an epoch then
    has 1/repeats of the blocks. Draws are made first, over all images, and come in that order.

    Some without labels: every batch has about the same share of them, and neighbors, which mixing
    pairs, both have labels or both have none, where images come once (`spread_labeled`).
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int,
        epoch: int,
        repeats: int = 1,
        draws: Draws | None = None,
        windows: Windows | None = None,
        is_labeled: NDArray[np.bool_] | None = None,
    ) -> None:
        self.count, self.seed, self.epoch, self.repeats = count, seed, epoch, repeats
        num_drawn = -(-count // repeats)
        draw = rng.generator(seed, "order", epoch)
        times = None
        if draws is None:
            # Cut first: of a few with labels, which stand in fixed places once spread, none might come.
            order = windows.shuffle(None, draw) if windows else draw.permutation(count)
            order = order[:num_drawn]
        else:
            drawn, earlier = draws.draw(seed, epoch, num_drawn)
            shuffle = windows.shuffle(drawn, draw) if windows else draw.permutation(num_drawn)
            order, times = drawn[shuffle], earlier[shuffle] * repeats
        if is_labeled is not None and not isinstance(draws, BalancedDraws):
            stretch = windows.choose_stretch(is_labeled) if windows else None
            spread = spread_labeled(np.arange(len(order)), is_labeled[order], stretch)
            order, times = order[spread], None if times is None else times[spread]
        self._times = times
        # Four bytes an image for ImageNet. Keys are made when a batch is sliced: making all at once
        # took 1.4 s an epoch, 5 s with three repeats.
        self._order = order.astype(np.min_scalar_type(int(order.max(initial=0))))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, places: slice) -> list[SampleKey]:
        """Return the keys of a range of places, in time proportional to its length."""
        start, stop, _ = places.indices(self.count)
        if self.repeats == 1:
            return self._make_keys(np.arange(start, max(start, stop)), 0)
        width = REPEAT_BLOCK * self.repeats
        first = start // width
        keys = self._make_blocks(first, -(-stop // width))
        return keys[start - first * width : stop - first * width]

    def _make_blocks(self, first: int, stop: int) -> list[SampleKey]:
        """Return all repeats of the images of some blocks; each block is shuffled on its own."""
        keys: list[SampleKey] = []
        num_whole = max(first, min(stop, len(self._order) // REPEAT_BLOCK))
        # All blocks of a size at once: a generator for each would take 10 ms for 1,024 images.
        for blocks, size in (
            (range(first, num_whole), REPEAT_BLOCK),
            (range(num_whole, stop), len(self._order) % REPEAT_BLOCK),
        ):
            if blocks:
                keys += self._make_keys(*self._shuffle_blocks(blocks, size))
        return keys

    def _shuffle_blocks(
        self, blocks: range, size: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return places in the order of drawn images, and the repeat that each shows.

        Args:
            blocks: numbers of them.
            size: images of each.
        """
        starts = [block * REPEAT_BLOCK for block in blocks]
        names = [(start, repeat) for start in starts for repeat in range(self.repeats)]
        seeds = derive_seeds((self.seed, "repeat", self.epoch), names)
        turns = draw_permutations(seeds, size).reshape(len(starts), self.repeats, size)
        places = np.array(starts)[:, None, None] + turns
        for repeat in range(1, self.repeats if size > 1 else 0):
            # Only the seam of two repeats can put an image beside itself.
            before, first = (
                self._order[places[:, repeat - 1, -1]],
                self._order[places[:, repeat, 0]],
            )
            is_seam = before == first
            places[is_seam, repeat] = np.roll(places[is_seam, repeat], 1, axis=1)
        repeats = np.broadcast_to(np.arange(self.repeats)[:, None], places.shape)
        return places.ravel(), repeats.ravel()

    def _make_keys(
        self, places: NDArray[np.int64], repeats: NDArray[np.int64] | int
    ) -> list[SampleKey]:
        """Return the keys of places in the order of drawn images, each of its repeat."""
        indices = self._order[places].tolist()
        times = np.zeros(len(places), np.int64) + repeats
        if self._times is not None:
            times += self._times[places]
        return [
            SampleKey(self.epoch, index, time)
            for index, time in zip(indices, times.tolist(), strict=True)
        ]


def spread_labeled(
    order: NDArray[np.int64], is_labeled: NDArray[np.bool_], stretch: int | None = None
) -> NDArray[np.int64]:
    """Return an order in which pairs of images with labels are spread evenly among pairs without.

    The loss of the labels is weighted by a constant of the run. In a random order a batch of 64 with a tenth of
    labels would have 2 to 12 of them, and that loss a weight from a third to twice its mean.

    Args:
        order: images in a random order, [N].
        is_labeled: of each image, [N].
        stretch: places that no pair moves out of, which may then have more or fewer labels than others;
            None: all.
    """
    parts, keys = [], []
    for mask in (is_labeled[order], ~is_labeled[order]):
        places = np.flatnonzero(mask)
        parts.append(order[places])
        # A pair belongs where its first image is.
        stretches = places[: len(places) // 2 * 2 : 2] // (stretch or max(1, len(order)))
        starts, ends = (np.searchsorted(stretches, stretches, side) for side in ("left", "right"))
        pairs = stretches + (np.arange(len(stretches)) - starts + 0.5) / (ends - starts)
        # One without a neighbor of its kind comes last, so that it moves no pair to odd places.
        keys += [np.repeat(pairs, 2), np.full(len(places) % 2, np.inf)]
    merged: NDArray[np.int64] = np.concatenate(parts)[
        np.argsort(np.concatenate(keys), kind="stable")
    ]
    return merged


class TrainBatches:
    """Batch sampler: keys of each batch from step `first_step` to the last epoch.

    Every sample of an epoch's order comes once in it. Sizes differ by at most 2, and all but the
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
        draws: Draws | None = None,
        windows: Windows | None = None,
        is_labeled: NDArray[np.bool_] | None = None,
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epochs, self.repeats, self.first_step = epochs, repeats, first_step
        self.draws, self.windows, self.is_labeled = draws, windows, is_labeled
        self.steps_per_epoch = steps_per_epoch(count, batch_size)

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # Any step can be the first, because the order is a function of the epoch: resuming reads no
        # skipped image.
        start_epoch, start_batch = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(start_epoch, self.epochs):
            order = EpochOrder(
                self.count,
                seed=self.seed,
                epoch=epoch,
                repeats=self.repeats,
                draws=self.draws,
                windows=self.windows,
                is_labeled=self.is_labeled,
            )
            for batch in range(start_batch, self.steps_per_epoch):
                yield order[self._start(batch) : self._start(batch + 1)]
            start_batch = 0

    def _start(self, batch: int) -> int:
        return batch_start(self.count, self.batch_size, batch)

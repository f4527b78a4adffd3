"""The order of training images, a function of seed and epoch.

With repeated augmentation for data of any size, and with classes drawn equally often.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deitctl import rng
from deitctl.data.dataset import Labels
from deitctl.data.unlabeled import find_labeled

REPEAT_BLOCK = 8  # images whose repeats are shuffled together
MAX_SHUFFLED = 1024
"""Images of a small class that are shuffled by one generator, in balanced sampling."""


class SampleKey(NamedTuple):
    """What a sample's augmentation is a function of, besides the seed."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which no key needs
    repeat: int
    """Of the image in this epoch; in balanced sampling of all epochs: how often it came before."""


def view_of(key: SampleKey, *, views: int, repeats: int) -> int:
    """Return the number of the view that a sample shows.

    Args:
        key: of the sample.
        views: that an image has, which it shows in turn; 0: a new one each time.
        repeats: of an image in an epoch; 0: the keys of balanced sampling, whose `repeat` counts on
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

    Balanced: the images are those of `BalancedDraws`. One that is drawn often can be its own
    neighbor, as another view.

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
        balanced: BalancedDraws | None = None,
        is_labeled: NDArray[np.bool_] | None = None,
    ) -> None:
        self.count, self.seed, self.epoch, self.repeats = count, seed, epoch, repeats
        num_drawn = -(-count // repeats)
        draw = rng.generator(seed, "order", epoch)
        if balanced is None:
            # Cut first: of a few with labels, which stand in fixed places once spread, none might come.
            order, self._times = draw.permutation(count)[:num_drawn], None
            order = order if is_labeled is None else spread_labeled(order, is_labeled)
        else:
            order, times = balanced.draw(seed, epoch, num_drawn)
            shuffle = draw.permutation(num_drawn)
            order, self._times = order[shuffle], times[shuffle] * repeats
        # Four bytes an image for ImageNet. Keys are made when a batch is sliced: making all at once
        # took 1.4 s an epoch, 5 s with three repeats.
        self._order = order.astype(np.min_scalar_type(count))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, places: slice) -> list[SampleKey]:
        """Return the keys of a range of places, in time proportional to its length."""
        start, stop, _ = places.indices(self.count)
        if self.repeats == 1:
            return self._make_keys(np.arange(start, max(start, stop)), 0)
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
        block = np.arange(start, min(start + REPEAT_BLOCK, len(self._order)))
        keys: list[SampleKey] = []
        for repeat in range(self.repeats):
            turn = rng.generator(self.seed, "repeat", self.epoch, start, repeat).permutation(block)
            # Only the seam of two repeats can put an image beside itself.
            if keys and len(block) > 1 and keys[-1].index == self._order[turn[0]]:
                turn = np.roll(turn, 1)
            keys += self._make_keys(turn, repeat)
        return keys

    def _make_keys(self, places: NDArray[np.int64], repeat: int) -> list[SampleKey]:
        """Return the keys of places in the order of drawn images, all of one repeat."""
        indices = self._order[places].tolist()
        if self._times is None:
            return [SampleKey(self.epoch, index, repeat) for index in indices]
        times = (self._times[places] + repeat).tolist()
        return [SampleKey(self.epoch, *key) for key in zip(indices, times, strict=True)]


def spread_labeled(order: NDArray[np.int64], is_labeled: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return an order in which pairs of images with labels are spread evenly among pairs without.

    The loss of the labels is weighted by a constant of the run. In a random order a batch of 64 with a tenth of
    labels would have 2 to 12 of them, and that loss a weight from a third to twice its mean.

    Args:
        order: images in a random order, [N].
        is_labeled: of each image, [N].
    """
    parts = [order[mask] for mask in (is_labeled[order], ~is_labeled[order])]
    keys = []
    for part in parts:
        pairs, num_pairs = np.arange(len(part)) // 2, len(part) // 2
        # One without a neighbor of its kind comes last, so that it moves no pair to odd places.
        keys.append(np.where(pairs < num_pairs, (pairs + 0.5) / max(1, num_pairs), 1.0))
    merged: NDArray[np.int64] = np.concatenate(parts)[
        np.argsort(np.concatenate(keys), kind="stable")
    ]
    return merged


class BalancedDraws:
    """Which images an epoch of balanced sampling has: every class equally often.

    Class-aware sampling (Shen, Lin and Huang 2016, §3.2): the classes take turns, and each draws its
    images from shuffles of them, one after the other over all epochs. So every image of a class comes
    equally often, but for one, and how often each came before an epoch is a function of seed and
    epoch. An image of several labels is drawn by each of them; those without one are a class too.
    Images whose labels are not known (-1) take as many turns as they are classes of the others' mean
    size, so that each comes about once.
    """

    def __init__(self, labels: Labels) -> None:
        """Find the images of each class, by labels as `ImageDataset` has them."""
        self.count = len(labels)
        labeled = np.flatnonzero(find_labeled(labels))
        if labels.ndim == 1:
            counts = np.bincount(labels[labeled])
            by_class = labeled[np.argsort(labels[labeled], kind="stable")]
            members = np.split(by_class, np.cumsum(counts)[:-1])
        else:
            members = [np.flatnonzero(column > 0) for column in labels.T]
            members.append(labeled[~labels[labeled].any(axis=1)])
        self.members = [(label, images) for label, images in enumerate(members) if len(images)]
        self.num_classes = len(self.members)
        unlabeled = np.setdiff1d(np.arange(self.count), labeled)
        if len(unlabeled):
            turns = max(1, round(self.num_classes * len(unlabeled) / max(1, len(labeled))))
            turns = min(turns, len(unlabeled))
            self.members += [(len(members) + turn, unlabeled[turn::turns]) for turn in range(turns)]

    @property
    def label_scale(self) -> float:
        """All draws over those of images with labels."""
        return len(self.members) / max(1, self.num_classes)

    def describe(self, class_names: Sequence[str], repeats: int) -> str:
        """Return what an epoch is, in a sentence; `repeats` as in `EpochOrder`."""
        names = (*class_names, "no class")
        classes = self.members[: self.num_classes]
        rare, frequent = (
            choose(classes, key=lambda member: len(member[1])) for choose in (min, max)
        )
        per_class = self.count / len(self.members)
        rates = [
            f"{per_class / len(images):.2g} times (one of the {len(images):,} of {names[label]})"
            for label, images in (rare, frequent)
        ]
        views = "as another view each time" if repeats == 1 else f"{repeats} views at a time"
        others = len(self.members) > self.num_classes
        return (
            f"Balanced sampling: an epoch is {self.count:,} draws, {per_class:.4g} by each of "
            f"{self.num_classes} classes, so that an image comes {rates[0]} to {rates[1]} in it, {views}"
            f"{'; one without a label comes about once' if others else ''}."
        )

    def draw(
        self, seed: int, epoch: int, num_drawn: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the images of an epoch, [num_drawn], and how often each came before in all epochs.

        Args:
            seed: of the shuffles.
            epoch: from 0.
            num_drawn: images of every epoch.
        """
        before = self.count_before(seed, epoch, num_drawn)
        drawn = [
            stream[lead : lead + quota]
            for _, _, stream, lead, quota in self._iter_streams(seed, epoch, num_drawn)
        ]
        order = np.concatenate(drawn)
        return order, before[order] + _count_earlier(order)

    def count_before(self, seed: int, epoch: int, num_drawn: int) -> NDArray[np.int64]:
        """Return how often each image comes before an epoch, [N]; arguments as `draw`."""
        before = np.zeros(self.count, np.int64)
        for images, first, stream, lead, _ in self._iter_streams(seed, epoch, num_drawn):
            before[images] += first
            before[stream[:lead]] += 1
        return before

    def _iter_streams(
        self, seed: int, epoch: int, num_drawn: int
    ) -> Iterator[tuple[NDArray[np.int64], int, NDArray[np.int64], int, int]]:
        """Yield of each class its images, how many shuffles are done, the one that the epoch begins in
        and those after it, how much of it is done, and how many images the epoch takes."""
        num_classes = len(self.members)
        for turn, (label, images) in enumerate(self.members):
            # Turn t of all turns is the class's where t modulo num_classes is its place.
            start, stop = (
                -(-(end * num_drawn - turn) // num_classes) for end in (epoch, epoch + 1)
            )
            first, lead = divmod(start, len(images))
            last = max(first, (stop - 1) // len(images))
            yield images, first, _shuffle(images, seed, label, first, last + 1), lead, stop - start


def _shuffle(
    images: NDArray[np.int64], seed: int, label: int, first: int, stop: int
) -> NDArray[np.int64]:
    """Return the shuffles of a class from number `first` on, before `stop`, one after the other."""
    # Many at once of a small class: a generator takes longer to make than to shuffle ten images.
    size = max(1, MAX_SHUFFLED // len(images))
    blocks = [
        rng.generator(seed, "balanced", label, block).permuted(np.tile(images, (size, 1)), axis=1)
        for block in range(first // size, -(-stop // size))
    ]
    skipped = first // size * size
    shuffles = np.concatenate(blocks)[first - skipped : stop - skipped]
    return shuffles.reshape(-1)


def count_views(labels: Labels, *, seed: int, epochs: int, repeats: int, is_balanced: bool) -> int:
    """Return the views that a training shows of the image that comes most often, where none come again.

    Args:
        labels: of the training images.
        seed: of the order.
        epochs: of the training.
        repeats: views of an image in an epoch of 1/repeats of the images.
        is_balanced: whether classes are drawn equally often.
    """
    if not is_balanced or not len(labels):
        return epochs * repeats
    times = BalancedDraws(labels).count_before(seed, epochs, -(-len(labels) // repeats))
    return int(times.max()) * repeats


def _count_earlier(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each value stands before its place, [N]."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    is_first = np.ones(len(values), np.bool_)
    is_first[1:] = ranked[1:] != ranked[:-1]
    places = np.arange(len(values))
    earlier = np.empty(len(values), np.int64)
    earlier[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return earlier


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
        balanced: BalancedDraws | None = None,
        is_labeled: NDArray[np.bool_] | None = None,
    ) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.is_labeled = is_labeled
        self.epochs, self.repeats, self.first_step = epochs, repeats, first_step
        self.balanced = balanced
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
                balanced=self.balanced,
                is_labeled=self.is_labeled,
            )
            for batch in range(start_batch, self.steps_per_epoch):
                yield order[self._start(batch) : self._start(batch + 1)]
            start_batch = 0

    def _start(self, batch: int) -> int:
        return batch_start(self.count, self.batch_size, batch)

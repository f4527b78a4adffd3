"""How often an epoch shows each image, where that is not once: classes or sources that are drawn more often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from deitctl import rng
from deitctl.config import Recipe
from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.unlabeled import find_labeled

MAX_SHUFFLED = 1024
"""Images of a small class that are shuffled by one generator, in balanced sampling."""


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


class WeightedDraws:
    """Which images an epoch has where those of some sources come more or less often than once.

    An image of weight w comes w times an epoch over all epochs, and in each as often as w rounded
    down or up. Of a tenth of a source another tenth comes each epoch, until all have come. A weight is
    that of whole draws (`count_weighted`). With repeats an epoch has a share of them, carried over.
    """

    def __init__(self, weights: NDArray[np.float32]) -> None:
        """Group the images by their weights, [N], above 0."""
        values, groups = np.unique(weights, return_inverse=True)
        self.num_images = len(weights)
        self.members = [np.flatnonzero(groups == group) for group in range(len(values))]
        # whole draws of a group, so that every epoch has as many
        self.quotas = [
            count_weighted(weight, len(images))
            for weight, images in zip(values.tolist(), self.members, strict=True)
        ]

    @property
    def count(self) -> int:
        """Draws of an epoch, of one repeat each."""
        return sum(self.quotas)

    def draw(
        self, seed: int, epoch: int, num_drawn: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the images of an epoch, and how often each came before; as `BalancedDraws.draw`."""
        before, after = (self.count_before(seed, e, num_drawn) for e in (epoch, epoch + 1))
        order = np.repeat(np.arange(self.num_images), after - before)
        return order, before[order] + _count_earlier(order)

    def count_before(self, seed: int, epoch: int, num_drawn: int) -> NDArray[np.int64]:
        """Return how often each image comes before an epoch, [N]; as `BalancedDraws.count_before`."""
        before = np.empty(self.num_images, np.int64)
        left, quotas_left = num_drawn * epoch, self.count
        # Each group takes its share of what is left over all epochs, so that rounding carries over; the
        # largest first, whose rounding is the smallest part of it.
        for group in sorted(range(len(self.quotas)), key=lambda group: -self.quotas[group]):
            images, quota = self.members[group], self.quotas[group]
            taken = (2 * left * quota + quotas_left) // (2 * quotas_left)
            left, quotas_left = left - taken, quotas_left - quota
            # Systematic sampling: each image at its own place in a shuffle that never changes.
            places = rng.generator(seed, "weighted", group).permutation(len(images))
            before[images] = (taken + places) // len(images)
        return before

    @property
    def weights(self) -> NDArray[np.float32]:
        """How often each image comes in an epoch, [N]: its weight, of whole draws of its group."""
        weights = np.empty(self.num_images, np.float32)
        for images, quota in zip(self.members, self.quotas, strict=True):
            weights[images] = quota / len(images)
        return weights


def count_weighted(weight: float, count: int) -> int:
    """Return the whole draws of an epoch that `count` images of one weight have, 1 or more."""
    return max(1, round(float(np.float32(weight)) * count))


Draws = BalancedDraws | WeightedDraws
"""What gives the images of an epoch, `draw`, of which there are `count`."""


def choose_draws(dataset: ImageDataset, sampling: str) -> Draws | None:
    """Return how often an epoch shows each training image, by a recipe's `sampling`; None: once."""
    if sampling == "balanced":
        return BalancedDraws(dataset.labels)
    weights = dataset.draw_weights
    return None if weights is None else WeightedDraws(weights)


def count_draws(dataset: ImageDataset) -> int:
    """Return the images that an epoch shows: each training image once, or by its weight."""
    weights = dataset.draw_weights
    return len(dataset.labels) if weights is None else WeightedDraws(weights).count


def count_epoch_views(dataset: ImageDataset, recipe: Recipe) -> int:
    """Return the views of an image in an epoch, for `view_of`; 0: they are counted over the epochs."""
    counts_on = recipe.sampling == "balanced" or dataset.draw_weights is not None
    return 0 if counts_on else recipe.augment.repeated_aug


def count_views(
    dataset: ImageDataset, *, seed: int, epochs: int, repeats: int, sampling: str
) -> int:
    """Return the views that a training shows of the image that comes most often, where none come again.

    Args:
        dataset: the training images.
        seed: of the order.
        epochs: of the training.
        repeats: views of an image in an epoch of 1/repeats of the images.
        sampling: the recipe's.
    """
    draws = choose_draws(dataset, sampling)
    if draws is None or not draws.count:
        return epochs * repeats
    times = draws.count_before(seed, epochs, -(-draws.count // repeats))
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

"""Images of rare classes and of weighted sources come as often as they should, from any epoch on."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data.draws import (
    BalancedDraws,
    WeightedDraws,
    choose_draws,
    count_draws,
    count_epoch_views,
    count_views,
)
from deitctl.data.epoch_steps import fit_batch_size
from deitctl.data.readers.digits import ArrayDataset
from deitctl.data.samplers import EpochOrder, SampleKey, TrainBatches, view_of
from deitctl.data.subsets import JoinedDataset, select
from deitctl.distributed import World
from deitctl.recipes import RECIPES

ONE_LABEL = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(np.array)
SEVERAL_LABELS = st.lists(
    st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=60
).map(np.array)
UNEVEN = np.array([0] * 100 + [1] * 7 + [3] * 30)


def balanced_keys(labels: np.ndarray, epochs: int, repeats: int = 1) -> list[list[SampleKey]]:
    """The keys of each epoch."""
    draws = BalancedDraws(labels)
    return [
        EpochOrder(len(labels), seed=3, epoch=epoch, repeats=repeats, draws=draws)[:]
        for epoch in range(epochs)
    ]


@given(ONE_LABEL, st.integers(1, 4))
def test_balanced_epochs_draw_every_class_equally_often(labels, epochs):
    drawn = [labels[key.index] for keys in balanced_keys(labels, epochs) for key in keys]
    assert len(drawn) == epochs * len(labels)
    counts = [drawn.count(label) for label in np.unique(labels)]
    assert max(counts) - min(counts) <= 1
    for keys in balanced_keys(labels, epochs):
        in_epoch = Counter(labels[key.index] for key in keys)
        counts = [in_epoch[label] for label in np.unique(labels)]
        assert max(counts) - min(counts) <= 1


@given(ONE_LABEL, st.integers(1, 5))
def test_the_images_of_a_class_come_equally_often_over_the_epochs(labels, epochs):
    times = Counter(key.index for keys in balanced_keys(labels, epochs) for key in keys)
    for label in np.unique(labels):
        counts = [times[index] for index in np.flatnonzero(labels == label).tolist()]
        assert max(counts) - min(counts) <= 1


@given(ONE_LABEL | SEVERAL_LABELS, st.integers(1, 4), st.integers(1, 3))
def test_an_image_that_comes_again_shows_the_next_view(labels, epochs, repeats):
    epochs_keys = balanced_keys(labels, epochs, repeats)
    assert all(len(keys) == len(labels) for keys in epochs_keys)
    shown: dict[int, list[int]] = {}
    for keys in epochs_keys:
        assert len(set(keys)) == len(keys)
        for key in keys:
            shown.setdefault(key.index, []).append(view_of(key, views=0, repeats=0))
    limit = count_views(
        images_of(labels), seed=3, epochs=epochs, repeats=repeats, sampling="balanced"
    )
    for views in shown.values():
        assert len(set(views)) == len(views)
        assert max(views) < limit
        # whole but for what an epoch cuts off at its end
        assert repeats > 1 or sorted(views) == list(range(len(views)))


@given(SEVERAL_LABELS)
def test_each_of_several_labels_draws_its_images_and_those_without_one_are_a_class(labels):
    classes = [*labels.T, ~labels.any(axis=1)]
    drawn = [key.index for keys in balanced_keys(labels, 3) for key in keys]
    num_classes = sum(column.any() for column in classes)
    for column in classes:
        # at least by its own turns: images of other labels may have it too
        if column.any():
            assert column[drawn].sum() >= len(drawn) // num_classes


def test_cached_views_are_shown_in_turn_by_images_of_rare_and_of_frequent_classes():
    shown: dict[int, list[int]] = {}
    for keys in balanced_keys(UNEVEN, 40):
        for key in sorted(keys, key=lambda key: key.repeat):
            shown.setdefault(key.index, []).append(view_of(key, views=8, repeats=0))
    assert len(shown) == len(UNEVEN)
    assert all(views == [n % 8 for n in range(len(views))] for views in shown.values())


@given(
    batch=st.integers(2, 200),
    epochs=st.integers(1, 3),
    repeats=st.sampled_from([1, 3]),
    data=st.data(),
)
def test_balanced_batches_resume_at_any_step_and_are_shared_by_any_number_of_processes(
    batch, epochs, repeats, data
):
    options = {"seed": 2, "epochs": epochs, "repeats": repeats}
    size = len(UNEVEN)
    whole = list(TrainBatches(size, batch, draws=BalancedDraws(UNEVEN), **options))
    first = data.draw(st.integers(0, len(whole)))
    tail = TrainBatches(size, batch, draws=BalancedDraws(UNEVEN), first_step=first, **options)
    assert list(tail) == whole[first:]
    processes = data.draw(st.integers(1, 4))
    shards = [
        World(rank, processes).shard(fit_batch_size(size, batch)) for rank in range(processes)
    ]
    for keys in whole:
        assert [key for shard in shards for key in keys[shard]] == keys


def test_what_a_balanced_epoch_is_stands_in_a_line():
    line = BalancedDraws(UNEVEN).describe(("cat", "dog", "elk", "fox"), 1)
    assert line == (
        "Balanced sampling: an epoch is 137 draws, 45.67 by each of 3 classes, so that an image comes "
        "6.5 times (one of the 7 of dog) to 0.46 times (one of the 100 of cat) in it, as another view "
        "each time."
    )


def images_of(labels: np.ndarray) -> ArrayDataset:
    """Images with these labels."""
    pixels = np.zeros((len(labels), 1, 1), np.uint8)
    num_classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    return ArrayDataset(pixels, labels, tuple(f"c{n}" for n in range(num_classes)), "made")


def join_sources(sizes: list[int], weights: list[float]) -> JoinedDataset:
    """Sources of images of one class, one after the other."""
    parts = tuple(images_of(np.zeros(size, np.int64)) for size in sizes)
    labels = np.zeros(sum(sizes), np.int64)
    return JoinedDataset(parts, labels, ("c0",), np.cumsum(sizes), tuple(weights))


SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)
WEIGHTS = st.sampled_from([0.1, 0.25, 0.5, 1.0, 1.3, 2.0, 3.75])


@given(
    SIZES,
    st.lists(WEIGHTS, min_size=4, max_size=4),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_an_image_of_weight_w_comes_as_often_as_w_rounded_down_or_up(sizes, weights, epoch, seed):
    joined = join_sources(sizes, weights[: len(sizes)])
    draws = choose_draws(joined, "uniform")
    if draws is None:
        assert count_draws(joined) == len(joined.labels)
        return
    order, before = draws.draw(seed, epoch, draws.count)
    assert len(order) == count_draws(joined) == draws.count
    times = np.bincount(order, minlength=len(joined.labels))
    for images, quota in zip(draws.members, draws.quotas, strict=True):
        weight = Fraction(quota, len(images))  # the nearest of which every epoch has whole draws
        named = joined.draw_weights[images[0]]
        # fewer than half a draw are one
        least = Fraction(1, len(images))
        assert abs(weight - max(least, Fraction(float(named)))) <= Fraction(1, 2 * len(images))
        assert draws.weights[images] == pytest.approx(float(weight))
        assert times[images].sum() == quota
        assert {weight.__floor__(), weight.__ceil__()} >= set(times[images].tolist())
    assert (before == draws.count_before(seed, epoch, draws.count)[order] + rank_of(order)).all()


def rank_of(order: np.ndarray) -> np.ndarray:
    """How often each entry stands before its place."""
    seen: Counter[int] = Counter()
    ranks = []
    for index in order.tolist():
        ranks.append(seen[index])
        seen[index] += 1
    return np.array(ranks)


@given(SIZES, WEIGHTS.filter(lambda w: w != 1), st.integers(1, 3))
def test_over_the_epochs_every_image_of_a_source_comes_equally_often(sizes, weight, repeats):
    draws = WeightedDraws(join_sources(sizes, [weight] * len(sizes)).draw_weights)
    num_drawn = -(-draws.count // repeats)
    for epochs in (1, 7, len(draws.members[0])):
        times = draws.count_before(3, epochs, num_drawn)
        assert times.sum() == epochs * num_drawn
        assert times.max() - times.min() <= 1
    # after as many epochs as there are images exactly as often
    assert set(times.tolist()) == {num_drawn}


SEVERAL_WEIGHTS = [
    ([300, 10], [1.0, 0.1]),
    ([24, 6], [1.0, 0.1]),
    ([7, 5, 9, 40], [1.0, 0.3, 2.5, 0.05]),
    ([1, 1, 1, 1, 1], [1.0, 2.0, 3.0, 4.0, 5.0]),
]


@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize(("sizes", "weights"), SEVERAL_WEIGHTS)
def test_every_source_comes_by_its_weight_over_the_epochs(sizes, weights, repeats):
    draws = WeightedDraws(join_sources(sizes, weights).draw_weights)
    num_drawn = -(-draws.count // repeats)
    before = np.zeros(sum(sizes), np.int64)
    for epochs in range(1, 61):
        times = draws.count_before(3, epochs, num_drawn)
        assert times.sum() == epochs * num_drawn
        assert (times >= before).all()
        for images, quota in zip(draws.members, draws.quotas, strict=True):
            share = epochs * num_drawn * quota / draws.count
            assert abs(times[images].sum() - share) <= 1
            assert times[images].max() - times[images].min() <= 1
        before = times
    assert draws.draw(3, 60, num_drawn)[0].shape == (num_drawn,)


@pytest.mark.parametrize("repeats", [1, 2])
def test_views_of_weighted_images_are_never_shown_twice(repeats):
    joined = join_sources([10, 4], [1.0, 2.5])
    draws, shown = choose_draws(joined, "uniform"), set()
    for epoch in range(6):
        keys = EpochOrder(count_draws(joined), seed=1, epoch=epoch, repeats=repeats, draws=draws)[:]
        assert len(keys) == 20
        shown |= {(key.index, view_of(key, views=0, repeats=0)) for key in keys}
    assert len(shown) == 6 * 20
    limit = count_views(joined, seed=1, epochs=6, repeats=repeats, sampling="uniform")
    assert max(view for _, view in shown) < limit <= 16


def test_weights_of_a_part_are_those_of_its_images_and_one_changes_nothing():
    joined = join_sources([3, 2], [1.0, 0.5])
    assert select(joined, [4, 0]).draw_weights.tolist() == [0.5, 1.0]
    nested = JoinedDataset((joined, joined), np.tile(joined.labels, 2), ("c0",), np.array([5, 10]))
    assert nested.draw_weights.tolist() == [1, 1, 1, 0.5, 0.5] * 2
    plain = join_sources([3, 2], [1.0, 1.0])
    recipe = RECIPES["finetune"]
    assert plain.draw_weights is None
    assert choose_draws(plain, "uniform") is None
    assert count_epoch_views(plain, recipe) == recipe.augment.repeated_aug
    assert count_epoch_views(joined, recipe) == 0


def test_weighted_batches_resume_at_any_step():
    joined = join_sources([50, 20], [1.0, 1.7])
    options = {"seed": 2, "epochs": 3, "draws": choose_draws(joined, "uniform")}
    count = count_draws(joined)
    whole = list(TrainBatches(count, 16, **options))
    assert len(whole) == 3 * 6  # 84 draws
    for first in (0, 5, 17):
        assert list(TrainBatches(count, 16, first_step=first, **options)) == whole[first:]

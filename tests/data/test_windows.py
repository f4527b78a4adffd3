"""Images that are read by blocks come once an epoch, mixed, and from few blocks at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data.draws import BalancedDraws, WeightedDraws
from deitctl.data.samplers import EpochOrder, SampleKey, TrainBatches
from deitctl.data.subsets import select
from deitctl.data.windows import Windows
from tests.data.block_images import make_block_images

BLOCKS = st.lists(st.integers(-1, 40), min_size=1, max_size=300).map(
    lambda blocks: np.array(blocks, np.int32)
)
SIZES = st.integers(2, 12)


def count_open(blocks: np.ndarray) -> int:
    """The most blocks that are begun and not done at one place of an order; those read alone are none."""
    first, last = {}, {}
    for place, block in enumerate(blocks.tolist()):
        first.setdefault(block, place)
        last[block] = place
    changes = np.zeros(len(blocks) + 1, int)
    for block in first.keys() - {-1}:
        changes[first[block]] += 1
        changes[last[block] + 1] -= 1
    return int(changes.cumsum().max())


@given(BLOCKS, SIZES, st.integers(0, 50), st.integers(0, 50))
def test_every_image_comes_once_and_few_blocks_are_open_at_any_place(blocks, size, seed, epoch):
    order = EpochOrder(len(blocks), seed=seed, epoch=epoch, windows=Windows(blocks, size))[:]
    assert sorted(order) == [SampleKey(epoch, index, 0) for index in range(len(blocks))]
    assert count_open(blocks[[key.index for key in order]]) <= size or (
        size >= len(set(blocks.tolist()) - {-1})
    )


@given(
    BLOCKS,
    SIZES,
    st.integers(1, 3),
    st.tuples(st.integers(0, 320), st.integers(0, 320)),
)
def test_any_range_of_a_window_order_is_that_range_of_the_whole(blocks, size, repeats, ends):
    order = EpochOrder(len(blocks), seed=4, epoch=2, repeats=repeats, windows=Windows(blocks, size))
    assert order[slice(*ends)] == order[:][slice(*ends)]
    assert len(set(order[:])) == len(blocks)


@given(BLOCKS, SIZES, st.integers(1, 3), st.integers(2, 64), st.data())
def test_window_order_resumes_at_any_step(blocks, size, repeats, batch, data):
    options = {"seed": 2, "epochs": 2, "repeats": repeats, "windows": Windows(blocks, size)}
    whole = list(TrainBatches(len(blocks), batch, **options))
    first = data.draw(st.integers(0, len(whole)))
    assert list(TrainBatches(len(blocks), batch, first_step=first, **options)) == whole[first:]


@given(BLOCKS, SIZES, st.integers(1, 3), st.booleans())
def test_draws_are_the_same_in_windows_and_keep_their_bound(blocks, size, repeats, is_balanced):
    count = len(blocks)
    labels = np.arange(count) % 3
    weights = np.where(labels == 0, 2.5, 1).astype(np.float32)
    draws = BalancedDraws(labels) if is_balanced else WeightedDraws(weights)
    options = {"seed": 5, "epoch": 3, "repeats": repeats, "draws": draws}
    windows = Windows(blocks, size)
    # whole, because the end of a last repeat is cut off at different images
    full = EpochOrder(draws.count, **options)
    order = EpochOrder(draws.count, windows=windows, **options)
    for part in ("_order", "_times"):
        assert sorted(getattr(order, part)) == sorted(getattr(full, part))
    drawn = blocks[order._order]
    assert count_open(drawn) <= size or size >= len(set(drawn.tolist()) - {-1})


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_needs_the_blocks_of_a_window_and_few_that_begin_in_it(seed):
    blocks = np.repeat(np.arange(200, dtype=np.int32), 50)
    windows = Windows(blocks, 16)
    for keys in TrainBatches(len(blocks), 32, seed=seed, epochs=1, windows=windows):
        assert len({blocks[key.index] for key in keys}) <= 16 + 1
    order = blocks[
        [k.index for k in EpochOrder(len(blocks), seed=seed, epoch=0, windows=windows)[:]]
    ]
    # mixed at both ends as in the middle
    for start in range(0, len(blocks), 500):
        assert len(set(order[start : start + 500].tolist())) >= 16


def test_a_new_block_begins_about_as_often_in_every_part_of_an_epoch():
    blocks = np.repeat(np.arange(200, dtype=np.int32), 50)
    keys = EpochOrder(len(blocks), seed=0, epoch=0, windows=Windows(blocks, 16))[:]
    first = {}
    for place, key in enumerate(keys):
        first.setdefault(blocks[key.index], place)
    begun = np.histogram(sorted(first.values()), 20, (0, len(blocks)))[0]
    assert begun[0] <= 10 + 16  # those of the first window
    assert begun[1:-1].max() <= 13


def test_orders_differ_by_epoch_in_blocks_and_images():
    blocks = np.repeat(np.arange(20, dtype=np.int32), 10)
    orders = [
        [k.index for k in EpochOrder(200, seed=0, epoch=e, windows=Windows(blocks, 3))[:]]
        for e in range(3)
    ]
    firsts = [blocks[order[:10]].tolist() for order in orders]
    assert firsts[0] != firsts[1] != firsts[2]
    assert all(a != b for a, b in itertools.pairwise(orders))


def test_with_repeats_an_epoch_reads_its_share_of_the_blocks():
    blocks = np.repeat(np.arange(60, dtype=np.int32), 10)
    for epoch in range(3):
        order = EpochOrder(600, seed=0, epoch=epoch, repeats=3, windows=Windows(blocks, 4))
        assert len({blocks[key.index] for key in order[:]}) <= 20 + 4


def test_images_with_and_without_labels_stay_spread_and_in_at_most_two_windows():
    blocks = np.repeat(np.arange(40, dtype=np.int32), 10)
    is_labeled = np.arange(400) < 100
    order = EpochOrder(400, seed=0, epoch=0, windows=Windows(blocks, 6), is_labeled=is_labeled)[:]
    indices = np.array([key.index for key in order])
    assert sorted(indices.tolist()) == list(range(400))
    shares = is_labeled[indices].reshape(-1, 40).sum(axis=1)
    assert shares.max() - shares.min() <= 2
    assert count_open(blocks[indices]) <= 2 * 6


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_images_of_one_block_with_and_without_labels_are_spread_within_its_window(share):
    blocks = np.repeat(np.arange(300, dtype=np.int32), 40)
    is_labeled = np.random.default_rng(0).random(len(blocks)) < share
    options = {"windows": Windows(blocks, 8), "is_labeled": is_labeled}
    order = EpochOrder(len(blocks), seed=0, epoch=0, **options)[:]
    indices = np.array([key.index for key in order])
    assert sorted(indices.tolist()) == list(range(len(blocks)))
    assert count_open(blocks[indices]) <= 8 + 4
    kinds = is_labeled[indices]
    assert (kinds[::2] != kinds[1::2]).sum() <= 1
    shares = kinds.reshape(-1, 240).sum(axis=1)  # of one and a half of its stretches
    assert abs(shares - 240 * share).max() <= 4 * np.sqrt(240 * share) + 2


def test_a_part_of_the_images_is_ordered_by_the_blocks_that_it_has():
    images = make_block_images([0] * 600, block_size=10)
    part = select(images, np.flatnonzero(np.arange(600) % 7 == 0))
    order = EpochOrder(len(part.labels), seed=0, epoch=0, windows=Windows(part.blocks, 5))
    in_order = part.blocks[[key.index for key in order[:]]]
    assert len(set(in_order.tolist())) > 5
    assert count_open(in_order) <= 5


def test_images_that_are_read_alone_come_anywhere():
    blocks = np.concatenate([np.repeat(np.arange(50), 4), np.full(200, -1)]).astype(np.int32)
    order = EpochOrder(400, seed=1, epoch=0, windows=Windows(blocks, 4))
    is_alone = blocks[[key.index for key in order[:]]] < 0
    assert 60 < is_alone[:200].sum() < 140

"""The order of the images: complete, shuffled, repeatable, resumable."""

from __future__ import annotations

import hashlib
import itertools
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data.epoch_steps import batch_start, fit_batch_size, steps_per_epoch
from deitctl.data.samplers import REPEAT_BLOCK, EpochOrder, SampleKey, TrainBatches, view_of
from deitctl.distributed import World

COUNTS = st.integers(1, 700)


def epoch_order(count: int, *, seed: int, epoch: int, repeats: int = 1) -> list[SampleKey]:
    """All keys of an epoch."""
    return EpochOrder(count, seed=seed, epoch=epoch, repeats=repeats)[:]


@given(count=COUNTS, seed=st.integers(0, 100), epoch=st.integers(0, 100))
def test_every_image_comes_once_without_repeats(count, seed, epoch):
    order = epoch_order(count, seed=seed, epoch=epoch)
    assert sorted(order) == [SampleKey(epoch, i, 0) for i in range(count)]


@given(count=COUNTS, repeats=st.integers(2, 5), epoch=st.integers(0, 5))
def test_an_epoch_with_repeats_has_as_many_keys_as_images(count, repeats, epoch):
    order = epoch_order(count, seed=1, epoch=epoch, repeats=repeats)
    assert len(order) == len(set(order)) == count
    seen = Counter(key.index for key in order)
    chosen = -(-count // repeats)
    assert len(seen) <= chosen
    missing = chosen * repeats - count  # cut off at the end, fewer than one image's repeats
    assert (
        sum(repeats - n for n in seen.values()) + repeats * (chosen - len(seen))
        == missing
        < repeats
    )
    assert all(0 <= key.repeat < repeats for key in order)


@given(count=COUNTS, repeats=st.integers(2, 5), seed=st.integers(0, 50))
def test_repeats_are_never_neighbors(count, repeats, seed):
    order = [k.index for k in epoch_order(count, seed=seed, epoch=0, repeats=repeats)]
    # a last block of one image has no choice
    alone = order[-1] if -(-count // repeats) % REPEAT_BLOCK == 1 else None
    assert all(a != b or a == alone for a, b in itertools.pairwise(order))


def test_repeats_of_an_image_are_close_together():
    order = [k.index for k in epoch_order(600, seed=0, epoch=0, repeats=3)]
    first, last = {}, {}
    for position, index in enumerate(order):
        first.setdefault(index, position)
        last[index] = position
    assert max(last[i] - first[i] for i in first) < 3 * REPEAT_BLOCK


def test_sampler_yields_samples_below_256_images():
    """The released RASampler yields none (deit/samplers.py, line 35)."""
    assert len(epoch_order(10, seed=0, epoch=0, repeats=3)) == 10
    assert len(next(iter(TrainBatches(10, 64, seed=0, epochs=1, repeats=3)))) == 10


def test_orders_differ_by_seed_and_epoch():
    orders = [epoch_order(50, seed=s, epoch=e) for s in (0, 1) for e in (0, 1)]
    assert len({tuple(k.index for k in o) for o in orders}) == 4
    assert epoch_order(50, seed=0, epoch=0) == orders[0]


def test_over_the_epochs_every_image_comes_up_with_repeats():
    seen = {k.index for e in range(30) for k in epoch_order(90, seed=0, epoch=e, repeats=3)}
    assert seen == set(range(90))  # an image is missed with probability (2/3)^30 = 5e-6


@given(
    count=COUNTS,
    batch=st.integers(2, 800),
    epochs=st.integers(1, 3),
    repeats=st.sampled_from([1, 3]),
    data=st.data(),
)
def test_resuming_yields_the_tail_of_the_whole_stream(count, batch, epochs, repeats, data):
    whole = list(TrainBatches(count, batch, seed=2, epochs=epochs, repeats=repeats))
    first = data.draw(st.integers(0, len(whole)))
    tail = TrainBatches(count, batch, seed=2, epochs=epochs, repeats=repeats, first_step=first)
    assert list(tail) == whole[first:]
    assert len(tail) == len(whole) - first


def epoch_batches(count: int, batch_size: int, **options: int) -> list[list[SampleKey]]:
    """The batches of one epoch."""
    return list(TrainBatches(count, batch_size, seed=0, epochs=1, **options))


@given(count=COUNTS, batch=st.integers(2, 800), repeats=st.sampled_from([1, 3]))
def test_the_batches_of_an_epoch_hold_each_of_its_samples_once(count, batch, repeats):
    batches = TrainBatches(count, batch, seed=0, epochs=2, repeats=repeats)
    listed = list(batches)
    assert len(listed) == 2 * steps_per_epoch(count, batch)
    for epoch in (0, 1):
        mine = listed[epoch * batches.steps_per_epoch : (epoch + 1) * batches.steps_per_epoch]
        order = epoch_order(count, seed=0, epoch=epoch, repeats=repeats)
        assert [key for keys in mine for key in keys] == order


@given(count=COUNTS, batch=st.integers(2, 800))
def test_batches_are_of_equal_size_but_for_a_pair(count, batch):
    sizes = [len(keys) for keys in epoch_batches(count, batch)]
    assert 0 < max(sizes) <= batch + batch % 2
    assert max(sizes) - min(sizes) <= 2
    assert all(size % 2 == 0 for size in sizes[:-1])
    fewest = -(-count // (batch + batch % 2))
    assert len(sizes) == fewest


@given(count=COUNTS, batch=st.integers(2, 800))
def test_the_largest_batch_named_as_the_batch_size_gives_the_same_batches(count, batch):
    sizes = [len(keys) for keys in epoch_batches(count, batch)]
    fitted = fit_batch_size(count, batch)
    assert fitted == max(sizes)
    again = epoch_batches(count, max(2, fitted))
    assert [len(keys) for keys in again] == sizes


@given(count=COUNTS, batch=st.integers(2, 800), size=st.integers(1, 9))
def test_processes_take_whole_pairs_of_each_batch_and_each_image_once(count, batch, size):
    shards = [World(rank, size).shard(fit_batch_size(count, batch)) for rank in range(size)]
    for keys in epoch_batches(count, batch):
        assert [key for shard in shards for key in keys[shard]] == keys
        for shard in shards[:-1]:
            assert len(keys[shard]) % 2 == 0 or keys[shard][-1] == keys[-1]
        taken = [len(keys[shard]) for shard in shards]
        assert max(taken) - min(taken) <= 4  # a pair by the division, a pair by a smaller batch


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [
        (280, 64, [56, 56, 56, 56, 56]),  # 24 images were left out when batches had to be full
        (65, 64, [32, 33]),  # not 64 and 1
        (96, 32, [32, 32, 32]),
        (31, 32, [31]),
        (1, 2, [1]),
        (3, 2, [2, 1]),
        (10, 5, [4, 6]),  # pairs stay together, so an odd batch size is rounded up
        (11, 4, [4, 4, 3]),
    ],
)
def test_batches_by_hand(count, batch, sizes):
    assert [len(keys) for keys in epoch_batches(count, batch)] == sizes
    assert steps_per_epoch(count, batch) == len(sizes)
    starts = [batch_start(count, batch, number) for number in range(len(sizes) + 1)]
    assert starts == [0, *itertools.accumulate(sizes)]


def test_imagenets_batches_are_the_papers():
    count, batch = 1_281_167, 1024
    steps = steps_per_epoch(count, batch)
    starts = [batch_start(count, batch, number) for number in range(steps + 1)]
    sizes = Counter(stop - start for start, stop in itertools.pairwise(starts))
    assert steps == 1252  # the released code has 1251, and 143 images less
    assert sizes.keys() == {1022, 1023, 1024}
    assert sizes[1023] == 1  # the last, of an odd number of images
    assert fit_batch_size(count, batch) == 1024


def test_images_do_not_change_place_with_the_batch_size():
    small = [k for b in TrainBatches(64, 8, seed=0, epochs=1) for k in b]
    large = [k for b in TrainBatches(64, 32, seed=0, epochs=1) for k in b]
    assert small == large


def test_view_numbers_by_hand():
    assert view_of(SampleKey(5, 9, 0), views=0, repeats=1) == 5  # a new view every epoch
    assert view_of(SampleKey(5, 9, 2), views=0, repeats=3) == 17
    assert view_of(SampleKey(5, 9, 2), views=8, repeats=3) == 1  # 17 of 8 in turn
    assert view_of(SampleKey(5, 9, 0), views=1, repeats=1) == 0


@given(
    count=st.integers(1, 60),
    repeats=st.integers(1, 4),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 20),
)
def test_without_a_number_of_views_every_sample_shows_a_new_one(count, repeats, epochs, seed):
    keys = [
        k for e in range(epochs) for k in epoch_order(count, seed=seed, epoch=e, repeats=repeats)
    ]
    shown = {(view_of(k, views=0, repeats=repeats), k.index) for k in keys}
    assert len(shown) == len(keys)
    assert {view for view, _ in shown} <= set(range(epochs * repeats))


@given(epoch=st.integers(0, 500), views=st.integers(1, 40), repeats=st.integers(1, 5))
def test_as_many_samples_in_a_row_as_there_are_views_show_each_once(epoch, views, repeats):
    keys = [SampleKey(epoch + n // repeats, 3, n % repeats) for n in range(views)]
    assert {view_of(k, views=views, repeats=repeats) for k in keys} == set(range(views))


@pytest.mark.parametrize(
    ("repeats", "digest"),
    [(1, "0b5f42c6ed07049f"), (2, "fb3b83c4e83b6fb0"), (3, "0ba0c8c79b0c38db")],
)
def test_the_order_stays_what_it_was_for_runs_that_are_resumed(repeats, digest):
    """Taken when an epoch's keys were still made all at once."""
    found = hashlib.sha256()
    for count in (1, 7, 100, 1297):
        for epoch in (0, 5):
            for key in epoch_order(count, seed=3, epoch=epoch, repeats=repeats):
                found.update(b"%d %d %d\n" % key)
    assert found.hexdigest()[:16] == digest


@given(
    count=COUNTS,
    repeats=st.integers(1, 4),
    ends=st.tuples(st.integers(0, 720), st.integers(0, 720)),
)
def test_any_range_of_an_order_is_that_range_of_the_whole(count, repeats, ends):
    order = EpochOrder(count, seed=4, epoch=2, repeats=repeats)
    assert order[slice(*ends)] == order[:][slice(*ends)]
    assert len(order) == count


@pytest.mark.parametrize("repeats", [1, 3])
def test_an_epoch_of_a_million_begins_without_a_million_keys(repeats):
    tracemalloc.start()
    try:
        batches = iter(TrainBatches(1_000_000, 1024, seed=0, epochs=2, repeats=repeats))
        first, kept = next(batches), tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(first) == 1022  # 977 steps, of 1,022 or 1,024 images
    assert kept < 6 << 20  # four bytes an image, and the batch

"""Many generators at once draw what NumPy's generators draw one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from deitctl import rng
from deitctl.data.batch_table import draw_erased, draw_rectangles
from deitctl.data.many_draws import derive_seeds, draw_permutations, draw_raw, to_doubles

SEEDS = st.integers(0, 2**63 - 1)


@settings(max_examples=50, deadline=None)
@given(seeds=st.lists(SEEDS | st.sampled_from([0, 1, 2**32 - 1, 2**32]), min_size=1, max_size=8))
def test_raw_numbers_and_doubles_are_numpys(seeds):
    raw = draw_raw(np.array(seeds, np.int64), 5)
    for row, seed in zip(raw, seeds, strict=True):
        assert row.tolist() == np.random.PCG64(seed).random_raw(5).tolist()
        generator = np.random.Generator(np.random.PCG64(seed))
        assert to_doubles(row).tolist() == [generator.random() for _ in row]


def test_seeds_of_many_keys_are_those_of_each():
    keys = [(0, 0, 0), (3, 12_345_678, 2), (np.int64(1), np.int64(2), np.int64(3))]
    for parts in ((0, "erase"), (2**40, "on top", 5)):
        expected = [rng.derive_seed(*parts, *key) for key in keys]
        assert derive_seeds(parts, keys).tolist() == expected
    assert derive_seeds((0, "erase"), []).shape == (0,)


def test_erased_rectangles_are_those_of_each_generator_alone():
    """Small and narrow images too, where a rectangle seldom fits at the first try."""
    seeds = derive_seeds((5, "erase"), [(0, index, 0) for index in range(300)])
    for probability, hw in ((0.25, (224, 224)), (1.0, (32, 48)), (1.0, (2, 40)), (1.0, (4, 4))):
        expected = [
            draw_erased(probability, hw, np.random.Generator(np.random.PCG64(seed)))
            for seed in seeds
        ]
        assert draw_rectangles(probability, hw, seeds).tolist() == [list(row) for row in expected]


def test_permutations_are_those_of_each_generator_alone():
    """Those too that need more numbers than are drawn at once, one in 250 of eight places."""
    seeds = derive_seeds((5, "turn"), [(index,) for index in range(1000)])
    for length in (0, 1, 2, 5, 7, 8):
        expected = [rng.generator(5, "turn", index).permutation(length) for index in range(1000)]
        assert np.array_equal(draw_permutations(seeds, length), expected)

"""Every draw is a function of its seed and purpose."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deitctl import rng

PARTS = st.lists(
    st.integers(-(2**40), 2**40)
    | st.text(st.characters(exclude_characters="\x1f", codec="utf-8"), max_size=8),
    max_size=5,
).map(tuple)


@given(PARTS, PARTS)
def test_seeds_differ_exactly_where_their_parts_do(a, b):
    assert (rng.derive_seed(*a) == rng.derive_seed(*b)) == (a == b)


def test_adjacent_parts_are_separated():
    assert rng.derive_seed(1, 23) != rng.derive_seed(12, 3)
    assert rng.derive_seed(1) != rng.derive_seed("1")
    assert rng.derive_seed("a", "b") != rng.derive_seed("ab")


def test_seed_of_a_numpy_integer_is_that_of_the_number():
    assert rng.derive_seed(np.int64(3), "x") == rng.derive_seed(3, "x")


def test_seeds_fit_into_63_bits_and_are_pinned():
    """A change here changes every run; it must be meant."""
    seeds = [rng.derive_seed(0, "view", i) for i in range(1000)]
    assert all(0 <= s < 2**63 for s in seeds)
    assert len(set(seeds)) == 1000
    assert rng.derive_seed(0, "view", 0) == 1080486278453140287


def test_seed_bits_are_even():
    bits = np.array([[rng.derive_seed(0, i) >> b & 1 for b in range(63)] for i in range(2000)])
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.06  # 5 deviations of 2,000 draws


def test_equal_parts_give_equal_draws():
    assert rng.generator(1, "a").random() == rng.generator(1, "a").random()
    assert rng.generator(1, "a").random() != rng.generator(2, "a").random()
    assert torch.equal(
        torch.rand(3, generator=rng.torch_generator(1)),
        torch.rand(3, generator=rng.torch_generator(1)),
    )


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_scope_seeds_and_restores_all_three_generators():
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = draws()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    with rng.scope(1, "x"):
        inside = draws()
    assert draws() == expected
    with rng.scope(1, "x"):
        assert draws() == inside
    with rng.scope(2, "x"):
        assert all(a != b for a, b in zip(draws(), inside, strict=True))


def test_scope_restores_after_an_error():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    with pytest.raises(RuntimeError), rng.scope(1):
        raise RuntimeError
    assert random.random() == expected


def test_scope_seeds_and_restores_the_generators_of_accelerators(monkeypatch):
    accelerators = [torch.Generator().manual_seed(n) for n in (5, 6)]
    monkeypatch.setattr(rng, "_find_generators", lambda: accelerators)
    before = [generator.get_state() for generator in accelerators]
    with rng.scope(1, "x"):
        first, second = (float(torch.rand((), generator=g)) for g in accelerators)
        assert first == second == float(torch.rand(()))
    assert all(torch.equal(g.get_state(), b) for g, b in zip(accelerators, before, strict=True))


def test_scopes_nest():
    with rng.scope(1):
        first, second = draws(), draws()
    with rng.scope(1):
        assert draws() == first
        with rng.scope(2):
            draws()
        assert draws() == second


def test_the_generator_of_mps_is_seeded_and_restored(monkeypatch):
    pretended = torch.Generator().manual_seed(9)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "_get_default_mps_generator", lambda: pretended)
    before = pretended.get_state()
    drawn = []
    for _ in range(2):
        with rng.scope(1, "step"):
            drawn.append(torch.rand(3, generator=pretended))
    assert torch.equal(*drawn)
    assert torch.equal(pretended.get_state(), before)

"""The noise of random erasing: normal, independent, and a function of seed and place alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deitctl import rng
from deitctl.data.noise import sample_noise, scramble

SEEDS = torch.tensor([rng.derive_seed(0, "erase", 0, index, 0) for index in range(64)])


def test_scrambling_by_hand_and_one_to_one():
    """As the constants' authors write it, in Python's integers."""

    def by_hand(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x21F0AAAD) % 2**32
        x = ((x ^ (x >> 15)) * 0x735A2D97) % 2**32
        return x ^ (x >> 15)

    numbers = [0, 1, 2, 2**31, 2**32 - 1, 123456789]
    assert scramble(torch.tensor(numbers)).tolist() == [by_hand(n) for n in numbers]
    assert len(scramble(torch.arange(2**16)).unique()) == 2**16


def test_noise_is_normal_in_every_moment_and_quantile():
    noise = sample_noise(SEEDS, 3, (0, 64), (0, 64), 64).flatten().double().numpy()
    n = len(noise)  # 786,432
    assert abs(noise.mean()) < 4.5 / n**0.5
    assert abs(noise.var() - 1) < 4.5 * (2 / n) ** 0.5
    assert abs(stats.skew(noise)) < 4.5 * (6 / n) ** 0.5
    assert (
        abs(stats.kurtosis(noise)) < 4.5 * (24 / n) ** 0.5 + 1e-2
    )  # the outermost level is at 4.2
    assert stats.kstest(noise, "norm").statistic < 2 / n**0.5


def test_neighbors_channels_and_images_are_independent():
    noise = sample_noise(SEEDS, 3, (0, 64), (0, 64), 64).double()

    def correlate(a: torch.Tensor, b: torch.Tensor) -> float:
        return abs(float((a * b).mean())) * a.numel() ** 0.5  # in deviations

    pairs = {
        "columns": (noise[..., :-1], noise[..., 1:]),
        "rows": (noise[..., :-1, :], noise[..., 1:, :]),
        "channels": (noise[:, :-1], noise[:, 1:]),
        "images": (noise[:-1], noise[1:]),
        "halves": (noise[..., 0::2], noise[..., 1::2]),
        "far columns": (noise[..., :-32], noise[..., 32:]),
    }
    for name, (a, b) in pairs.items():
        assert correlate(a, b) < 4.5, name
        assert correlate(a.square() - 1, b.square() - 1) < 9, name


def test_neighboring_seeds_are_independent_at_every_lag():
    noise = sample_noise(torch.arange(100), 1, (0, 32), (0, 32), 32).flatten(1).double()
    correlation = np.corrcoef(noise.numpy())
    assert np.abs(correlation - np.eye(100)).max() < 5.5 / 32
    for lag in range(1, 9):
        pairs = noise[:-1, lag:] * noise[1:, :-lag]
        assert pairs.mean(1).abs().max() < 5.5 / 31, lag


@settings(max_examples=40)
@given(
    top=st.integers(0, 8),
    height=st.integers(1, 8),
    left=st.integers(0, 8),
    width=st.integers(1, 9),
    size=st.sampled_from([17, 18, 31]),
)
def test_a_window_has_the_noise_of_the_whole(top, height, left, width, size):
    whole = sample_noise(SEEDS[:3], 2, (0, size), (0, size), size)
    rows, columns = (top, top + height), (left, left + width)
    window = sample_noise(SEEDS[1:2], 2, rows, columns, size)
    assert torch.equal(window, whole[1:2, :, slice(*rows), slice(*columns)])


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
def test_every_seed_gives_numbers(seed):
    assert sample_noise(torch.tensor([seed]), 1, (0, 8), (0, 8), 8).isfinite().all()

"""The moving average by hand, and that it is right for short runs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deitctl.training.ema import ExponentialMovingAverage, decay_at


def test_decay_by_hand():
    assert decay_at(0, decay=0.99996, total_steps=10**7) == pytest.approx(0.1)  # 1 / 10
    assert decay_at(90, decay=0.99996, total_steps=10**7) == pytest.approx(0.91)  # 91 / 100
    assert (
        decay_at(10**6, decay=0.99996, total_steps=10**7) == 0.99996
    )  # a long run has the paper's
    assert decay_at(10**6, decay=0.99996, total_steps=1000) == pytest.approx(
        0.99
    )  # 100 steps of 1,000


@given(step=st.integers(0, 10**6), decay=st.floats(0, 0.99999), total=st.integers(0, 10**6))
def test_decay_is_a_share_and_never_above_what_was_asked(step, decay, total):
    assert 0 <= decay_at(step, decay=decay, total_steps=total) <= decay


def test_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = ExponentialMovingAverage(model, decay=0.5, total_steps=1000)
    nn.init.ones_(model.weight)
    ema.update(model, 0)  # decay 1/10: 0.1 x 0 + 0.9 x 1
    assert ema.values["weight"].item() == pytest.approx(0.9)
    nn.init.constant_(model.weight, 2.0)
    ema.update(model, 1000)  # decay 0.5: (0.9 + 2) / 2
    assert ema.values["weight"].item() == pytest.approx(1.45)


def test_average_is_a_copy():
    model = nn.Linear(1, 1)
    ema = ExponentialMovingAverage(model, decay=0.5, total_steps=10)
    before = ema.values["weight"].clone()
    nn.init.constant_(model.weight, 7.0)
    assert torch.equal(ema.values["weight"], before)


def test_buffers_are_averaged_and_counters_copied():
    model = nn.BatchNorm1d(2)
    ema = ExponentialMovingAverage(model, decay=0.5, total_steps=1000)
    model.running_mean.fill_(10.0)
    model.num_batches_tracked.fill_(42)
    ema.update(model, 10**6)
    assert ema.values["running_mean"].tolist() == [5.0, 5.0]
    assert ema.values["num_batches_tracked"].item() == 42


def test_a_short_run_forgets_its_initialization():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1000.0)
    ema = ExponentialMovingAverage(model, decay=0.99996, total_steps=100)
    nn.init.ones_(model.weight)
    for step in range(100):
        ema.update(model, step)
    assert ema.values["weight"].item() == pytest.approx(
        1.0, abs=0.1
    )  # with 0.99996 it would be 997

"""Timings are medians by the image, within the time that was given; numbers lose the digits that mean nothing."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.profiling.clock import LEAST, Timing, measure, stable


def test_a_timing_is_the_median_by_the_image_and_half_the_distance_of_the_quartiles():
    timing = Timing(
        1.0, (0.5, 0.25, 0.2, 0.1, 1.0)
    )  # 2, 4, 5, 10 and 1 images a second: quartiles 2 and 5
    assert (timing.seconds, timing.rate, timing.spread) == (0.25, 4.0, 1.5)


def test_one_sample_has_no_spread():
    assert math.isinf(Timing(1.0, (0.5,)).spread)


def test_the_first_time_is_kept_apart_and_counts_are_divided_by():
    calls: list[float] = []

    def work() -> int:
        calls.append(time.perf_counter())
        time.sleep(0.06 if len(calls) == 1 else 0.02)
        return 10

    timing = measure(work, seconds=0.2)
    assert timing.first >= 0.06
    assert 0.002 <= timing.seconds < 0.006
    assert len(timing.samples) == len(calls) - 1 >= LEAST


def test_slow_work_is_not_repeated_beyond_twice_the_time():
    timing = measure(lambda: time.sleep(0.05) or 1, seconds=0.01)
    assert len(timing.samples) == 1


def test_work_that_is_a_little_too_slow_is_still_repeated():
    assert len(measure(lambda: time.sleep(0.03) or 1, seconds=0.05).samples) == LEAST


def test_fast_work_ends_after_the_most_samples():
    assert len(measure(lambda: 1, seconds=60, most=7).samples) == 7


def test_the_device_is_waited_for_in_every_sample():
    waits: list[int] = []
    timing = measure(lambda: 1, seconds=60, wait=lambda: waits.append(0), most=4)
    assert len(waits) == 1 + len(timing.samples)


@pytest.mark.parametrize(
    ("value", "spread", "said"),
    [
        (52.31, 2.8, "52"),
        (52.31, 0.28, "52.3"),
        (52.31, 0.001, "52.3"),
        (1234.0, 3.0, "1,230"),
        (1234.0, 250.0, "1,200"),
        (1234.0, math.inf, "1,200"),
        (0.01234, 0.0, "0.0123"),
        (7.0, 40.0, "7"),
        (0, 1.0, "0"),
    ],
)
def test_digits_that_the_spread_makes_worthless_are_left_out(value, spread, said):
    assert stable(value, spread) == said


@given(st.floats(1e-6, 1e9), st.floats(0, 1e9))
def test_what_is_said_is_off_by_a_digit_that_did_not_count(value, spread):
    said = float(stable(value, spread).replace(",", ""))
    assert abs(said - value) <= 0.5001 * max(10 * spread, 0.01 * 10 ** math.ceil(math.log10(value)))

"""Time is per call, growth the peak above the start."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import torch

from deitctl.device import choose_device
from deitctl.profiling.measure import MemoryMeter, measure_time

CPU = choose_device("cpu", "fp32")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_growth_counts_the_peak_of_memory_that_is_freed_again():
    meter = MemoryMeter(CPU)
    meter.start()
    large = np.ones(2**26, np.uint8)
    del large
    assert abs(meter.growth() - 2**26) < 2**23  # the kernel counts roughly
    meter.start()
    assert meter.growth() < 2**24


def test_a_measured_time_is_that_of_one_call_without_the_warm_up():
    calls: list[int] = []

    def work() -> None:
        calls.append(torch.get_num_threads())
        time.sleep(0.1 if len(calls) == 1 else 0.02)

    measurement = measure_time(work, seconds=0.06)
    assert 0.02 <= measurement.median < 0.06
    assert len(measurement.times) == len(calls) - 1 >= 2
    assert set(calls) == {torch.get_num_threads()}

"""Peaks are positive, of the requested precisions, and leave the number of threads as it was."""

from __future__ import annotations

import time

import pytest
import torch

from deitctl.device import choose_device
from deitctl.profiling import peak
from deitctl.profiling.peak import measure_copy, measure_matmul, measure_peak

CPU = choose_device("cpu", "fp32")


def test_a_product_of_n_takes_two_n_cubed_operations():
    n = 512
    a = torch.randn(n, n)
    a @ a
    times = []
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - start)
    # the best of some, because other programs may take the cores for a moment
    flops = max(measure_matmul(CPU, "fp32", seconds=0.1, side=n) for _ in range(3))
    assert flops == pytest.approx(2 * n**3 / min(times), rel=0.7)


def test_peaks_are_of_the_requested_precisions(monkeypatch):
    monkeypatch.setitem(peak.MATRIX_SIDE, "cpu", 64)
    throughput = measure_peak(CPU, ["fp32", "bf16"], seconds=0.01)
    assert list(throughput.flops_per_second) == ["fp32", "bf16"]
    assert min(throughput.flops_per_second.values()) > 0
    assert 1e8 < throughput.copy_bytes_per_second < 1e13


def test_a_copy_counts_bytes_read_and_written(monkeypatch):
    monkeypatch.setattr(peak, "COPY_BYTES", 2**20)
    assert measure_copy(CPU, seconds=0.05) > 1e8

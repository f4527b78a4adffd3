"""Peaks are positive, of the requested precisions, and leave the number of threads as it was."""

from __future__ import annotations

from types import SimpleNamespace

from deitctl.device import choose_device
from deitctl.profiling import peak
from deitctl.profiling.peak import measure_copy, measure_matmul, measure_peak

CPU = choose_device("cpu", "fp32")


def test_a_product_of_two_n_by_n_matrices_counts_two_n_cubed_operations(monkeypatch):
    def measure(work, *, seconds: float) -> SimpleNamespace:
        assert work().shape == (64, 64)
        return SimpleNamespace(times=[0.5, 0.25, 1.0])

    monkeypatch.setattr(peak, "measure_time", measure)
    assert measure_matmul(CPU, "fp32", seconds=0.1, side=64) == 2 * 64**3 / 0.25


def test_peaks_are_of_the_requested_precisions(monkeypatch):
    monkeypatch.setitem(peak.MATRIX_SIDE, "cpu", 64)
    throughput = measure_peak(CPU, ["fp32", "bf16"], seconds=0.01)
    assert list(throughput.flops_per_second) == ["fp32", "bf16"]
    assert min(throughput.flops_per_second.values()) > 0
    assert 1e8 < throughput.copy_bytes_per_second < 1e13


def test_a_copy_counts_bytes_read_and_written(monkeypatch):
    monkeypatch.setattr(peak, "COPY_BYTES", 2**20)
    assert measure_copy(CPU, seconds=0.05) > 1e8

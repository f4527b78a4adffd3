"""The ceilings are positive, of the precisions that were asked for, and leave the number of threads as it was."""

from __future__ import annotations

import time

import pytest
import torch

from deitctl.device import choose_device
from deitctl.profiling import peak as ceiling
from deitctl.profiling.peak import matrix_product, measure_ceilings, memory_copy

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
    assert matrix_product(CPU, "fp32", seconds=0.1, size=n) == pytest.approx(
        2 * n**3 / min(times), rel=0.7
    )


def test_ceilings_are_of_the_precisions_that_were_asked_for(monkeypatch):
    monkeypatch.setitem(ceiling.MATRIX, "cpu", 64)
    found = measure_ceilings(CPU, ["fp32", "bf16"], seconds=0.01)
    assert list(found.flops) == ["fp32", "bf16"]
    assert min(found.flops.values()) > 0
    assert 1e8 < found.copy < 1e13


def test_with_fewer_threads_than_cores_all_cores_are_tried_and_the_threads_put_back(monkeypatch):
    monkeypatch.setitem(ceiling.MATRIX, "cpu", 64)
    monkeypatch.setattr(ceiling, "available_cores", lambda: torch.get_num_threads() + 1)
    before = torch.get_num_threads()
    found = measure_ceilings(CPU, ["fp32"], seconds=0.01)
    assert found.all_cores > 0
    assert (torch.get_num_threads(), found.threads, found.cores) == (before, before, before + 1)


def test_with_a_thread_a_core_there_is_nothing_to_try(monkeypatch):
    monkeypatch.setitem(ceiling.MATRIX, "cpu", 64)
    monkeypatch.setattr(ceiling, "available_cores", torch.get_num_threads)
    assert measure_ceilings(CPU, ["fp32"], seconds=0.01).all_cores is None


def test_a_copy_counts_what_it_reads_and_what_it_writes(monkeypatch):
    monkeypatch.setattr(ceiling, "COPIED", 2**20)
    assert memory_copy(CPU, seconds=0.05) > 1e8

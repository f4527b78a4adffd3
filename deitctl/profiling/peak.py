"""What this machine can do at best: a large matrix product, and a copy in memory. Shares are of these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from deitctl import rng
from deitctl.cores import available_cores
from deitctl.device import PRECISIONS, Device
from deitctl.profiling.clock import measure

COPIED = 2**27
"""Bytes that are copied at a time: more than any cache holds."""
MATRIX = {"cpu": 2048, "mps": 4096, "cuda": 8192}
"""Side of the matrices: the product is as fast as it gets, and takes a fraction of a second."""


@dataclass(frozen=True, kw_only=True)
class PeakThroughput:
    """The best of several tries of each."""

    flops: dict[str, float]
    """Floating-point operations a second of a matrix product, by precision; 2 n³ of them multiply two n x n matrices."""
    copy: float
    """Bytes a second that a copy reads and writes, both counted."""
    threads: int
    cores: int
    all_cores: float | None
    """Operations a second in the run's precision with a thread a core, where torch has fewer."""


def measure_ceilings(device: Device, precisions: list[str], *, seconds: float) -> PeakThroughput:
    """Measure a matrix product in each precision, and a copy, each for about `seconds`."""
    flops = {name: matrix_product(device, name, seconds=seconds) for name in precisions}
    cores, threads, every = available_cores(), torch.get_num_threads(), None
    if device.torch_device.type == "cpu" and threads < cores:
        with _threads(cores):
            every = matrix_product(device, device.precision, seconds=seconds)
    return PeakThroughput(
        flops=flops,
        copy=memory_copy(device, seconds=seconds),
        threads=threads,
        cores=cores,
        all_cores=every,
    )


def matrix_product(device: Device, precision: str, *, seconds: float, size: int = 0) -> float:
    """Return the operations a second of the fastest product of two square matrices of `size` (0: as fits the device)."""
    n = size or MATRIX[device.torch_device.type]
    draw = rng.torch_generator(
        "matrix product"
    )  # chips that multiply zeros or ones run cooler, and so faster
    a = torch.randn((n, n), generator=draw).to(device.torch_device, PRECISIONS[precision])
    b = a.clone()

    def work() -> int:
        torch.mm(a, b)
        return 1

    return 2 * n**3 / min(measure(work, seconds=seconds, wait=device.synchronize).samples)


def memory_copy(device: Device, *, seconds: float) -> float:
    """Return the bytes a second that the fastest copy reads and writes."""
    source = torch.ones(COPIED, dtype=torch.uint8, device=device.torch_device)
    target = torch.empty_like(source)

    def work() -> int:
        target.copy_(source)
        return 1

    return 2 * COPIED / min(measure(work, seconds=seconds, wait=device.synchronize).samples)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

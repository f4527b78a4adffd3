"""The roofline of the stages: the fastest matrix product and copy on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deitctl import rng
from deitctl.arithmetic import set_arithmetic
from deitctl.cores import count_cores
from deitctl.device import PRECISIONS, Device
from deitctl.profiling.measure import measure_time

COPY_BYTES = 2**27
"""Of a copy: more than any cache holds."""
MATRIX_SIDE = {"cpu": 2048, "mps": 4096, "cuda": 8192}
"""Where the product is as fast as it gets, and takes a fraction of a second."""


@dataclass(frozen=True, kw_only=True)
class PeakThroughput:
    """The fastest of several matrix products and copies."""

    flops_per_second: dict[str, float]
    """Of a matrix product, by precision; 2 n³ operations multiply two n x n matrices."""
    copy_bytes_per_second: float
    """Read and written by a copy, both counted."""
    num_threads: int
    """Threads that torch uses."""
    num_cores: int
    """Cores that this process may use."""


def measure_peak(device: Device, precisions: list[str], *, seconds: float) -> PeakThroughput:
    """Measure a matrix product in each precision, and a copy, each for about `seconds`."""
    return PeakThroughput(
        flops_per_second={p: measure_matmul(device, p, seconds=seconds) for p in precisions},
        copy_bytes_per_second=measure_copy(device, seconds=seconds),
        num_threads=torch.get_num_threads(),
        num_cores=count_cores(),
    )


def measure_matmul(device: Device, precision: str, *, seconds: float, side: int = 0) -> float:
    """Return the operations a second of the fastest square matrix product (side 0: by device)."""
    n = side or MATRIX_SIDE[device.torch_device.type]
    # noise, because chips that multiply zeros or ones run cooler, and so faster
    noise = torch.randn((n, n), generator=rng.torch_generator("matrix product"))
    a = noise.to(device.torch_device, PRECISIONS[precision])
    b = a.clone()
    # the fastest: a peak is what nothing disturbs
    with set_arithmetic(tf32=precision == "tf32", deterministic=False):
        return 2 * n**3 / min(measure_time(lambda: torch.mm(a, b), seconds=seconds).times)


def measure_copy(device: Device, *, seconds: float) -> float:
    """Return the bytes a second that the fastest copy reads and writes."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device.torch_device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / min(measure_time(lambda: target.copy_(source), seconds=seconds).times)

"""Time and peak memory of a piece of work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deitctl.device import Device
from deitctl.free_memory import read_fields

if TYPE_CHECKING:
    from torch.utils.benchmark import Measurement


def measure_time(work: Callable[[], object], *, seconds: float) -> Measurement:
    """Call `work` to warm up, then again for at least `seconds`; synchronize an accelerator."""
    # imports cpp_extension, which warns where CUDA_HOME is set and there is no GPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    # Timer's own default is one thread
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds)


class MemoryMeter:
    """Counts how far the peak of memory rises above what is in use at `start`."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._start: int | None = None

    def start(self) -> None:
        """Begin to count; the allocator's cache is given back first."""
        self.device.empty_cache()
        self._start = self.device.reset_peak_memory()
        if self._start is None:
            with suppress(OSError):  # no Linux, or not allowed
                # resets VmHWM, the kernel's peak, to what is resident now
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
                self._start = _read_status("VmRSS:")

    def growth(self) -> int | None:
        """Return the bytes by which the peak is above the start, None if not known."""
        peak = self.device.read_peak_memory() or _read_status("VmHWM:")
        return None if peak is None or self._start is None else max(0, peak - self._start)


def _read_status(field: str) -> int | None:
    kib = read_fields(Path("/proc/self/status")).get(field)
    return None if kib is None else 1024 * kib

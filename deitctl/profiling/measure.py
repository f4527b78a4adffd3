"""Time and peak memory of a piece of work, and free memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deitctl.device import Device

if TYPE_CHECKING:
    from torch.utils.benchmark import Measurement

ROOT = Path("/")


def measure_time(work: Callable[[], object], *, seconds: float) -> Measurement:
    """Call `work` to warm up, then again for at least `seconds`; synchronize an accelerator."""
    # imports cpp_extension, which warns where CUDA_HOME is set and there is no GPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    # Timer's own default is one thread
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds)


def read_free_memory(device: Device, root: Path = ROOT) -> int | None:
    """Return the memory that tensors may still take, None where the system does not say.

    On a CPU it is Linux's MemAvailable, or less where a control group (a container's) leaves less.
    """
    if (free := device.read_free_memory()) is not None:
        return free
    available = _read_fields(root / "proc/meminfo").get("MemAvailable:")
    limits = _read_cgroup_limits(root)
    if available is not None:
        limits.append(1024 * available)
    return min(limits, default=None)


def _read_cgroup_limits(root: Path) -> list[int]:
    """Return the bytes that each control group leaves free; page cache counts as free."""
    groups = _read_text(root / "proc/self/cgroup").splitlines()
    path = next((line.removeprefix("0::/") for line in groups if line.startswith("0::/")), "")
    mount = root / "sys/fs/cgroup"
    limits = []
    for folder in [mount / path, *(mount / path).parents]:
        limit = _read_text(folder / "memory.max").strip()  # "max" where there is none
        used = _read_text(folder / "memory.current").strip()
        if limit.isdecimal() and used.isdecimal():
            page_cache = _read_fields(folder / "memory.stat").get("inactive_file", 0)
            limits.append(int(limit) - int(used) + page_cache)
        if folder == mount:
            break
    return limits


def _read_fields(file: Path) -> dict[str, int]:
    rows = [line.split() for line in _read_text(file).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


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
    kib = _read_fields(Path("/proc/self/status")).get(field)
    return None if kib is None else 1024 * kib

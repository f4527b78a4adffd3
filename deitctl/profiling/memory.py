"""How much memory is free, and how much a piece of work takes: on CUDA by torch's count, else of this process."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from deitctl.device import Device

ROOT = Path("/")


def free_bytes(device: Device, root: Path = ROOT) -> int | None:
    """Return the memory that tensors may still take, None where the system does not say.

    On a CPU it is what Linux calls available, or less where a control group, a container's for example, allows less.
    """
    if (free := device.free_memory_bytes()) is not None:
        return free
    known = [_meminfo(root), *_cgroup_rooms(root)]
    return min((k for k in known if k is not None), default=None)


def _meminfo(root: Path) -> int | None:
    found = _fields(root / "proc/meminfo").get("MemAvailable:")
    return None if found is None else 1024 * found


def _cgroup_rooms(root: Path) -> list[int]:
    """Return what each control group above this process leaves; its cache of files counts as free."""
    groups = _text(root / "proc/self/cgroup").splitlines()
    path = next((line.removeprefix("0::/") for line in groups if line.startswith("0::/")), "")
    rooms = []
    mount = root / "sys/fs/cgroup"
    for folder in [mount / path, *(mount / path).parents]:
        limit, used = _text(folder / "memory.max").strip(), _text(folder / "memory.current").strip()
        if limit.isdecimal() and used.isdecimal():
            rooms.append(
                int(limit) - int(used) + _fields(folder / "memory.stat").get("inactive_file", 0)
            )
        if folder == mount:
            break
    return rooms


def _fields(file: Path) -> dict[str, int]:
    rows = [line.split() for line in _text(file).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


class MemoryMeter:
    """Counts from `start` on how much more memory is taken at the worst moment."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._before: int | None = None

    def start(self) -> None:
        """Begin to count; what backends keep for later is given back first."""
        self.device.empty_cache()
        self._before = self.device.restart_peak_memory()
        if self._before is None:
            with suppress(OSError):  # no Linux, or not allowed
                Path("/proc/self/clear_refs").write_text(
                    "5", encoding="ascii"
                )  # the kernel's peak begins anew
                self._before = _status("VmRSS:")

    def growth(self) -> int | None:
        """Return by how many bytes the peak is above what was in use at `start`, None where the system does not say."""
        peak = self.device.peak_memory_bytes() or _status("VmHWM:")
        return None if peak is None or self._before is None else max(0, peak - self._before)


def _status(field: str) -> int | None:
    found = _fields(Path("/proc/self/status")).get(field)
    return None if found is None else 1024 * found

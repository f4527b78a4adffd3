"""Memory that tensors may still take, of an accelerator or of the machine."""

from __future__ import annotations

from pathlib import Path

from deitctl.device import Device

ROOT = Path("/")


def read_free_memory(device: Device, root: Path = ROOT) -> int | None:
    """Return the memory that tensors may still take, None where the system does not say."""
    free = device.read_free_memory()
    return read_host_memory(root) if free is None else free


def read_host_memory(root: Path = ROOT) -> int | None:
    """Return the memory that processes of this host may still take, None where the system does not say.

    It is Linux's MemAvailable, or less where a control group (a container's) leaves less.
    """
    available = read_fields(root / "proc/meminfo").get("MemAvailable:")
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
            page_cache = read_fields(folder / "memory.stat").get("inactive_file", 0)
            limits.append(int(limit) - int(used) + page_cache)
        if folder == mount:
            break
    return limits


def read_fields(file: Path) -> dict[str, int]:
    """Return the numbers of a file of the kernel's, by the first word of their lines; none if it cannot be read."""
    rows = [line.split() for line in _read_text(file).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""

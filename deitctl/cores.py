"""CPU cores of this process; in a file of its own because loader and decoder processes import it without torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from deitctl.launchers import count_local_processes

ROOT = Path("/")


def count_cores(environ: Mapping[str, str] = os.environ, root: Path = ROOT) -> int:
    """Return how many cores this process may use: its part of those that a container leaves it.

    Processes of one run divide the cores of their host, or those that their launcher may use. One that is bound
    to cores of its own has no more than these.
    """
    own = _count_allowed(root / "proc/self/status") or os.cpu_count() or 1
    own = min([own, *_read_quotas(root)])
    num_processes = count_local_processes(environ)
    if num_processes == 1:
        return own
    return max(1, min(own, _count_launchers_cores(environ, root, own) // num_processes))


def _count_launchers_cores(environ: Mapping[str, str], root: Path, own: int) -> int:
    """Return the cores that the processes of this host divide."""
    if "LOCAL_WORLD_SIZE" not in environ and environ.get("SLURM_CPUS_ON_NODE", "").isdecimal():
        return int(environ["SLURM_CPUS_ON_NODE"])  # srun's own processes may use the whole host
    quota = min(_read_quotas(root), default=1 << 30)
    process = _read_parent(root / "proc/self/status")
    # A process between torchrun and this one, a script that binds it, has torchrun's variable too.
    while process > 1 and b"\0LOCAL_WORLD_SIZE=" in b"\0" + _read(root / f"proc/{process}/environ"):
        process = _read_parent(root / f"proc/{process}/status")
    return min(quota, _count_allowed(root / f"proc/{process}/status") or own)


def _count_allowed(status: Path) -> int:
    """Return how many cores a process may use, as taskset and cpusets have it; 0 where that is not known."""
    text = _read_field(status, b"Cpus_allowed_list:")
    ranges = [part.partition("-") for part in text.split(",") if part]
    try:
        return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)
    except ValueError:
        return 0


def _read_parent(status: Path) -> int:
    text = _read_field(status, b"PPid:")
    return int(text) if text.isdecimal() else 0


def _read_field(status: Path, name: bytes) -> str:
    lines = [line for line in _read(status).splitlines() if line.startswith(name)]
    return lines[0].removeprefix(name).strip().decode() if lines else ""


def _read_quotas(root: Path) -> list[int]:
    """Return the cores that each control group allows (`docker run --cpus`); a part of one is one."""
    groups = _read(root / "proc/self/cgroup").decode("utf-8", "replace").splitlines()
    path = next((line.removeprefix("0::/") for line in groups if line.startswith("0::/")), "")
    mount = root / "sys/fs/cgroup"
    texts = [
        _read(folder / "cpu.max").split() for folder in [mount / path, *(mount / path).parents]
    ]
    first = mount / "cpu"  # of version 1
    texts.append([_read(first / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")])
    return [
        max(1, math.ceil(int(text[0]) / int(text[1])))
        for text in texts
        if len(text) == 2 and text[0].isdigit() and text[1].isdigit() and int(text[1])
    ]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""

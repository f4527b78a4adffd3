"""CPU cores of this process; in a file of its own because loader and decoder processes import it without torch."""

from __future__ import annotations

import os


def count_cores() -> int:
    """Return how many cores this process may use, which a container or taskset may limit.

    Processes of torchrun divide the machine between them, unless each is bound to cores of its own.
    """
    machine = os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    neighbors = os.environ.get("LOCAL_WORLD_SIZE", "")
    if cores < machine or not neighbors.isdecimal():
        return cores
    return max(1, cores // max(1, int(neighbors)))

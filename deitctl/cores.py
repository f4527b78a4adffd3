"""CPU cores of this process; in a file of its own because loader and decoder processes import it without torch."""

from __future__ import annotations

import os


def count_cores() -> int:
    """Return how many cores this process may use, which a container or taskset may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

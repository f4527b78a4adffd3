"""Loader processes that the memory of a host has room for, beside those of its other processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from deitctl.data.loader import AHEAD, ViewPlan
from deitctl.free_memory import ROOT, read_host_memory
from deitctl.launchers import count_local_processes
from deitctl.sizes import ImageSize, height_width

LOADER_BYTES = 128 * 2**20
"""Of a loader process alone, without batches; docs/results/data.md has the measurement."""
SHARE = 0.5
"""Of the free memory, for loaders: the rest is for the network, checkpoints and the page cache."""


def count_batch_bytes(batch_size: int, img_size: ImageSize, plan: ViewPlan) -> int:
    """Return the bytes of a training batch's images, as loaders hand it over.

    Args:
        batch_size: of one process.
        img_size: of the student's input.
        plan: what else the views are rendered for.
    """
    inputs = [(img_size, plan.in_chans), *((v.size, v.in_chans) for v in plan.teacher_views)]
    sizes = [(*height_width(size), channels) for size, channels in inputs]
    return batch_size * sum(height * width * channels for height, width, channels in sizes)


def fit_loaders(
    workers: int,
    batch_bytes: int,
    note: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
    root: Path = ROOT,
) -> int:
    """Return how many loader processes memory has room for, one at least if any were chosen.

    Args:
        workers: chosen by the cores.
        batch_bytes: see `count_batch_bytes`.
        note: receives a line where memory has room for fewer.
        environ: the environment.
        root: of `/proc` and `/sys`.
    """
    free = read_host_memory(root)
    if free is None or not workers:
        return workers
    num_processes = count_local_processes(environ)
    # A loader prepares a batch while others of its wait, in memory that is theirs alone.
    each = LOADER_BYTES + (AHEAD + 1) * batch_bytes
    fitting = max(1, min(workers, int(SHARE * free / num_processes) // each))
    if fitting < workers:
        note(
            f"{fitting} loader processes instead of {workers}: {free / 2**30:.1f} GiB of memory are free"
            f"{f', for {num_processes} processes of this run' if num_processes > 1 else ''}, and each takes "
            f"{each / 2**30:.1f} GiB. --workers N starts N all the same."
        )
    return fitting

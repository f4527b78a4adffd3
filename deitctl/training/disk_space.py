"""Disk space that a run needs at its peak, beside what is free."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deitctl.config import Recipe
from deitctl.device import Device
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.launchers import count_local_processes
from deitctl.training.build import TrainSetup
from deitctl.training.freezing import count_trained
from deitctl.training.state import TrainState

MIB = 2**20
SHARED_MEMORY = Path("/dev/shm")
SHARED_BYTES = 2**26
"""Of it for each process: Docker gives a container 64 MiB, NCCL's troubleshooting page says 1 GiB."""


@dataclass(frozen=True, kw_only=True)
class DiskNeed:
    """What a run writes to one file system."""

    folder: str
    """The first of its folders there: of runs, or of teacher targets."""
    needed_mib: float
    """Weights and checkpoint, each twice while the new one replaces the old, and teacher targets."""
    free_mib: float
    """Free space."""

    @property
    def is_enough(self) -> bool:
        """Whether what is needed is free."""
        return self.needed_mib <= self.free_mib

    @property
    def message(self) -> str:
        """What is missing, as a sentence."""
        return (
            f"{self.folder} has {self.free_mib:,.0f} MiB free, and the run needs "
            f"{self.needed_mib:,.0f} MiB there: free some space, or name another folder."
        )


def count_run_bytes(state: TrainState, recipe: Recipe) -> int:
    """Return the bytes of a run folder at its peak: weights and checkpoint, each twice."""
    weights = sum(t.numel() * t.element_size() for t in state.model.state_dict().values())
    _, moments = count_trained(state, recipe)
    projector = {} if state.projector is None else state.projector.state_dict()
    moments += sum(t.numel() * t.element_size() for t in projector.values())
    checkpoint = weights * (2 if recipe.ema_decay else 1) + moments
    return int(2 * (weights + checkpoint))


def plan_disks(
    root: Path, run_bytes: int, cache: Path | None = None, cache_bytes: int = 0
) -> list[DiskNeed]:
    """Return what a run needs of each file system that it writes to.

    Args:
        root: the run folder, or the folder of the runs; need not exist.
        run_bytes: of the run, less what of it is there already.
        cache: the folder of the teacher targets, None without any.
        cache_bytes: of the targets that are missing.
    """
    needs: dict[int, tuple[Path, int]] = {}
    for folder, size in ((root, run_bytes), (cache, cache_bytes)):
        if folder is not None and (device := _find_device(folder)) is not None:
            first, others = needs.get(device, (folder, 0))
            needs[device] = first, others + size
    return [
        DiskNeed(
            folder=str(folder),
            needed_mib=round(size / MIB, 1),
            free_mib=round(shutil.disk_usage(_find_parent(folder)).free / MIB, 1),
        )
        for folder, size in needs.values()
    ]


def warn_of_full_disks(root: Path, setup: TrainSetup, reporter: Reporter) -> None:
    """Warn if what a run is going to write into its folder and its cache does not fit on its disks."""
    missing = count_run_bytes(setup.state, setup.config.recipe) - measure_folder(root)
    cache = setup.teacher.cache if setup.teacher else None
    targets = cache.count_missing(setup.teacher.total_views) if setup.teacher and cache else 0
    for disk in plan_disks(
        root,
        max(0, missing),
        cache.root if cache else None,
        targets * cache.record_bytes if cache else 0,
    ):
        if not disk.is_enough:
            reporter.warn(disk.message)


def warn_of_small_shared_memory(
    device: Device,
    reporter: Reporter,
    environ: Mapping[str, str] = os.environ,
    folder: Path = SHARED_MEMORY,
) -> None:
    """Warn if NCCL may not have the room in /dev/shm by which GPUs of a host exchange gradients.

    Loader processes need none: their batches are in files of no name, see `data/channel.py`.
    """
    num_processes = count_local_processes(environ)
    if device.torch_device.type != "cuda" or num_processes == 1 or not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free
    if free < num_processes * SHARED_BYTES:
        reporter.warn(
            f"{folder} has {free / MIB:,.0f} MiB free for {num_processes} processes: NCCL, by which their GPUs "
            "exchange gradients, can fail for want of it (No space left on device). In Docker: "
            "docker run --shm-size 1g, or --ipc host."
        )


def measure_folder(root: Path) -> int:
    """Return the bytes of the weights and the checkpoint that a run folder holds."""
    files = [root / "model.safetensors", *root.glob("checkpoint/*")]
    return sum(file.stat().st_size for file in files if file.is_file())


def _find_parent(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    path = expand_home(folder).absolute()
    return next((p for p in (path, *path.parents) if p.is_dir()), path)


def _find_device(folder: Path) -> int | None:
    """Return the number of a folder's file system, None if it cannot be looked at."""
    try:
        return os.stat(_find_parent(folder)).st_dev
    except OSError:
        return None

"""The state of a model that is divided among processes: each writes its part, any number of processes read them.

Files of safetensors by torch.distributed.checkpoint, whose default format is a pickle: whoever loads one runs its code.
"""

from __future__ import annotations

import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from deitctl.distributed import World
from deitctl.errors import DeitctlError
from deitctl.paths import DiskError, refuse_links, write_json
from deitctl.training.saved_state import (
    EMA,
    MODEL,
    OPTIMIZER,
    RECORD,
    SHARDED,
    add_checksums,
    list_tensors,
    refuse,
    require_tensors,
)
from deitctl.training.sharding import Sharding, begin_moments, list_state, put_tensors
from deitctl.training.state import SavedFiles, TrainState, remove, swap_in


@dataclass(frozen=True)
class ShardedSnapshot:
    """A copy of this process's part of the state in CPU memory, which can be written while training continues."""

    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]
    sharding: Sharding

    @staticmethod
    def of(state: TrainState, record: Mapping[str, Any], sharding: Sharding) -> ShardedSnapshot:
        """Copy the state, between two steps."""
        tensors = {k: v.detach().to("cpu", copy=True) for k, v in list_state(state).items()}
        return ShardedSnapshot(tensors, {**record, SHARDED: True}, sharding)

    def write(self, folder: Path) -> None:
        """Write the state beside the previous one, then swap them; by all processes at a time.

        A kill at any moment leaves one of them complete.

        Raises:
            DiskError: the disk of a process is full or the folder is not writable; the previous state
            is unchanged.
        """
        new = folder.with_name(f"{folder.name}.new")

        def prepare() -> None:
            refuse_links(folder.parent, (folder.name, new.name, f"{folder.name}.old"))
            remove(new)
            new.mkdir(parents=True, exist_ok=True)

        def swap() -> None:
            if missing := sorted({*chain.from_iterable(written)} - set(os.listdir(new))):
                raise DeitctlError(
                    f"{new} has no {missing[0]} in the main process, which another one wrote.",
                    "The run's folder must be on a disk that the hosts share.",
                )
            sums = {p.name: checksum_file(p) for p in sorted(new.iterdir())}
            write_json(new / RECORD, add_checksums(self.record, sums))
            swap_in(new, folder)

        try:
            self._run_on_main(prepare, folder)
            writer = HuggingFaceStorageWriter(str(new), save_distributed=True)
            save(dict(self.tensors), storage_writer=writer, process_group=self.sharding.writers)
            written: list[list[str]] = [[] for _ in range(self.sharding.world.size)]
            own = new.glob(f"shard-{self.sharding.world.rank + 1:05d}-*")
            dist.all_gather_object(
                written, [path.name for path in own], group=self.sharding.writers
            )
            self._run_on_main(swap, folder)
        except CheckpointException as error:
            if self.sharding.world.is_main:
                shutil.rmtree(new, ignore_errors=True)  # the next try needs the space
            raise _explain(error, folder) from error

    def _run_on_main(self, work: Callable[[], None], folder: Path) -> None:
        """Do something in the main process; raise its error in all of them."""
        failures: list[DeitctlError | None] = [None]
        if self.sharding.world.is_main:
            try:
                work()
            except DeitctlError as error:
                failures = [error]
            except OSError as error:
                failures = [DiskError.from_os_error(folder, error)]
            except Exception as error:  # or the others would wait for it
                failures = [DeitctlError(f"{folder} cannot be written: {error!r}.")]
        dist.broadcast_object_list(failures, src=0, group=self.sharding.writers)
        if failures[0] is not None:
            raise failures[0]


def _explain(error: CheckpointException, folder: Path) -> DeitctlError:
    """Return the error of a write that failed in one of the processes."""
    rank, (reason, _) = min(error.failures.items())
    if isinstance(reason, OSError):
        return DiskError.from_os_error(folder, reason)
    return DeitctlError(f"{folder} cannot be written by process {rank}: {reason}.")


def load_state(state: TrainState, saved: SavedFiles) -> None:
    """Read this process's part of a state, whatever the number of processes that wrote it; collective.

    Args:
        state: divided.
        saved: of one process, or of several that wrote their parts.

    Raises:
        ModelError: it is damaged, or of another model; no weights are changed.
    """
    sharding = state.sharding
    assert sharding is not None
    begin_moments(state, set(saved.without or ()))
    tensors = list_state(state)
    if not saved.is_sharded:
        values = read_files(saved, has_ema=state.ema is not None)
        require_tensors(saved.folder / RECORD, values, list_tensors(tensors))
        put_tensors(tensors, values)
        return
    _check_together(saved, sharding.world)
    reader = HuggingFaceStorageReader(str(saved.folder))
    require_tensors(saved.folder / RECORD, _list_saved(reader), list_tensors(tensors))
    load(tensors, storage_reader=reader, process_group=sharding.writers)


def _check_together(saved: SavedFiles, world: World) -> None:
    """Let each process check some of the files; raise the `ModelError` of any in all of them."""
    own = sorted((saved.checksums or {}).items())[world.rank :: world.size]
    failure: DeitctlError | None = None
    try:
        check_files(saved.folder, dict(own))
    except DeitctlError as error:
        failure = error
    for other in world.all_gather_object(failure):
        if other is not None:
            raise failure or other


def read_files(saved: SavedFiles, *, has_ema: bool) -> dict[str, Tensor]:
    """Return the tensors of a state that one process wrote, by the names of `list_state`."""
    names = [MODEL, OPTIMIZER, *([EMA] if has_ema else [])]
    return {
        f"{file.removesuffix('safetensors')}{name}": value
        for file in names
        for name, value in saved.read(file).items()
    }


def read_shards(folder: Path, checksums: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return the whole tensors of a state that processes wrote in parts, by the files that one process writes.

    Raises:
        ModelError: it is damaged.
    """
    check_files(folder, checksums)
    reader = HuggingFaceStorageReader(str(folder))
    saved = _list_saved(reader)
    num_bytes = sum(v.numel() * v.element_size() for v in saved.values())
    if num_bytes > sum(file.stat().st_size for file in folder.glob("*.safetensors")):
        raise refuse(folder, "is damaged: its files are shorter than its tensors")
    tensors = {name: torch.empty_like(value, device="cpu") for name, value in saved.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=reader, no_dist=True)
    files: dict[str, dict[str, Tensor]] = {MODEL: {}, EMA: {}, OPTIMIZER: {}}
    for name, value in tensors.items():
        kind, _, own = name.partition(".")
        files[f"{kind}.safetensors"][own] = value
    return files


def _list_saved(reader: HuggingFaceStorageReader) -> dict[str, Tensor]:
    """Return the tensors of files, without values."""
    saved = reader.read_metadata().state_dict_metadata
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in saved.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def check_files(folder: Path, checksums: Mapping[str, Any]) -> None:
    """Raise `ModelError` unless files have their checksums."""
    for name, checksum in checksums.items():
        if not (folder / name).is_file() or checksum_file(folder / name) != checksum:
            raise refuse(folder / name, "is missing or damaged", folder)


def checksum_file(path: Path) -> str:
    """Return the CRC-32 of a file, in hexadecimal."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            checksum = zlib.crc32(chunk, checksum)
    return f"{checksum:08x}"

"""The state of a model that is divided among processes: each writes its part, any number of processes read them.

Files of safetensors by torch.distributed.checkpoint, whose default format is a pickle: whoever loads one runs its code.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor

from deitctl.distributed import World
from deitctl.paths import refuse_links, sync_folder, write_json
from deitctl.training.saved_state import (
    RECORD,
    RECORD_CHECKSUM,
    checksum_record,
    read_record,
    refuse,
)
from deitctl.training.state import TrainState

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of AdamW."""


def gather_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors on the CPU, one after the other; collective."""
    gathered = {}
    for name, value in weights.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        gathered[name] = full.detach().to("cpu", copy=True)
    return gathered


def save_shards(state: TrainState, folder: Path, record: Mapping[str, Any], world: World) -> None:
    """Write the state beside the previous one, then swap them; collective.

    A kill at any moment leaves one of them complete: `folder`, or between two renames `folder.old`.

    Args:
        state: of AdamW, after its first step.
        folder: of the state.
        record: JSON values that are saved with it.
        world: the processes.
    """
    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")

    def prepare() -> None:
        refuse_links(folder.parent, (folder.name, new.name, old.name))
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)

    def swap() -> None:
        sums = {p.name: _checksum(p) for p in sorted(new.iterdir())}
        written = {**record, "steps": _list_steps(state), "checksums": sums}
        write_json(new / RECORD, {**written, RECORD_CHECKSUM: checksum_record(written)})
        sync_folder(new)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, old)
        os.rename(new, folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)

    world.run_on_main(prepare)
    writer = dcp.HuggingFaceStorageWriter(str(new), save_distributed=True)
    dcp.save(_list_tensors(state), storage_writer=writer)
    world.run_on_main(swap)


def load_shards(state: TrainState, folder: Path, world: World) -> dict[str, Any]:
    """Read a state into this one, whatever the number of processes that wrote it; return its record.

    Raises:
        ModelError: it is missing or damaged; nothing is changed.
    """

    def check() -> tuple[Path, dict[str, Any]]:
        path = folder if folder.exists() else folder.with_name(f"{folder.name}.old")
        record = read_record(path)
        for name, checksum in record.pop("checksums", {}).items():
            if not (path / name).is_file() or _checksum(path / name) != checksum:
                raise refuse(path / name, "is missing or damaged", path)
        return path, record

    path, record = world.run_on_main(check)
    steps = record.pop("steps")
    for name, parameter in state.model.named_parameters():
        if name in steps:
            entry = state.optimizer.state[parameter]
            entry["step"] = torch.tensor(float(steps[name]))
            entry.update({key: torch.zeros_like(parameter) for key in MOMENTS})
    dcp.load(_list_tensors(state), storage_reader=dcp.HuggingFaceStorageReader(str(path)))
    return record


def _list_tensors(state: TrainState) -> dict[str, Tensor]:
    """Return the tensors of a state, which share its memory."""
    tensors = {f"model.{k}": v.detach() for k, v in state.model.state_dict().items()}
    if state.ema is not None:
        tensors |= {f"ema.{k}": v for k, v in state.ema.values.items()}
    for name, parameter in state.model.named_parameters():
        if parameter in state.optimizer.state:
            entry = state.optimizer.state[parameter]
            tensors |= {f"{key}.{name}": entry[key].detach() for key in MOMENTS}
    return tensors


def _list_steps(state: TrainState) -> dict[str, int]:
    """Return the steps of each parameter that has taken any."""
    named, moments = state.model.named_parameters(), state.optimizer.state
    return {name: int(moments[p]["step"]) for name, p in named if p in moments}


def _checksum(path: Path) -> str:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            checksum = zlib.crc32(chunk, checksum)
    return f"{checksum:08x}"

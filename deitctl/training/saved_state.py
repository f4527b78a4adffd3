"""What a saved state must be before any of it is used.

Its files may be damaged, of two different saves, or somebody else's: the optimizer works in native
code, which takes moments of other shapes for the memory behind them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deitctl.errors import ModelError
from deitctl.models.checkpoint_io import (
    CHECKSUM,
    WEIGHTS,
    load_tensors,
    read_metadata,
    require_finite,
)
from deitctl.paths import read_json
from deitctl.records import SCHEMA_VERSION

if TYPE_CHECKING:
    from deitctl.training.state import Progress

RECORD = "state.json"
RECORD_CHECKSUM = "crc32"
"""Key in state.json of its own checksum."""
SHARDED = "is_sharded"
"""Key in state.json of a state whose processes wrote a part each."""
MODEL, EMA, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
PROJECTOR = "projector.safetensors"
FILES = (MODEL, EMA, PROJECTOR, OPTIMIZER, RECORD)
"""Names of a state's files."""
SHARDS = "shard-*.safetensors"
"""Names of those of a state whose processes wrote a part each."""
MAX_RECORD_BYTES = 1 << 30
"""Of state.json, which names every image that could not be read."""
MAX_NUMBER = 1e15
"""Steps, images, bytes, seconds: a century of training has fewer."""
MAX_SCALE = 2.0**127
"""Of the loss scale, which is fp32."""
SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
Expected = Mapping[str, tuple[torch.Size, torch.dtype]]
"""Shape and type of each tensor of a file, by name."""


def read_record(folder: Path) -> dict[str, Any]:
    """Return the contents of a state's state.json, whose checksum is right if it has one.

    Raises:
        ModelError: it is missing, damaged, no JSON object, or of another version.
    """
    path = folder / RECORD
    try:
        record = read_json(path, MAX_RECORD_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise refuse(folder, f"holds no readable training state: {RECORD}: {reason}") from error
    if not isinstance(record, dict):
        raise refuse(folder, f"holds no readable training state: {RECORD} is no JSON object")
    if record.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise ModelError(f"{folder} was written by another version of deitctl.")
    # An older deitctl wrote none.
    if RECORD_CHECKSUM in record and record.pop(RECORD_CHECKSUM) != checksum_record(record):
        raise refuse(path, "is damaged: its checksum does not match", folder)
    return record


def add_checksums(record: Mapping[str, Any], checksums: Mapping[str, str]) -> dict[str, Any]:
    """Return the contents of state.json: the record, the checksums of the other files, its own."""
    # As it will be read.
    written = json.loads(json.dumps({**record, "checksums": checksums}))
    return {**written, RECORD_CHECKSUM: checksum_record(written)}


def checksum_record(record: Mapping[str, Any]) -> str:
    """Return the CRC-32 of JSON values, in hexadecimal, whatever their order and spacing."""
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def refuse(path: Path, reason: str, folder: Path | None = None) -> ModelError:
    """Return the error for a state that is not used, with the way on from there.

    Args:
        path: what is refused.
        reason: what is wrong with it, as the end of a sentence.
        folder: of the state, if `path` is a file in it.
    """
    return ModelError(f"{path} {reason}.", suggest_way_on(folder or path))


def suggest_way_on(folder: Path) -> str:
    """Return what can be done where the state in `folder` cannot be used."""
    earlier = folder.with_name(f"{folder.name}.old")
    if folder.exists() and (earlier / RECORD).is_file():
        return f"Delete {folder} to go on from the checkpoint before it, {earlier}."
    if (folder.parent / WEIGHTS).is_file():
        return f"Restore it from a copy, or start a new run from the best weights, {folder.parent}."
    return f"Restore it from a copy, or delete {folder} to start again."


def require_numbers(progress: Progress, sums: Any, scaler: Any) -> None:
    """Raise `ValueError` if a value of state.json is not of the type, or not in the range, of what
    `TrainState.snapshot` writes, or contradicts another."""
    for name, default in asdict(type(progress)()).items():
        value = getattr(progress, name)
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{name} is {_quote(value)}")
        least = -MAX_NUMBER if isinstance(default, float) else 0
        # NaN is in no range.
        if isinstance(value, int | float) and not least <= value <= MAX_NUMBER:
            raise ValueError(f"{name} is {_quote(value)}")
    if not all(isinstance(reason, str) for reason in progress.unreadable.values()):
        raise ValueError("unreadable holds a reason that is no text")
    if not isinstance(sums, dict) or not all(_is_number(value) for value in sums.values()):
        raise ValueError("loss_sums holds a value that is no number")
    p = progress
    consistent = {
        "seconds": p.seconds >= 0,
        "best_score": p.best_score <= 100,  # percent, or a loss with a minus
        # The best epoch may be one to come, see `best_weights.adopt_ahead`.
        "improved_epoch": p.improved_epoch <= p.epoch,
        "best_weights": p.best_weights in ("model", "ema"),
        "epoch": p.epoch <= p.step,
        "images_in_epoch": p.images_in_epoch <= p.images_seen,
        "micro_batch_size": p.micro_batch_size % 2 == 0,
    }
    for name, holds in consistent.items():
        if not holds:
            raise ValueError(f"{name} is {_quote(getattr(p, name))}")
    # An epoch's losses are their sums divided by its images.
    if bool(p.images_in_epoch) != bool(sums) or (sums and "loss" not in sums):
        raise ValueError("loss_sums does not go with images_in_epoch")
    if not _is_scaler(scaler):
        raise ValueError(f"scaler is {_quote(scaler)}")


def _is_number(value: Any) -> bool:
    # Compared, not tested by isfinite(): an integer may be too large for a float.
    return isinstance(value, int | float) and abs(value) <= MAX_NUMBER


def _is_scaler(scaler: Any) -> bool:
    """Return whether values are those of a `torch.amp.GradScaler`; empty for one that is not used."""
    if scaler == {}:
        return True
    if not isinstance(scaler, dict) or scaler.keys() != set(SCALER):
        return False
    scale, growth, backoff, interval, tracker = (scaler[name] for name in SCALER)
    are_numbers = all(isinstance(value, int | float) for value in scaler.values())
    are_integers = isinstance(interval, int) and isinstance(tracker, int)
    return (
        (are_numbers and are_integers)
        and (0 < scale <= MAX_SCALE and 1 < growth <= MAX_NUMBER and 0 < backoff < 1)
        and (0 < interval <= MAX_NUMBER and 0 <= tracker <= interval)
    )


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def read_file(folder: Path, name: str, checksums: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Return the finite tensors of a state's file.

    Args:
        folder: of the state.
        name: of the file.
        checksums: what state.json says of its files; None if an older deitctl wrote it.

    Raises:
        ModelError: the file is missing or damaged, or of another save than state.json.
    """
    path = folder / name
    try:
        tensors = load_tensors(path)
        require_finite(tensors, str(path))
    except ModelError as error:
        raise ModelError(error.message, suggest_way_on(folder)) from error
    if checksums is not None and checksums.get(name) != read_metadata(path).get(CHECKSUM):
        reason = (
            f"is of another save than {RECORD}, as in a copy of a folder that was being written"
        )
        raise refuse(path, reason, folder)
    return tensors


def require_tensors(path: Path, tensors: Mapping[str, Tensor], expected: Expected) -> None:
    """Raise `ModelError` unless a file has exactly the tensors that are expected."""
    unfit = "does not fit the run's model: it {} {!r:.100}"
    for name in expected:
        if name not in tensors:
            raise refuse(path, unfit.format("lacks", name), path.parent)
    for name, value in tensors.items():
        if name not in expected:
            raise refuse(path, unfit.format("has the unknown", name), path.parent)
        shape, dtype = expected[name]
        if value.shape != shape or value.dtype is not dtype:
            reason = (
                f"does not fit the run's model: {name!r} is {_describe(value.shape, value.dtype)}, "
                f"not {_describe(shape, dtype)}"
            )
            raise refuse(path, reason, path.parent)


def _describe(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def list_tensors(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and type of each tensor."""
    return {name: (value.shape, value.dtype) for name, value in tensors.items()}

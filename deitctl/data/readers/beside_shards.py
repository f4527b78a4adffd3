"""Small files beside shards: what `_info.json` and lists of classes have of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deitctl.data.stores.address import is_remote, join_address
from deitctl.data.stores.listing import describe_file
from deitctl.data.stores.stored_file import open_stored
from deitctl.errors import DataError

MAX_INFO_BYTES = 64 * 2**20
INFO_FILES = ("_info.json", "info.json")
"""Of timm's shards: splits, numbers of samples, names of classes."""
CLASS_FILES = ("classes.txt", "classnames.txt", "class_names.txt")
"""Beside shards: the name of each class in a line."""


def read_info(folder: Path | str, named: str = "") -> dict[str, Any]:
    """Return the content of `_info.json` beside shards; empty where there is none."""
    for name in INFO_FILES:
        data = _read_beside(folder, name, named)
        if data is None:
            continue
        try:
            info = json.loads(data)
            splits = info.get("splits", {})
            if all(isinstance(split, dict) for split in splits.values()):
                return dict(info)
        except (ValueError, AttributeError, RecursionError):
            continue  # another program's
    return {}


def read_classes(folder: Path | str, named: str = "") -> tuple[str, ...]:
    """Return the names of a list of classes beside shards; empty where there is none."""
    for name in CLASS_FILES:
        data = _read_beside(folder, name, named)
        if data is not None:
            lines = [line.strip() for line in data.decode("utf-8-sig", "replace").splitlines()]
            while lines and not lines[-1]:
                lines.pop()
            if not all(lines):
                raise DataError(
                    f"{join_address(str(folder), name)} has no name in line {lines.index('') + 1}.",
                    "It has the name of a class in each line, in the order of the labels.",
                )
            if lines:
                return tuple(lines)
    return ()


def _read_beside(folder: Path | str, name: str, named: str) -> bytes | None:
    """Return a small file beside shards that the user named, None where there is none."""
    place = str(folder)
    if not is_remote(place):
        path = Path(place) / name
        if not path.is_file() or path.stat().st_size > MAX_INFO_BYTES:
            return None
        return path.read_bytes()
    try:
        return read_small(join_address(place, name), named)
    except (OSError, DataError):
        return None


def read_small(address: str, named: str) -> bytes | None:
    """Return the content of a file in a store, None if it is no small one; raise `OSError` and `DataError`."""
    file = open_stored(address, describe_file(address, named).identity)
    return file.read(0, file.size) if file.size <= MAX_INFO_BYTES else None

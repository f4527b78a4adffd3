"""Shards whose bytes are not those that the `_info.json` of `pack` beside them records: SHA-256 and size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deitctl.data.readers.packed_shards import INFO
from deitctl.data.shard_files import ShardFiles
from deitctl.data.stores.address import get_name, is_remote, redact
from deitctl.errors import DataError
from deitctl.events import Reporter, track
from deitctl.home import expand_home
from deitctl.paths import read_json


def find_changed_shards(data: str, reporter: Reporter) -> list[str]:
    """Return the names of shards that are missing, or whose SHA-256 is not the recorded one.

    Args:
        data: a folder that `pack` wrote, a part of it, or one of its files; of others there are none.
        reporter: shows progress.
    """
    digests = _read_digests(data)
    changed = list[str]()
    place = expand_home(data)
    for path, digest in track(digests.items(), reporter, "verify", len(digests), "shards"):
        name = str(place / path.relative_to(os.path.abspath(place)))
        try:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    changed.append(name)
        except OSError as error:
            changed.append(f"{name}: {error.strerror}")
    return changed


def _read_digests(data: str) -> dict[Path, str]:
    """Return the SHA-256 of each shard that is the data, or lies in it, as a manifest records them."""
    if is_remote(data):
        return {}
    path = Path(os.path.abspath(expand_home(data)))
    if not path.exists():
        return {}
    # Parquet files lie in a folder `data` beside it.
    for folder in (path, path.parent, path.parent.parent):
        try:
            shards = read_json(folder / INFO)["shards"]
            digests = {
                Path(os.path.abspath(folder / shard["name"])): str(shard["sha256"])
                for shard in shards
            }
        except (OSError, ValueError, TypeError, LookupError):
            continue  # none, or timm's own
        # A name that leads elsewhere is not of this data.
        return {file: digest for file, digest in digests.items() if file.is_relative_to(path)}
    return {}


def require_sizes(info: Mapping[str, Any], files: ShardFiles) -> None:
    """Raise `DataError` if a shard has another size than is recorded.

    Args:
        info: content of `_info.json` beside the shards.
        files: the shards.
    """
    shards = info.get("shards")
    recorded = {
        str(shard.get("name")): shard.get("bytes")
        for shard in (shards if isinstance(shards, list) else ())
        if isinstance(shard, dict)
    }
    for number, path in enumerate(files.paths):
        size, expected = files.size(number), recorded.get(get_name(path))
        if isinstance(expected, int) and size != expected:
            raise DataError(
                f"{redact(path)} has {size:,} bytes, and {INFO} beside it says {expected:,}.",
                "Copy the folder again, or pack the data again.",
            )

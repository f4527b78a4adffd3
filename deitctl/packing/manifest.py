"""`_info.json` of packed shards: what timm's reader wants to know, class names, and checksums."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

from deitctl.data.layout import is_junk
from deitctl.data.readers.packed_shards import INDEX, INFO
from deitctl.packing.samples import SampleSource
from deitctl.paths import read_json, write_json

UNSPLIT = "all"
"""What the shards of data without splits are called."""

CARD = "README.md"
CARDS = {
    files: f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {files}\n---\n"
    for files in (f"{UNSPLIT}-*.tar", "data/data-*.parquet")
}
"""By the files of unsplit data, what `datasets` is to read: else it may take `_info.json` for the data."""


@dataclass
class Shard:
    """A file of images that was written."""

    name: str
    """Below the folder."""
    num_samples: int = 0
    bytes: int = 0
    sha256: str = ""


def write_info(folder: Path, splits: Mapping[str, Sequence[Shard]], source: SampleSource) -> None:
    """Write `_info.json`, and beside unsplit data what `datasets` wants to know.

    Args:
        folder: of the shards.
        splits: the shards of each.
        source: what was packed.
    """
    info: dict[str, Any] = {
        "splits": {
            name: {
                "name": name,
                "filenames": [shard.name for shard in shards],
                "shard_lengths": [shard.num_samples for shard in shards],
                "num_samples": sum(shard.num_samples for shard in shards),
                # timm reads the key of `.json` that this names; without it, `.cls`
                **({"alt_label": "labels"} if source.is_multilabel else {}),
            }
            for name, shards in splits.items()
        },
        "class_names": source.class_names,
        "value_range": source.value_range,
        "shards": [asdict(shard) for shards in splits.values() for shard in shards],
    }
    write_json(folder / INFO, info)
    for files, card in CARDS.items():
        if all(fnmatch(shard["name"], files) for shard in info["shards"]):
            (folder / CARD).write_text(card)


def list_foreign_files(folder: Path) -> list[str] | None:
    """Return the files of a folder that `pack` wrote that are not its own, without those that systems leave.

    Returns:
        Their names below the folder; None if its `_info.json` is not one of `pack`.
    """
    try:
        names = {shard["name"] for shard in read_json(folder / INFO)["shards"]}
        files = {
            str(path.relative_to(folder).as_posix())
            for path in folder.rglob("*")
            if (path.is_symlink() or not path.is_dir()) and not is_junk(path.name)
        }
    except (OSError, ValueError, TypeError, LookupError):
        return None
    own = {INFO, INDEX, CARD} if _read_card(folder) in CARDS.values() else {INFO, INDEX}
    return sorted(files - names - own)


def _read_card(folder: Path) -> str:
    """Return the start of the card beside shards, more than `pack` writes; empty if there is none."""
    try:
        with (folder / CARD).open(encoding="utf-8") as file:
            return file.read(1000)
    except (OSError, ValueError):
        return ""


def flush(file: BinaryIO) -> None:
    """Have a file's bytes on the disk before its folder is renamed."""
    file.flush()
    os.fsync(file.fileno())

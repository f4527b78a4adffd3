"""Shards that `deitctl pack` wrote: WebDataset tars with `_info.json` and an index beside them.

The index names every image, with its label, its place in a shard, a checksum of its sample (label and
name included), and a digest of its source. It holds as long as the shards have the sizes it records, on
any machine; a sample that was changed is noticed when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deitctl.data.arrays import UNREADABLE, StoredBytes, encode_block, read_block
from deitctl.data.index import Listing, decode_listings, encode_listings, list_dtypes
from deitctl.data.layout import is_junk, name_some
from deitctl.data.readers.tar_dataset import TarDataset, build_tar_dataset
from deitctl.data.shard_files import ShardFiles, open_shards
from deitctl.data.splits import SPLITS
from deitctl.data.stores.address import is_remote, join_address, redact
from deitctl.data.stores.listing import describe_file
from deitctl.data.stores.stored_file import open_stored
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.models.model_config import ValueRange, read_value_range
from deitctl.paths import read_json

INDEX = "index.deitctl"
INFO = "_info.json"
MAGIC = b"deitctl shards 1\n"
Shards = Mapping[str, Sequence[tuple[str, int]]]
"""Name and size in bytes of each shard, by split."""


def is_packed(folder: Path) -> bool:
    """Whether a folder has the index of `pack`, of any version."""
    return (folder / INDEX).is_file()


def open_packed(folder: Path | str, reporter: Reporter | None = None) -> dict[str, TarDataset]:
    """Open the `train`, `val` and `test` split of shards that `pack` wrote, or all of them under "".

    Args:
        folder: a path, or an address in a store.
        reporter: is warned of what was changed in a folder on a disk and is not read.

    Raises:
        FileNotFoundError: there is no index.
        DataError: the index is damaged or of another version, or a shard is missing or of another size.
    """
    place = str(folder) if is_remote(str(folder)) else os.path.abspath(folder)
    path = join_address(place, INDEX)
    # The tars may be damaged as well, and nothing but the index has a checksum of each image.
    again = f"Copy the folder again, or delete {INDEX} in it and run `deitctl check` on its tars."
    try:
        is_away = is_remote(path)  # a message names what the user has named
        identity = describe_file(path, place).identity if is_away else None
        file = StoredBytes(open_stored(path, identity))
        if file.read_array(0, "|u1", (len(MAGIC),)).tobytes() != MAGIC:
            raise ValueError("it is of another version of deitctl")
        header, arrays = read_block(file, len(MAGIC), list_dtypes)
        listings = decode_listings(header, arrays)
        shards = {name: [(str(s), int(n)) for s, n in header["shards"][name]] for name in listings}
        _require_valid(listings, shards)
        value_range, is_rgb = read_value_range(header["value_range"]), bool(header["is_rgb"])
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{redact(path)} cannot be used: {why}.", again) from error
    datasets = {
        name: build_tar_dataset(
            _find_shards(place, shards[name]), listing, value_range, is_rgb=is_rgb
        )
        for name, listing in listings.items()
    }
    if reporter is not None and not is_away:
        _warn_of_changes(Path(place), listings, shards, reporter)
    return datasets


def _warn_of_changes(
    folder: Path, listings: Mapping[str, Listing], shards: Shards, reporter: Reporter
) -> None:
    """Warn of tars and class names that were changed after packing: what the index has is read."""
    listed = {shard for part in shards.values() for shard, _ in part}
    tars = {path.name for path in folder.glob("*.tar") if not is_junk(path.name)}
    if added := sorted(tars - listed):
        reporter.warn(
            f"{folder} holds {name_some(added)}, which {INDEX} does not list, and which is not read: "
            "pack all of the data again."
        )
    try:
        names = read_json(folder / INFO)["class_names"]
    except (OSError, ValueError, TypeError, LookupError):  # other libraries read it
        return
    if names != list(dict.fromkeys(n for part in listings.values() for n in part.class_names)):
        reporter.warn(
            f"{folder / INFO} has other class names than {INDEX}, which are read: "
            "to rename classes, rename them in the data and pack it again."
        )


def _require_valid(listings: Mapping[str, Listing], shards: Shards) -> None:
    """Raise `ValueError` if an index contradicts itself or points outside of its shards."""
    if not listings or (set(listings) != {""} and not set(listings) <= set(SPLITS)):
        raise ValueError("it has no splits")
    for name, listing in listings.items():
        spans, sizes = listing.spans, np.array([size for _, size in shards[name]], np.int64)
        if not len(listing.labels) or spans is None or spans.leads is None or spans.crc32s is None:
            raise ValueError("its arrays are inconsistent")
        if len(set(listing.class_names)) != len(listing.class_names):
            raise ValueError("it has two classes with the same name")
        # A name that leads elsewhere would be opened there.
        if any(
            Path(shard).name != shard or Path(shard).suffix != ".tar" for shard, _ in shards[name]
        ):
            raise ValueError("a shard is not in its folder")
        if spans.shards.max() >= len(sizes) or (spans.leads > spans.offsets).any():
            raise ValueError("an image lies outside of its shards")
        # Written so that sums of huge offsets cannot overflow.
        if (spans.sizes > sizes[spans.shards] - spans.offsets).any():
            raise ValueError("an image lies outside of its shard")


def _find_shards(place: str, shards: Sequence[tuple[str, int]]) -> ShardFiles:
    again = "Copy the folder again, or pack the data again."
    try:
        files = open_shards([join_address(place, name) for name, _ in shards])
    except DataError as error:
        raise DataError(error.message, again) from error
    for number, (_, size) in enumerate(shards):
        if files.size(number) != size:
            raise DataError(
                f"{files.name(number)} has {files.size(number):,} bytes, and had {size:,} when it was packed.",
                again,
            )
    return files


def write_index(
    file: BinaryIO,
    listings: Mapping[str, Listing],
    shards: Shards,
    *,
    value_range: ValueRange | None,
    is_rgb: bool,
) -> None:
    """Write the index of shards.

    Args:
        file: empty, open for writing.
        listings: the images of each split, with their spans.
        shards: of each split, that the spans count.
        value_range: by which images of more than 8 bits were scaled, or are to be.
        is_rgb: whether images were encoded anew, as RGB.
    """
    splits, arrays = encode_listings(listings)
    header: dict[str, Any] = {
        "splits": splits,
        "shards": shards,
        "value_range": value_range,
        "is_rgb": is_rgb,
    }
    file.write(MAGIC)
    for piece in encode_block(header, arrays, len(MAGIC)):
        file.write(piece)

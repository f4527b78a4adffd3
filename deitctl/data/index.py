"""The index of a dataset's files: a saved scan, so that the next start lists nothing.

An index is one file: a magic line and a block of arrays (`arrays.encode_block`). It records the
state of every directory that the scan entered; adding, removing or renaming a file changes its
directory, and makes the index stale. So does a change of a file that was looked into and is no
image. Whatever an index holds is validated; one that is stale or damaged is written anew.

Letters: N images.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import UNREADABLE, StoredBytes, StringArray, encode_block, read_block
from deitctl.data.dataset import Labels
from deitctl.data.file_types import get_extensions
from deitctl.data.open_file import OpenFile
from deitctl.data.shard_files import Spans
from deitctl.errors import DataChanged, DeitctlError
from deitctl.events import Reporter
from deitctl.home import choose_cache_path
from deitctl.paths import write_bytes

MIN_IMAGES = 10_000
"""Below this no index is written: listing takes a tenth of a second."""
MIN_AGE_NS = 2_000_000_000
"""How long every directory must have been unchanged before a scan. A change within one tick of the
file system's clock leaves no trace in its times; the coarsest clock, FAT's, ticks every two
seconds."""
MAGIC = b"deitctl index 8\n"
MISSING = (0, 0, 0, 0, 0)
"""State of a directory that does not exist."""
DTYPES = {
    **{"blob": "|u1", "ends": "<i8", "labels": "<i8", "label_bits": "|u1"},
    **{"shards": "<i4", "offsets": "<i8", "sizes": "<i8", "crc32s": "<u4", "digests": "<u8"},
    "leads": "<u4",
}
"""Of the arrays of a listing. It has `labels` of one label an image, or `label_bits` of several: eight
classes a byte, [N, K/8]; those from `shards` on, of images in shards, see `Spans`."""


@dataclass(frozen=True)
class Listing:
    """The images of one split, by name relative to the dataset's root."""

    names: StringArray
    labels: Labels
    """Index into `class_names`, [N]; of several labels an image, in shards, multi-hot, bool [N,K]."""
    class_names: tuple[str, ...]
    """Includes classes without an image."""
    spans: Spans | None = None
    """Where each image lies in shards; None: in a file of its own."""
    unread: dict[str, int] = field(default_factory=dict)
    """Files that were passed over, by lower-case extension, those without one by what they are if they
    show something; "" and extensions that are read: images beside the class folders."""
    layout: str = ""
    """What was decided about the layout of a tar, in a sentence."""


class ScanState:
    """The directories that a scan enters, each in the state before it was listed."""

    def __init__(self, root: Path) -> None:
        self.root, self.started = os.path.realpath(root), time.time_ns()
        self.states: dict[str, tuple[int, ...]] = {}
        self.complete = True
        """Set to False by a scan that could not enter a directory."""

    def add(self, path: str) -> None:
        """Record the state of a directory, of a link's target, or of a file that is no image yet.

        Args:
            path: relative to the root, "" for the root itself; or absolute.
        """
        self.states[path] = read_state(os.path.join(self.root, path) if path else self.root)

    def is_settled(self) -> bool:
        """Whether the scan was complete and every directory `MIN_AGE_NS` old or older."""
        times = [when for state in self.states.values() if state[-1] for when in state[:2]]
        # As git's "racily clean" entries. min > 0: some object stores mounted as folders have no
        # times.
        oldest, latest = min(times, default=1), max(times, default=1)
        return self.complete and oldest > 0 and latest < self.started - MIN_AGE_NS


def read_state(path: str) -> tuple[int, ...]:
    """Return what changes with a directory's content.

    These are mtime, ctime, inode, size, and 1 if it exists.
    """
    try:
        status = os.stat(path)
    except OSError:
        return MISSING
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size, 1


def get_index_path(root: Path, files: Sequence[str] = ()) -> Path:
    """Return the file for the index of a folder or tar, or of some files in a folder or a store."""
    # realpath: one index, by whichever link or relative path the data is named.
    digest = hashlib.sha256(os.fsencode(os.path.realpath(root)))
    for file in files:
        digest.update(os.fsencode(f"\0{file}"))
    return choose_cache_path(f"indexes/{digest.hexdigest()[:32]}.index")


def load_or_scan(
    root: Path,
    scan: Callable[[ScanState], dict[str, Listing]],
    reporter: Reporter,
    files: Sequence[str] = (),
) -> dict[str, Listing]:
    """Return the splits of a folder or tar from its index.

    Without a valid one, scan it and save the index.

    Args:
        root: the folder or tar.
        scan: lists it, and records the state of what the index relies on.
        reporter: receives a note if the index cannot be saved.
        files: names of the files that are read, where they are not all that is in the folder; those in a
            store with what tells them from others of the same name.
    """
    splits = load_index(root, files)
    if splits is None:
        state = ScanState(root)
        splits = scan(state)
        save_index(splits, state, reporter, files)
        splits = load_index(root, files) or splits  # spawned workers then read it from the file
    return splits


def save_index(
    splits: Mapping[str, Listing],
    state: ScanState,
    reporter: Reporter,
    files: Sequence[str] = (),
) -> None:
    """Write the index of a large, settled dataset; a cache that cannot be written is no error."""
    # An index of an unsettled folder could miss a change for ever; the next start writes one.
    if sum(len(s.labels) for s in splits.values()) < MIN_IMAGES or not state.is_settled():
        return
    listings, arrays = encode_listings(splits)
    header = {
        "root": state.root,
        "files": list(files),
        "directories": state.states,
        "extensions": sorted(get_extensions()),
        "splits": listings,
    }
    path = get_index_path(Path(state.root), files)
    try:
        write_bytes(path, b"".join([MAGIC, *encode_block(header, arrays, len(MAGIC))]))
    except DeitctlError as error:
        reporter.note(
            f"The list of images was not saved; the next start lists them again. {error.message}"
        )


def load_index(root: Path, files: Sequence[str] = ()) -> dict[str, Listing] | None:
    """Return the splits of a folder or tar, read from its index.

    Returns None if there is no valid, current index.

    Reads the state of each directory, and lists none.
    """
    try:
        file = StoredBytes(OpenFile(str(get_index_path(root, files))))
        if file.read_array(0, "|u1", (len(MAGIC),)).tobytes() != MAGIC:
            return None
        header, arrays = read_block(file, len(MAGIC), list_dtypes)
        # The root again: the cache may have been copied from another machine.
        if header["root"] != os.path.realpath(root) or header["files"] != list(files):
            return None
        if not _is_current(header):
            return None
        return decode_listings(header, arrays)
    except (*UNREADABLE, DataChanged):  # absent, truncated, not an index, or being written
        return None


def _is_current(header: Mapping[str, Any]) -> bool:
    """Whether every directory is in its recorded state, and the same files would be read."""
    if header["extensions"] != sorted(get_extensions()):  # a decoder was installed or removed
        return False
    root, directories = header["root"], header["directories"]
    return bool(directories or header["files"]) and all(
        read_state(os.path.join(root, path) if path else root) == tuple(state)
        for path, state in directories.items()
    )


def encode_listings(
    splits: Mapping[str, Listing],
) -> tuple[dict[str, Any], list[tuple[str, NDArray[Any]]]]:
    """Return what `encode_block` writes of listings: the value of `splits` in the header, and arrays."""
    header, arrays = dict[str, Any](), list[tuple[str, NDArray[Any]]]()
    for name, listing in splits.items():
        columns = _list_columns(listing)
        arrays += [(DTYPES[column], values) for column, values in columns.items()]
        header[name] = {
            "class_names": listing.class_names,
            "unread": listing.unread,
            "layout": listing.layout,
            "columns": list(columns),
        }
    return header, arrays


def _list_columns(listing: Listing) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any] | None] = {
        "blob": listing.names.blob,
        "ends": listing.names.ends,
    }
    if listing.labels.ndim == 2:
        columns["label_bits"] = np.packbits(listing.labels, axis=1)
    else:
        columns["labels"] = listing.labels
    if spans := listing.spans:
        columns |= vars(spans)
    return {name: values for name, values in columns.items() if values is not None}


def list_dtypes(header: Mapping[str, Any]) -> list[str]:
    """Return the dtype of each array behind a header with `encode_listings`' splits."""
    return [DTYPES[column] for split in header["splits"].values() for column in split["columns"]]


def decode_listings(
    header: Mapping[str, Any], arrays: Sequence[NDArray[Any]]
) -> dict[str, Listing]:
    """Build the listings that `encode_listings` encoded.

    Raises:
        Exception: one of `UNREADABLE`, if they are inconsistent.
    """
    listings, rest = {}, iter(arrays)
    for name, split in header["splits"].items():
        columns = {column: next(rest) for column in split["columns"]}
        listings[name] = replace(
            _decode_listing(tuple(map(str, split["class_names"])), columns),
            unread={str(extension): int(count) for extension, count in split["unread"].items()},
            layout=str(split["layout"]),
        )
    return listings


def _decode_listing(class_names: tuple[str, ...], columns: dict[str, NDArray[Any]]) -> Listing:
    names = StringArray(columns.pop("blob"), columns.pop("ends"))
    count = len(names.ends) - 1
    if not names.is_valid():
        raise ValueError("its names are inconsistent")
    labels: Labels
    if "labels" in columns:
        labels = columns.pop("labels")
        # Negative labels would index from the end, silently.
        is_valid = labels.shape == (count,) and (
            labels.min(initial=0) >= 0 and labels.max(initial=-1) < len(class_names)
        )
    else:
        bits = columns.pop("label_bits")
        is_valid = bool(class_names) and bits.shape == (count, -(-len(class_names) // 8))
        labels = np.unpackbits(bits, axis=1, count=len(class_names)).astype(np.bool_)
    if not is_valid:
        raise ValueError("its labels are inconsistent")
    spans = Spans(**columns) if columns else None
    if spans and any(column.shape != (count,) for column in columns.values()):
        raise ValueError("its spans are inconsistent")
    if spans and min(spans.shards.min(initial=0), spans.offsets.min(initial=0)) < 0:
        raise ValueError("an image lies outside of its shards")
    if spans and spans.sizes.min(initial=0) < 0:
        raise ValueError("an image has less than no bytes")
    return Listing(names, labels, class_names, spans)

"""What a scan has found, kept so that the next start reads it instead, and known to be stale when anything has changed.

An index is one file: a line that says what it is, and a block of arrays (`columns.py`). It holds the state of every
directory that was entered; adding, removing or renaming anything changes the state of the directory it is in. Nothing
in it is believed before it is checked, and one that does not pass is made again.

Letters: D directories, N images.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitctl.data.array_block import UNREADABLE, block, read_block
from deitctl.data.mmap_array import MappedFile
from deitctl.data.string_array import StringArray
from deitctl.errors import DeitctlError
from deitctl.events import Reporter
from deitctl.paths import cache_root, write_bytes

FROM = 10_000
"""Images from which an index is worth its file: listing fewer takes a tenth of a second."""
SETTLED = 2_000_000_000
"""Nanoseconds a directory must have been at rest before a scan: a change within the same tick of the file system's clock
would leave no trace in its times. The coarsest clock, FAT's, ticks every two seconds."""
MAGIC = b"deitctl index 1\n"
STATE = 5  # numbers a directory's state
COLUMNS = {"blob": "|u1", "ends": "<i8", "labels": "<i8", "spans": "<i8"}


@dataclass(frozen=True)
class Listing:
    """The images of one part of a data set, by name relative to its root."""

    names: StringArray
    labels: NDArray[np.int64]
    """[N], index of `class_names`."""
    class_names: tuple[str, ...]
    """Also of classes without an image."""
    spans: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), np.int64))
    """Offset and length in bytes of each image in the tar it lies in, [N,2]; [0,2] for images in files."""


class Watched:
    """The directories that a scan enters, each in the state that it had before it was listed."""

    def __init__(self, root: Path) -> None:
        self.root, self.started = os.path.realpath(root), time.time_ns()
        self.states: dict[str, tuple[int, ...]] = {}
        self.complete = True
        """Set to False by a scan that could not look everywhere."""

    def add(self, path: str) -> None:
        """Note the state of a directory, or of what a link leads to; `path` is relative to the root, which is the empty one."""
        self.states[path] = state_of(os.path.join(self.root, path) if path else self.root)

    @property
    def settled(self) -> bool:
        """Whether everything was seen, every directory has a time of change, and none had changed just before."""
        times = [when for state in self.states.values() if state[-1] for when in state[:2]]
        return self.complete and min(times) > 0 and max(times) < self.started - SETTLED


def state_of(path: str) -> tuple[int, ...]:
    """Return what changes when a directory's content does: times of change, inode, size, and whether it is there."""
    try:
        status = os.stat(path)
    except OSError:
        return (0,) * STATE
    inode = status.st_ino & (1 << 63) - 1
    return status.st_mtime_ns, status.st_ctime_ns, inode, status.st_size, 1


def index_path(root: Path) -> Path:
    """Return where the index of a folder or tar is kept."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:32]
    return cache_root() / "indexes" / f"{name}.index"


def keep(parts: Mapping[str, Listing], watched: Watched, reporter: Reporter) -> None:
    """Write the index of a scan, if it is worth it and can be relied on; a cache that cannot be written is no error."""
    if sum(len(part.labels) for part in parts.values()) < FROM or not watched.settled:
        return
    directories = StringArray.of(watched.states)
    columns: list[tuple[str, NDArray[Any]]] = [
        ("|u1", directories.blob),
        ("<i8", directories.ends),
        ("<i8", np.array([*watched.states.values()], np.int64)),
    ]
    for part in parts.values():
        values = part.names.blob, part.names.ends, part.labels, part.spans
        columns += zip(COLUMNS.values(), values, strict=True)
    header = {
        "root": watched.root,
        "parts": {name: part.class_names for name, part in parts.items()},
    }
    path = index_path(Path(watched.root))
    try:
        write_bytes(path, b"".join([MAGIC, *block(header, columns, len(MAGIC))]))
    except DeitctlError as error:
        reporter.note(
            f"The list of images is not kept, the next start lists them again. {error.message}"
        )


def find(root: Path) -> dict[str, Listing] | None:
    """Return the parts that the index of a folder or tar holds, mapped from its file; None without a good one.

    It costs a look at each directory's state, and none into a directory.
    """
    try:
        file = MappedFile(index_path(root))
        if file.array(0, "|u1", (len(MAGIC),)).tobytes() != MAGIC:
            return None
        header, columns = read_block(file, len(MAGIC), _dtypes)
        if header["root"] != os.path.realpath(root) or not _fresh(header["root"], columns[:3]):
            return None
        return _parts(header["parts"], columns[3:])
    except UNREADABLE:
        return None  # none, cut short, of another version, or not an index


def _dtypes(header: Mapping[str, Any]) -> list[str]:
    return ["|u1", "<i8", "<i8", *list(COLUMNS.values()) * len(header["parts"])]


def _fresh(root: str, columns: Sequence[NDArray[Any]]) -> bool:
    """Say whether every directory is in the state that it was in."""
    paths, states = StringArray(columns[0], columns[1]), columns[2]
    if not paths.sound or states.shape != (len(paths), STATE):
        return False
    return len(paths) > 0 and all(
        state_of(os.path.join(root, path) if path else root) == tuple(state)
        for path, state in zip(paths, states.tolist(), strict=True)
    )


def _parts(
    classes: Mapping[str, Sequence[str]], columns: Sequence[NDArray[Any]]
) -> dict[str, Listing]:
    return {
        name: listing(class_names, columns[4 * number : 4 * number + 4])
        for number, (name, class_names) in enumerate(classes.items())
    }


def listing(class_names: Sequence[str], columns: Sequence[NDArray[Any]]) -> Listing:
    """Put the arrays of `COLUMNS` together; raise ValueError if they do not fit each other."""
    blob, ends, labels, spans = columns
    names = StringArray(blob, ends)
    fits = (
        names.sound and labels.shape == (len(names),) and spans.shape in ((0, 2), (len(names), 2))
    )
    if (
        not fits
        or min(labels.min(initial=0), spans.min(initial=0)) < 0
        or labels.max(initial=-1) >= len(class_names)
    ):
        raise ValueError("its arrays do not fit each other")
    return Listing(names, labels, tuple(map(str, class_names)), spans)

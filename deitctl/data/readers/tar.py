"""Reader of uncompressed tars of class folders.

From the tar's index where it is current, else from its headers.
"""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import StringArray
from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.decode import EXTENSIONS, require_bytes
from deitctl.data.index import Listing, ScanState, load_or_scan
from deitctl.data.layout import is_junk
from deitctl.data.open_file import OpenFile
from deitctl.data.reading import raise_read_error, read_patiently
from deitctl.data.splits import find_splits
from deitctl.errors import DataError
from deitctl.events import Reporter


@dataclass(frozen=True)
class TarDataset(ImageDataset):
    """Images inside an uncompressed tar, read in place by offset."""

    file: OpenFile
    members: Sequence[str]
    """A `StringArray` where there may be many."""
    spans: NDArray[np.int64]
    """Offset and size of each image in the tar, in bytes, [N,2]."""
    labels: Labels
    class_names: tuple[str, ...]

    def name(self, index: int) -> str:
        return f"{self.file.path}:{self.members[index]}"

    def relative_path(self, index: int) -> str:
        return self.members[index]

    def num_bytes(self, index: int) -> int:
        return int(self.spans[index, 1])

    def read_bytes(self, index: int) -> bytes:
        offset, size = self.spans[index].tolist()
        require_bytes(size, self.name(index))
        try:
            return read_patiently(lambda: self.file.read(offset, size), self.file.path)
        except OSError as error:
            raise_read_error(self.name(index), error)


def open_tar(path: Path, reporter: Reporter) -> dict[str, TarDataset]:
    """Open a tar's `train`, `val` and `test` split, or all of it under "".

    Raises:
        DataError: it is not a readable tar, or has no class folders with images.
    """

    def scan(state: ScanState) -> dict[str, Listing]:
        state.add("")
        return _scan(path, reporter)

    try:
        file = OpenFile(str(path))  # before it is scanned: offsets are those of this file
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return {
        name: TarDataset(file, split.names, split.spans, split.labels, split.class_names)
        for name, split in load_or_scan(path, scan, reporter).items()
    }


def _scan(path: Path, reporter: Reporter) -> dict[str, Listing]:
    spans = array("q")
    # NUL sorts before every character of a name, so sorted keys are in the order of a walk, folder
    # by folder.
    keys = [
        name.replace("/", "\0")
        for name in StringArray.from_strings(_list_members(path, spans, reporter))
    ]
    if not keys or min(key.count("\0") for key in keys) < 1:
        raise DataError(
            f"{path} has no class folders with images in it.",
            "Put the images of each class into a folder with its name, and pack those.",
        )
    order = sorted(range(len(keys)), key=keys.__getitem__)
    first, last = (keys[at].split("\0") for at in (order[0], order[-1]))
    depth = min(key.count("\0") for key in keys) + 1
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))))
    top = min(shared, depth - 2)  # folders that contain everything, such as `imagenet/`
    places = np.frombuffer(spans, np.int64).reshape(-1, 2)
    splits = find_splits({key.split("\0", top + 1)[top] for key in keys}, str(path))
    if not splits:
        return {"": _build_listing(keys, order, places, top)}
    return {
        split: _build_listing(keys, order, places, top + 1, name) for split, name in splits.items()
    }


def _list_members(path: Path, spans: array[int], reporter: Reporter) -> Iterator[str]:
    """Yield the names of a tar's images.

    Appends offset and size of each, in bytes, to `spans`.
    """
    try:
        with (
            reporter.task(f"scan {path.name}", None, "files") as task,
            # "r:" refuses compression: members of a compressed tar cannot be read by offset.
            tarfile.open(path, "r:") as archive,
        ):
            last = -1
            while (member := archive.next()) is not None:
                # tarfile keeps a kilobyte a member: 274 instead of 52 MiB for 200,000
                archive.members.clear()  # type: ignore[attr-defined]
                # A negative size leads back to an earlier header, and the loop would never end.
                if member.offset <= last or member.size < 0:
                    raise tarfile.ReadError("its members overlap")
                last = member.offset
                # Only a name: nothing is ever unpacked, so `..` leads nowhere.
                name = PurePosixPath(member.name.lstrip("/"))
                if (
                    member.isreg()
                    and not member.issparse()
                    and name.suffix.lower() in EXTENSIONS
                    and not any(map(is_junk, name.parts))
                ):
                    spans.extend((member.offset_data, member.size))
                    yield str(name)
                task.advance()
    except Exception as error:  # damaged tars raise RecursionError, MemoryError, ValueError, ...
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path} is not a readable, uncompressed tar: {why}.", "Unpack a .tar.gz first."
        ) from error


def _build_listing(
    keys: Sequence[str],
    order: Sequence[int],
    places: NDArray[np.int64],
    skip: int,
    split: str = "",
) -> Listing:
    """List a split's images, without its first `skip` folders.

    An image beside the class folders is left out.
    """
    chosen, labels = array("q"), array("q")
    classes: dict[str, int] = {}

    def iterate_names() -> Iterator[str]:
        for at in order:
            folders = keys[at].split("\0")
            if len(folders) > skip + 1 and (not split or folders[skip - 1] == split):
                chosen.append(at)
                labels.append(classes.setdefault(folders[skip], len(classes)))
                yield "/".join(folders[skip:])

    names = StringArray.from_strings(iterate_names())
    return Listing(
        names, np.array(labels, np.int64), tuple(classes), places[np.array(chosen, np.int64)]
    )

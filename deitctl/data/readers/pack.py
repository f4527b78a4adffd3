"""A data set in one file: its images, one behind the other, and an index that says where each lies.

A pack is a line that says what it is, eight bytes that say where the index begins, the images' bytes in the order of
their numbers, and the index: a block of arrays (`columns.py`) with the names, the labels, and of every image its
place and two checksums. A pass in order reads the file from end to end; an image anywhere costs one `pread` and no
`open`. Nothing in a pack is believed before it is checked.

Letters: N images.
"""

from __future__ import annotations

import os
import re
import weakref
import zlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.array_block import ALIGN, UNREADABLE, block, read_block
from deitctl.data.dataset import Labels
from deitctl.data.decode import LARGE, MAX_BYTES, MAX_SIDE, decode, max_pixels
from deitctl.data.index import COLUMNS, Listing, listing
from deitctl.data.lazy_jpeg import LazyJpeg, open_image
from deitctl.data.mmap_array import MappedFile, identity_of
from deitctl.data.string_array import StringArray
from deitctl.errors import DataError

SUFFIX = ".pack"
FAMILY = b"deitctl pack "
MAGIC = FAMILY + b"1\n"
START = ALIGN
"""Bytes before the first image: the line, the index's place, and nothing."""
CHECKS = {"checksums": "<u4", "digests": "<u8"}
PARTS = ({"train"}, {"val"}, {"train", "val"}, {""})
PPM = re.compile(rb"P6\n([1-9]\d{0,4}) ([1-9]\d{0,4})\n255\n")


class OpenFile:
    """A file that stays open, in this process and in those that it is sent to, where it must still be the same."""

    def __init__(self, path: str, identity: tuple[int, int, int]) -> None:
        """Raise OSError if it cannot be opened, and `DataError` if it is another one by now."""
        self.path, self.identity = path, identity
        self.handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._close = weakref.finalize(self, os.close, self.handle)
        if identity_of(os.fstat(self.handle)) != identity:
            raise DataError(f"{path} was replaced while it was in use.", "Run it again.")

    def __reduce__(self) -> Any:
        return OpenFile, (self.path, self.identity)

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from an offset on; processes and threads do not disturb each other.

        Raises:
            DataError: the file was written to since it was opened, so that its index may be another's.
        """
        if identity_of(os.fstat(self.handle)) != self.identity:
            raise DataError(f"{self.path} was changed while it was in use.", "Run it again.")
        if hasattr(os, "pread"):
            data = os.pread(self.handle, size, offset)
            while len(data) < size and (
                more := os.pread(self.handle, size - len(data), offset + len(data))
            ):
                data += more  # a network's file system may give less than it was asked for
            return data
        with open(self.path, "rb") as file:  # Windows
            file.seek(offset)
            return file.read(size)


@dataclass(frozen=True)
class PackSource:
    """Images in a pack."""

    file: OpenFile
    names: StringArray
    """What each was called where it was packed, below the name of the pack and of the part."""
    spans: NDArray[np.int64]
    """Offset and size of each in the pack, in bytes, [N,2]."""
    checksums: NDArray[np.uint32]
    """CRC-32 of each one's bytes here, [N]."""
    digests: NDArray[np.uint64]
    """Of each one's bytes where it was packed, [N], see `packing.digest_of`; 0 for what could not be read there."""
    labels: Labels
    class_names: tuple[str, ...]

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> Image.Image:
        data = self.raw(index)
        return _pixels(data) or decode(data, self.name(index))

    def open(self, index: int) -> LazyJpeg | Image.Image:
        data = self.raw(index)
        return _pixels(data) or open_image(data, self.name(index))

    def size(self, index: int) -> int:
        return int(self.spans[index, 1])

    def raw(self, index: int) -> bytes:
        offset, size = self.spans[index].tolist()
        if size > MAX_BYTES:
            raise DataError(f"{self.name(index)} has {size:,} bytes, more than {MAX_BYTES:,}.")
        try:
            data = self.file.read(offset, size)
        except OSError as error:
            raise DataError(f"{self.name(index)} cannot be read: {error.strerror}.") from error
        if zlib.crc32(data) != self.checksums[index]:
            raise DataError(
                f"{self.name(index)} is damaged: its bytes do not match their checksum.",
                "Pack it again.",
            )
        return data


def _pixels(data: bytes) -> Image.Image | None:
    """Return the image that a plain PPM holds, in a fifth of the time that decoding takes; None for all others."""
    header = PPM.match(data)
    if header is None:
        return None
    width, height = int(header[1]), int(header[2])
    small = width * height <= min(LARGE, max_pixels()) and max(width, height) <= MAX_SIDE
    if not small or len(data) != header.end() + 3 * width * height:
        return None
    return Image.fromarray(
        np.frombuffer(data, np.uint8, offset=header.end()).reshape(height, width, 3)
    )


def open_pack(path: Path) -> dict[str, PackSource]:
    """Return the `train` and `val` part of a pack, or its whole under the empty name.

    Raises:
        DataError: it is no pack, of another version, cut short or damaged.
    """
    if not path.exists():
        raise DataError(f"There is no {path}.", "`deitctl pack` writes one.")
    if not is_pack(path):
        raise DataError(f"{path} is not a pack.", "`deitctl pack` writes one.")
    try:
        with path.open("rb") as file:
            start = file.read(START)
        if not start.startswith(MAGIC):
            raise DataError(
                f"{path} is a pack of another version of deitctl.", "Pack the data again."
            )
        at = int.from_bytes(start[len(MAGIC) : len(MAGIC) + 8], "little")
        mapped = MappedFile(path, at)
        header, columns = read_block(
            mapped, at, lambda said: [*COLUMNS.values(), *CHECKS.values()] * len(said["parts"])
        )
        parts: dict[str, list[str]] = header["parts"]
        if set(parts) not in PARTS:
            raise ValueError("it has no parts")
        opened = OpenFile(mapped.path, mapped.identity)
        width = len(COLUMNS) + len(CHECKS)
        return {
            name: _source(
                opened,
                f"{path}:{name and name + '/'}",
                classes,
                columns[n * width : (n + 1) * width],
                at,
            )
            for n, (name, classes) in enumerate(parts.items())
        }
    except UNREADABLE as error:
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{path} is a damaged pack: {why}.", "Pack the data again.") from error


def _source(
    file: OpenFile, prefix: str, classes: list[str], columns: list[NDArray[Any]], end: int
) -> PackSource:
    """Check what an index says of a part against the file; raise ValueError if it cannot be."""
    found = listing(classes, columns[: len(COLUMNS)])
    checksums, digests = columns[len(COLUMNS) :]
    count, spans = len(found.names), found.spans
    if (
        not count
        or spans.shape != (count, 2)
        or checksums.shape != (count,)
        or digests.shape != (count,)
    ):
        raise ValueError("its arrays do not fit each other")
    if len(set(found.class_names)) != len(found.class_names):
        raise ValueError("it has two classes of one name")
    if spans[:, 0].min() < START or (spans[:, 1] > end - spans[:, 0]).any():
        raise ValueError("an image lies outside of it")
    return PackSource(
        file, found.names.below(prefix), spans, checksums, digests, found.labels, found.class_names
    )


def is_pack(path: Path) -> bool:
    """Say whether a file begins as a pack of any version does."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(FAMILY)) == FAMILY
    except OSError:
        return False


def write_pack(
    file: BinaryIO, parts: Mapping[str, Listing], images: Iterable[tuple[bytes, int]]
) -> int:
    """Write a pack, and return how many bytes it has.

    Args:
        file: empty, open to write.
        parts: names, labels and classes of each; they may have no spans.
        images: bytes and digest (see `PackSource.digests`) of every image, part by part; taken one by one.
    """
    ends, checksums, digests = array("q", [START]), array("I"), array("Q")
    file.write(bytes(START))
    for data, digest in images:
        file.write(data)
        ends.append(ends[-1] + len(data))
        checksums.append(zlib.crc32(data))
        digests.append(digest)
    offsets = np.frombuffer(ends, np.int64)
    spans = np.stack([offsets[:-1], np.diff(offsets)], axis=1)
    columns: list[tuple[str, NDArray[Any]]] = []
    bounds = np.cumsum([0, *(len(part.labels) for part in parts.values())]).tolist()
    for part, (first, last) in zip(parts.values(), pairwise(bounds), strict=True):
        here = slice(first, last)
        values = (
            part.names.blob,
            part.names.ends,
            part.labels,
            spans[here],
            np.frombuffer(checksums, np.uint32)[here],
            np.frombuffer(digests, np.uint64)[here],
        )
        columns += zip((*COLUMNS.values(), *CHECKS.values()), values, strict=True)
    at = ends[-1] + -ends[-1] % ALIGN
    file.write(bytes(at - ends[-1]))
    for piece in block(
        {"parts": {name: part.class_names for name, part in parts.items()}}, columns, at
    ):
        file.write(piece)
    size = file.tell()
    file.seek(0)
    file.write(MAGIC + at.to_bytes(8, "little"))
    return size

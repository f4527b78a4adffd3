"""Compact arrays for large datasets: strings, arrays from files, and their block format on disk.

Letters: N strings.
"""

from __future__ import annotations

import json
import os
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from deitctl.data.open_file import Identity, OpenFile, get_identity
from deitctl.data.stores.stored_file import StoredFile
from deitctl.errors import DataChanged

CHUNK = 4096
"""Strings that iteration decodes at a time."""
ALIGN = 64
"""Each array of a block begins at a multiple of this many bytes."""
READ_SIZE = 2**22
"""Bytes that are read at a time."""
MAX_BLOCK = 4 * 2**30
"""Bytes of a block: some 40 million images. A crafted file without content can claim any size."""
UNREADABLE = (
    *(OSError, ValueError, TypeError, AttributeError),
    *(LookupError, ArithmeticError, RecursionError),
)
"""What `read_block` raises on a file that is truncated, damaged or of another kind."""


@dataclass(frozen=True, eq=False)
class StringArray(Sequence[str]):
    """An immutable sequence of strings in two arrays.

    A tuple of strings takes three times the memory, and a forked worker that reads one increments
    its reference count, which makes the system copy the page: in the end every worker holds a tuple
    of its own.
    """

    blob: NDArray[np.uint8]
    """All strings end to end, in the file system's encoding, so that names that are not UTF-8
    survive."""
    ends: NDArray[np.int64]
    """End of each string in `blob`, [N+1]; the first entry is where the first string begins."""
    prefix: str = ""
    """Prepended to every string, stored once."""

    @classmethod
    def from_strings(cls, strings: Iterable[str]) -> StringArray:
        """Build from an iterable, which is consumed one string at a time."""
        blob, ends = bytearray(), array("q", [0])
        for string in strings:
            blob += os.fsencode(string)
            ends.append(len(blob))
        return cls(np.frombuffer(blob, np.uint8), np.frombuffer(ends, np.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...

    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        at = range(len(self))[place]  # resolves negative indices, raises IndexError outside
        return self.prefix + os.fsdecode(self.blob[self.ends[at] : self.ends[at + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), CHUNK):
            first, *ends = self.ends[start : start + CHUNK + 1].tolist()
            text = self.blob[first : ends[-1]].tobytes()
            for begin, end in pairwise([first, *ends]):
                yield self.prefix + os.fsdecode(text[begin - first : end - first])

    def with_prefix(self, prefix: str) -> StringArray:
        """Return a view of the same strings with another prefix."""
        return StringArray(self.blob, self.ends, prefix)

    def take(self, indices: Iterable[int]) -> StringArray:
        """Copy the strings at `indices`, in that order, prefix included."""
        return StringArray.from_strings(self[i] for i in indices)

    def is_valid(self) -> bool:
        """Whether `ends` is ascending and within `blob`; a damaged file's need not be."""
        ends = self.ends
        return (
            len(ends) > 0
            and ends[0] >= 0
            and ends[-1] <= len(self.blob)
            and bool((ends[1:] >= ends[:-1]).all())
        )


class ArrayLocation(NamedTuple):
    """Where an array lies in a file."""

    path: str
    identity: Identity
    """Of the file, so that a replaced one is not mistaken for it."""
    offset: int
    dtype: str
    shape: tuple[int, ...]


_by_content = ContextVar("_by_content", default=False)


@contextmanager
def pickling_by_content() -> Iterator[None]:
    """Pickle arrays for hosts that may not have the files that these were read from."""
    token = _by_content.set(True)
    try:
        yield
    finally:
        _by_content.reset(token)


class StoredArray(np.ndarray[Any, Any]):
    """An array that was read from a file, and pickles as its location there.

    A spawned worker process then reads the file instead of a pipe; a forked one shares the memory.

    Slices and results of arithmetic have no location and pickle by content, as do arrays whose file
    was replaced: a dataset that changes must not end a run.
    """

    location: ArrayLocation | None = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.location is not None and not _by_content.get() and _is_current(self.location):
            return load_array, (self.location,)
        return np.asarray(self).__reduce_ex__(protocol)


def _is_current(location: ArrayLocation) -> bool:
    try:
        return get_identity(os.stat(location.path)) == location.identity
    except OSError:
        return False


class StoredBytes:
    """The bytes of a file from an offset on, in memory.

    Copied, not mapped: touching a map of a file that was cut or replaced in place ends the process.
    """

    def __init__(self, file: StoredFile, start: int = 0) -> None:
        """Read a file from byte `start` on; arrays of one in a store pickle by content.

        Raises:
            OSError, ValueError: it cannot be read, or is truncated, or has more than `MAX_BLOCK` bytes
                there.
            DataChanged: it was changed since it was opened.
        """
        self.place = (
            (os.path.abspath(file.path), file.identity) if isinstance(file, OpenFile) else None
        )
        self.start, self.size = start, file.size
        if start >= self.size:
            raise ValueError("it is truncated")
        if self.size - start > MAX_BLOCK:
            raise ValueError(f"it has {self.size - start:,} bytes of arrays")
        self._bytes = _read_bytes(file, start, self.size - start)

    def read_array(self, offset: int, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the array at a byte offset in the file.

        Raises:
            ValueError: the array is not within what was read.
        """
        count = int(np.prod(shape, dtype=np.int64))
        values = np.frombuffer(self._bytes, dtype=dtype, count=count, offset=offset - self.start)
        stored = values.reshape(shape).view(StoredArray)
        if self.place is not None:
            stored.location = ArrayLocation(*self.place, offset, dtype, shape)
        return stored


def _read_bytes(file: StoredFile, offset: int, size: int) -> NDArray[np.uint8]:
    # An array, because torch warns of those that cannot be written, as `bytes` cannot.
    values = np.empty(size, np.uint8)
    for start in range(0, size, READ_SIZE):
        data = file.read(offset + start, min(READ_SIZE, size - start))
        values[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return values


def load_array(location: ArrayLocation) -> NDArray[Any]:
    """Read an array in another process; raise `DataChanged` if the file is gone or was replaced."""
    size = int(np.prod(location.shape, dtype=np.int64)) * np.dtype(location.dtype).itemsize
    try:
        file = OpenFile(location.path, location.identity)
        values = _read_bytes(file, location.offset, size)
    except OSError as error:
        raise DataChanged(
            f"{location.path} cannot be read any more: {error.strerror or error}.",
            "Run the command again.",
        ) from error
    stored = values.view(location.dtype).reshape(location.shape).view(StoredArray)
    stored.location = location
    return stored


def encode_block(
    header: Mapping[str, Any], arrays: Sequence[tuple[str, NDArray[Any]]], offset: int
) -> list[bytes | memoryview]:
    """Encode arrays as a block.

    A block is the CRC-32 of the rest, the length of the JSON header, the header, the aligned
    arrays.

    Args:
        header: JSON values; `shapes` is added.
        arrays: NumPy dtype string and content of each.
        offset: bytes before the block in its file; nothing may follow the block.

    Returns:
        The pieces to write one after the other.
    """
    text = json.dumps({**header, "shapes": [list(values.shape) for _, values in arrays]}).encode()
    pieces: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    # 12: four bytes of checksum and eight of length
    end = offset + 12 + len(text)
    for dtype, values in arrays:
        data = np.ascontiguousarray(values, dtype=dtype).reshape(-1).view(np.uint8).data
        pieces += [bytes(-end % ALIGN), data]
        end += len(pieces[-2]) + len(data)
    checksum = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    return [checksum.to_bytes(4, "little"), *pieces]


def read_block(
    file: StoredBytes, offset: int, get_dtypes: Callable[[dict[str, Any]], Iterable[str]]
) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Return the header and the arrays of the block at a byte offset.

    The checksum covers the bytes, not their meaning: callers check the values.

    Args:
        get_dtypes: returns the dtype of each array, given the header.

    Raises:
        Exception: one of `UNREADABLE`, if the block is not as it was written.
    """
    rest = file.read_array(offset + 4, "|u1", (file.size - offset - 4,))
    checksum = file.read_array(offset, "|u1", (4,)).tobytes()
    # Before anything is parsed: damage is then one error, not whatever JSON or NumPy makes of it.
    if zlib.crc32(rest.data) != int.from_bytes(checksum, "little"):
        raise ValueError("its checksum does not match")
    length = int.from_bytes(rest[:8].tobytes(), "little")
    header = json.loads(rest[8 : 8 + length].tobytes())
    end, arrays = offset + 12 + length, []
    for dtype, shape in zip(get_dtypes(header), header["shapes"], strict=True):
        end += -end % ALIGN
        arrays.append(file.read_array(end, dtype, tuple(shape)))
        end += arrays[-1].nbytes
    return header, arrays

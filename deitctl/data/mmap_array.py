"""Arrays that stay in their file: processes share one copy, and send each other the file's name instead of content."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deitctl.errors import DataError


class Place(NamedTuple):
    """Where an array lies."""

    path: str
    identity: tuple[int, int, int]
    """Of the file, so that another one of its name is not taken for it: inode, size, time of its last change."""
    start: int
    """Where the map begins that it is a part of."""
    offset: int
    dtype: str
    shape: tuple[int, ...]


class Mapped(np.ndarray[Any, Any]):
    """An array in a file. It pickles as its place while that is there; a part of it or a result by content."""

    place: Place | None = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.place is not None and _is_there(self.place):
            return map_place, (self.place,)
        return np.asarray(self).__reduce_ex__(protocol)


def identity_of(status: os.stat_result) -> tuple[int, int, int]:
    """Return what another file of the same name has otherwise: inode, size, time of its last change."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def _is_there(place: Place) -> bool:
    """Say whether the file has not been replaced, as another process does when the data has changed."""
    try:
        return identity_of(os.stat(place.path)) == place.identity
    except OSError:
        return False


class MappedFile:
    """A file in memory, page by page as it is looked at; writing to its arrays changes memory, never the file."""

    def __init__(self, path: Path, start: int = 0) -> None:
        """Map what lies from byte `start` on; raise OSError, OverflowError or ValueError (nothing there) if it cannot be."""
        with path.open("rb") as file:
            self.path, self.identity = os.path.abspath(path), identity_of(os.fstat(file.fileno()))
            self.start, self.size = start, self.identity[1]
            if start >= self.size:
                raise ValueError("it is cut short")
            before = start % mmap.ALLOCATIONGRANULARITY
            mapped = mmap.mmap(
                file.fileno(),
                self.size - start + before,
                access=mmap.ACCESS_COPY,
                offset=start - before,
            )
        self._bytes = memoryview(mapped)[before:]

    def array(self, offset: int, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the array that lies at an offset in the file, in bytes; raise ValueError if that is outside of the map."""
        count = int(np.prod(shape, dtype=np.int64))
        values = np.frombuffer(self._bytes, dtype=dtype, count=count, offset=offset - self.start)
        mapped = values.reshape(shape).view(Mapped)
        mapped.place = Place(self.path, self.identity, self.start, offset, dtype, shape)
        return mapped


def map_place(place: Place) -> NDArray[Any]:
    """Map an array in another process; raise `DataError` if the file is gone or is another one."""
    try:
        file = MappedFile(Path(place.path), place.start)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{place.path} cannot be read any more: {error}.", "Run it again."
        ) from error
    if file.identity != place.identity:
        raise DataError(f"{place.path} was replaced while it was in use.", "Run it again.")
    return file.array(place.offset, place.dtype, place.shape)

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


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _is_there(place: Place) -> bool:
    """Say whether the file has not been replaced, as another process does when the data has changed."""
    try:
        return _identity(os.stat(place.path)) == place.identity
    except OSError:
        return False


class MappedFile:
    """A file in memory, page by page as it is looked at; writing to its arrays changes memory, never the file."""

    def __init__(self, path: Path) -> None:
        """Raise OSError or ValueError (empty) if it cannot be mapped."""
        with path.open("rb") as file:
            self.path, self.identity = os.path.abspath(path), _identity(os.fstat(file.fileno()))
            self.bytes = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=np.uint8)

    def array(self, offset: int, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the array that lies at an offset, in bytes; raise ValueError if the file is shorter."""
        count = int(np.prod(shape, dtype=np.int64))
        values = np.frombuffer(self.bytes.data, dtype=dtype, count=count, offset=offset)
        mapped = values.reshape(shape).view(Mapped)
        mapped.place = Place(self.path, self.identity, offset, dtype, shape)
        return mapped


def map_place(place: Place) -> NDArray[Any]:
    """Map an array in another process; raise `DataError` if the file is gone or is another one."""
    try:
        file = MappedFile(Path(place.path))
    except (OSError, ValueError) as error:
        raise DataError(f"{place.path} cannot be read any more: {error}.", "Run it again.") from error
    if file.identity != place.identity:
        raise DataError(f"{place.path} was replaced while it was in use.", "Run it again.")
    return file.array(place.offset, place.dtype, place.shape)

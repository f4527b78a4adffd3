"""Images in a column of Parquet or Arrow files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import StringArray
from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.decode import require_bytes
from deitctl.data.readers.parquet_file import Place, describe_damage, list_errors
from deitctl.data.reading import raise_read_error, read_patiently
from deitctl.errors import DataError


class StoredImages(Protocol):
    """The images in a column of some files; pickles small, safe for threads and processes."""

    @property
    def places(self) -> Sequence[Place]:
        """The files."""

    def read(self, row: int) -> bytes | None:
        """Return the bytes of an image, None where there are none.

        Raises:
            OSError, ValueError: they cannot be read, or are damaged.
            DataChanged: a file is another than it was.
        """

    def num_bytes(self, row: int) -> int:
        """Return the size of an image in bytes, 0 where there are none; raises as `read`."""

    def list_first(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of some of the rows that are read quickly, spread over all of them."""

    def find_blocks(self, rows: NDArray[np.int64]) -> NDArray[np.int32] | None:
        """Return the number of the block that each row is read with, None if each is read alone."""

    @property
    def num_cached_blocks(self) -> int:
        """How many blocks this machine holds at once."""

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Start reading rows that will be read soon."""


@dataclass(frozen=True)
class ColumnarDataset(ImageDataset):
    """Images in a column of files."""

    images: StoredImages
    rows: NDArray[np.int64]
    """Row of each image, over all files, [N]."""
    names: StringArray
    """Unique names, below that of the data."""
    labels: Labels
    class_names: tuple[str, ...]
    title: str
    """The file or folder."""
    group_names: Sequence[str] | None = None

    @property
    def blocks(self) -> NDArray[np.int32] | None:
        return self.images.find_blocks(self.rows)

    @property
    def num_cached_blocks(self) -> int:
        return self.images.num_cached_blocks

    def prefetch(self, indices: Sequence[int]) -> None:
        self.images.prefetch(self.rows[np.asarray(indices, np.int64)])

    def name(self, index: int) -> str:
        return f"{self.title}:{self.names[index]}"

    def relative_path(self, index: int) -> str:
        return self.names[index]

    def num_bytes(self, index: int) -> int:
        try:
            return self.images.num_bytes(int(self.rows[index]))
        except list_errors():
            return 0

    def list_cheap(self) -> NDArray[np.int64]:
        return self.images.list_first(self.rows)

    def read_bytes(self, index: int) -> bytes:
        row = int(self.rows[index])
        try:
            data = read_patiently(lambda: self.images.read(row), self.title)
        except list_errors() as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise_read_error(self.name(index), error)
            raise DataError(
                f"{self.name(index)} cannot be read: {describe_damage(error)}."
            ) from error
        if data is None:
            raise DataError(f"{self.name(index)} has no bytes.")
        require_bytes(len(data), self.name(index))
        return data

"""Images in a column of Arrow files: each is bytes at a place, one read."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitctl.data.readers.arrow import KIND, ArrowFile
from deitctl.data.readers.arrow_arrays import read_spans
from deitctl.data.readers.parquet_file import Place, named_errors, open_place
from deitctl.data.stores.stored_file import StoredFile

MAX_OPEN = 64
"""Files that a process keeps open."""


class ArrowImages:
    """The images of a column of some files; safe for threads and processes."""

    num_cached_blocks = 0

    def __init__(
        self,
        places: Sequence[Place],
        ends: NDArray[np.int64],
        offsets: NDArray[np.int64],
        sizes: NDArray[np.int64],
    ) -> None:
        """Describe images.

        Args:
            places: Arrow files.
            ends: number of rows in each file and those before it.
            offsets: of each image in its file, [rows of all files].
            sizes: in bytes, -1 where there are none.
        """
        self.places, self.ends, self.offsets, self.sizes = tuple(places), ends, offsets, sizes
        self._start()

    def __reduce__(self) -> Any:
        return ArrowImages, (self.places, self.ends, self.offsets, self.sizes)

    def _start(self) -> None:
        # A forked process has not the parent's threads, which may hold the lock.
        self._process, self._lock = os.getpid(), threading.Lock()
        self._files: OrderedDict[int, StoredFile] = OrderedDict()

    def read(self, row: int) -> bytes | None:
        """Return the bytes of an image, None where there are none; raises as `StoredImages.read`."""
        size = int(self.sizes[row])
        if size < 0:
            return None
        data = self._open(row).read(int(self.offsets[row]), size)
        if len(data) < size:
            raise ValueError("its file is cut short")
        return data

    def num_bytes(self, row: int) -> int:
        """Return the size of an image in bytes, 0 where there are none."""
        return max(0, int(self.sizes[row]))

    def list_first(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of all rows: each is read alone."""
        return np.arange(len(rows))

    def find_blocks(self, rows: NDArray[np.int64]) -> None:
        """Return None: each row is read alone."""

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Start reading rows that will be read soon."""
        files = np.searchsorted(self.ends, rows, side="right")
        for number in np.unique(files):
            some = rows[files == number]
            spans = zip(self.offsets[some].tolist(), self.sizes[some].tolist(), strict=True)
            self._open(int(some[0])).prefetch([span for span in spans if span[1] > 0])

    def _open(self, row: int) -> StoredFile:
        """Return the file that a row is in."""
        number = int(np.searchsorted(self.ends, row, side="right"))
        if self._process != os.getpid():
            self._start()
        with self._lock:
            file = self._files.pop(number, None) or open_place(self.places[number])
            self._files[number] = file
            while len(self._files) > MAX_OPEN:
                self._files.popitem(last=False)
            return file


def open_arrow_images(files: Sequence[ArrowFile], column: str) -> ArrowImages:
    """Find the images of a column of some files of one schema.

    Args:
        files: Arrow files, on a disk or in a store.
        column: name of a column of bytes, or of structs with them.

    Raises:
        DataError: one of them cannot be read.
    """
    spans, counts = [(np.empty(0, np.int64), np.empty(0, np.int64))], []
    for arrow in files:
        with named_errors(arrow.path, KIND):
            file = open_place(arrow.place)
            place = arrow.places[arrow.schema.names.index(column)]
            spans += [read_spans(file, batch, place) for batch in arrow.batches]
        counts.append(arrow.schema.num_rows)
    offsets, sizes = (np.concatenate(parts) for parts in zip(*spans, strict=True))
    return ArrowImages([file.place for file in files], np.cumsum(counts), offsets, sizes)

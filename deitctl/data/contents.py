"""What a start reads of the files of a dataset, each once: sizes, and hashes of their bytes.

Splits, near duplicates, split.csv and fingerprints need the same: on a file server a look at each of
1.28 million files takes minutes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deitctl.data.decode import is_deep
from deitctl.threads import DaemonThreads

NUM_THREADS = 32
"""That wait for a file server at a time, whatever the cores."""
NUM_AT_A_TIME = 256
"""Files of a task of a thread."""
SLOW_S = 100e-6
"""Of a look at a file's size, from which on threads look: a local disk's takes 2 microseconds, which a
thread would double."""


class Content(NamedTuple):
    """Hashes of a file's bytes."""

    digest: int
    """64 bits of BLAKE2, see `ImageDataset.digest`."""
    sha256: bytes
    is_deep: bool
    """Whether it is an image of more than 8 bits."""


class Contents:
    """Sizes and hashes of the images of a dataset, remembered in the process that has read them."""

    def __init__(self, count: int) -> None:
        """Know nothing of `count` images."""
        self._sizes = np.full(count, -1, np.int64)
        self.hashes: dict[int, Content] = {}
        """By index."""

    def find_size(self, index: int, read: Callable[[int], int]) -> int:
        """Return the size of an image, which `read` returns if it is not known yet."""
        size = int(self._sizes[index])
        if size < 0:
            self._sizes[index] = size = read(index)
        return size

    def find_sizes(
        self, indices: NDArray[np.int64], read: Callable[[int], int]
    ) -> NDArray[np.int64]:
        """Return the sizes of images as `find_size`, read by many threads where one read takes long."""
        missing = indices[self._sizes[indices] < 0]
        parts = [missing[at : at + NUM_AT_A_TIME] for at in range(0, len(missing), NUM_AT_A_TIME)]

        def read_part(part: NDArray[np.int64]) -> None:
            self._sizes[part] = [read(index) for index in part.tolist()]

        while parts:
            part, start = parts.pop(), time.perf_counter()
            read_part(part)
            if parts and time.perf_counter() - start > SLOW_S * len(part):
                with DaemonThreads(NUM_THREADS) as threads:
                    for _ in threads.map(read_part, parts):
                        pass
                break
        return self._sizes[indices]


def hash_bytes(data: bytes) -> Content:
    """Return the hashes of a file's bytes."""
    return Content(compute_digest(data), hashlib.sha256(data).digest(), is_deep(data))


def compute_digest(data: bytes) -> int:
    """Return a digest of a file's bytes, 64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1

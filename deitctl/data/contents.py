"""What a start reads of the files of a dataset, each once: sizes, and hashes of their bytes.

Splits, near duplicates, split.csv and fingerprints need the same: on a file server a look at each of
1.28 million files takes minutes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deitctl.data.decode import is_deep
from deitctl.threads import map_patiently

NUM_AT_A_TIME = 256
"""Files whose sizes a thread looks up at a time: to start a thread on one takes longer than a look."""


class Fingerprint(NamedTuple):
    """What a fingerprint of the data holds of an image's bytes."""

    sha256: bytes
    is_deep: bool
    """Whether it is an image of more than 8 bits."""


class Contents:
    """Sizes and hashes of the images of a dataset, remembered in the process that has read them."""

    def __init__(self, count: int) -> None:
        """Know nothing of `count` images."""
        self.are_fingerprinted = False
        """Whether fingerprints will be needed, so that they are taken when bytes are read for something else."""
        self._sizes = np.full(count, -1, np.int64)
        self._digests: dict[int, int] = {}
        self._fingerprints: dict[int, Fingerprint] = {}

    def add(self, index: int, data: bytes) -> None:
        """Remember the hashes of an image's bytes."""
        self._digests[index] = compute_digest(data)
        if self.are_fingerprinted:
            self._fingerprints[index] = _take_fingerprint(data)

    def find_digest(self, index: int, read: Callable[[int], bytes]) -> int:
        """Return the digest of an image, which `read` returns if its bytes were not read yet."""
        if index not in self._digests:
            self.add(index, read(index))
        return self._digests[index]

    def find_fingerprint(self, index: int, read: Callable[[int], bytes]) -> Fingerprint:
        """Return the fingerprint of an image, as `find_digest`."""
        if index not in self._fingerprints:
            self._fingerprints[index] = _take_fingerprint(read(index))
        return self._fingerprints[index]

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
        parts = np.split(missing, range(NUM_AT_A_TIME, len(missing), NUM_AT_A_TIME))
        sizes = map_patiently(
            lambda part: [read(index) for index in part.tolist()], parts, num_units=NUM_AT_A_TIME
        )
        self._sizes[missing] = list(chain.from_iterable(sizes))
        return self._sizes[indices]


def _take_fingerprint(data: bytes) -> Fingerprint:
    return Fingerprint(hashlib.sha256(data).digest(), is_deep(data))


def compute_digest(data: bytes) -> int:
    """Return a digest of a file's bytes, 64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1

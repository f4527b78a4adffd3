"""Images that are the same, or nearly the same, as another: hashes, and the groups they form.

Letters: N images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.cores import count_cores
from deitctl.data.dataset import ImageDataset
from deitctl.data.lazy_jpeg import LazyJpeg
from deitctl.errors import DataError
from deitctl.events import Reporter, track
from deitctl.threads import DaemonThreads

Index = NDArray[np.int64]
DIGEST_BYTES = 16  # BLAKE2 of the decoded pixels
HASH_BYTES = 16  # 64 differences across and 64 down
MIN_EDGES = 48
"""Of a hash's 128 differences that must be 2 gray levels or more, else it describes noise."""
MIN_SIDE = 32
"""Pixels below which images are too similar for a hash to tell apart."""
HASH_BITS = 128
MAX_DISTANCE = 9
"""Bits of 128 in which near duplicates differ at most. docs/results/check.md has the measurements:
recompressed, shrunk and 2 % cropped copies of real images lie within it (98 % of them or more), the
two most alike of different images 21 apart."""
MAX_NEIGHBORS = 4096
"""That a hash is compared with; of a set of more near duplicates, some pairs are left out."""
CHAIN_NEIGHBORS = 32
"""The same for groups, in which chains connect what is not compared: images that are all alike
would take minutes."""
MAX_IMAGES = 50_000
MAX_BYTES = 4 * 2**30
"""Of data that is searched for duplicates before it is split. An image of 500 x 375 pixels takes
1.6 ms of CPU time, so all of them 80 s at most, divided by the cores."""
HASH_SIDE = 64
"""Pixels a side that a large JPEG is decoded for, times `lazy_jpeg.OVERSAMPLING`."""


@dataclass(frozen=True)
class ImageGroups:
    """The number of the group that each image belongs to, [N]; most are alone in theirs."""

    exact: Index
    """By the same pixels."""
    near: Index
    """By pixels or hashes, and by chains of those."""
    digests: tuple[bytes, ...]
    """Of each image's pixels; empty for an image that cannot be read."""


def group_duplicates(dataset: ImageDataset, reporter: Reporter) -> ImageGroups | None:
    """Find the duplicates and near duplicates in data; None if it is larger than `MAX_IMAGES` or
    `MAX_BYTES`.

    An image that cannot be read is alone. JPEGs are decoded no larger than needed, so that a
    hash can differ from that of `deitctl check` in a few bits where the short side is 256 pixels or
    more.
    """
    count = len(dataset.labels)
    if count > MAX_IMAGES or dataset.read_sizes().sum() > MAX_BYTES:
        return None
    # Threads: reading, decoding and resizing release Python's lock.
    with DaemonThreads(count_cores()) as threads:
        results = threads.map(lambda index: _hash_image(dataset, index), range(count))
        digests, hashes = zip(*track(results, reporter, "find duplicates", count), strict=True)
    exact = np.arange(count)
    at, rows = _stack(digests)
    exact[at] = at[find_first(group_rows(rows))]
    near = exact.copy()
    at, rows = _stack(hashes)
    for some, others in find_near_pairs(rows, MAX_DISTANCE, CHAIN_NEIGHBORS):
        _merge(near, at[some], at[others])
    return ImageGroups(exact, near, tuple(digests))


def _hash_image(dataset: ImageDataset, index: int) -> tuple[bytes, bytes]:
    """Return digest and hash, both empty for an image that cannot be read."""
    try:
        image = dataset.open_hashed(index)  # split.csv has their digests
        if isinstance(image, LazyJpeg):
            image = image.decode_scaled(image.choose_shrink(*image.size, HASH_SIDE))
    except DataError:
        return b"", b""
    return digest_pixels(image), difference_hash(image)


def _stack(values: Sequence[bytes]) -> tuple[Index, NDArray[np.uint8]]:
    """Return the indices of values that are not empty, [N], and their bytes, [N,16]."""
    at = np.array([index for index, value in enumerate(values) if value], np.int64)
    return at, np.frombuffer(b"".join(values), np.uint8).reshape(len(at), 16)


def _merge(groups: Index, some: Index, others: Index) -> None:
    """Make one group of those of each pair, in place; a group's number is its first image."""
    while (apart := groups[some] != groups[others]).any():
        one, other = groups[some[apart]], groups[others[apart]]
        np.minimum.at(groups, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(followed := groups[groups], groups):
            groups[:] = followed


def find_first(groups: Index) -> Index:
    """Return for each member of each group the first index in it, [N]."""
    _, first, which = np.unique(groups, return_index=True, return_inverse=True)
    return first[which].astype(np.int64)


def digest_pixels(image: Image.Image) -> bytes:
    """Hash an RGB image's size and pixels: the same for every lossless way to store it."""
    return hashlib.blake2b(
        image.tobytes(), digest_size=DIGEST_BYTES, person=b"%dx%d" % image.size
    ).digest()


def difference_hash(image: Image.Image) -> bytes:
    """Return 128 bits that near duplicates share but for a few: which of two regions is lighter.

    64 bits compare neighbors across an 8x9 grid, 64 down a 9x8 grid. Empty for images too small or
    too plain to be distinguished by it.
    """
    if min(image.size) < MIN_SIDE:
        return b""
    gray = image.convert("L")
    across, down = (
        np.diff(
            np.asarray(gray.resize(size, Image.Resampling.BOX), dtype=np.int16), axis=axis
        ).ravel()
        for size, axis in (((9, 8), 1), ((8, 9), 0))
    )
    # int16, because differences of uint8 wrap around
    steps = np.concatenate([across, down])
    return np.packbits(steps > 0).tobytes() if (np.abs(steps) > 1).sum() >= MIN_EDGES else b""


def find_near_pairs(
    hashes: NDArray[np.uint8], distance: int, max_neighbors: int = MAX_NEIGHBORS
) -> Iterator[tuple[Index, Index]]:
    """Yield pairs of hashes, bytes [N,16], that differ in `distance` bits or fewer, some twice.

    Of distance + 2 blocks of bits, at least two are equal in such a pair. So hashes are sorted by
    every two blocks, and only neighbors that agree in both are compared: 55 sorts for a distance of
    9 instead of N^2 comparisons.
    """
    words = np.ascontiguousarray(hashes).view(np.uint64).reshape(len(hashes), 2)
    bits = np.unpackbits(hashes, axis=1)
    count = distance + 2
    # neighboring bits resemble each other, so a block takes every count-th bit
    keys = [_pack(bits[:, start::count]) for start in range(count)]
    width = np.uint64(-(-HASH_BITS // count))
    for one, other in combinations(keys, 2):
        key = one << width | other
        order = np.argsort(key, kind="stable")
        key = key[order]
        left, step = np.arange(len(key) - 1), 1
        while len(left) and step <= max_neighbors:
            # equal keys are neighbors: those that end here need no larger step
            left = left[key[left] == key[left + step]]
            a, b = order[left], order[left + step]
            close = np.bitwise_count(words[a] ^ words[b]).sum(axis=1) <= distance
            if close.any():
                yield np.minimum(a, b)[close], np.maximum(a, b)[close]
            step += 1
            left = left[left < len(key) - step]


def group_rows(rows: NDArray[np.generic]) -> Index:
    """Number the distinct rows of a matrix [N,K]; equal rows get equal numbers, [N]."""
    # rows as single values, because np.unique with axis=0 compares them column by column
    flat = (
        np.ascontiguousarray(rows)
        .view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))
        .ravel()
    )
    return np.unique(flat, return_inverse=True)[1].astype(np.int64)


def _pack(bits: NDArray[np.uint8]) -> NDArray[np.uint64]:
    packed = np.zeros(len(bits), dtype=np.uint64)
    for column in bits.T:
        packed = packed << np.uint64(1) | column
    return packed

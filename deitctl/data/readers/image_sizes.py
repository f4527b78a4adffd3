"""Sizes of the images in a column of Parquet files, which decoding it all has shown: saved by what names the files.

Fingerprints need them at each start, and no header has them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import UNREADABLE, StoredBytes, encode_block, read_block
from deitctl.data.open_file import OpenFile
from deitctl.errors import DataChanged, DeitctlError
from deitctl.home import choose_cache_path
from deitctl.paths import write_bytes

MAGIC = b"deitctl sizes 1\n"
MIN_IMAGES = 10_000
"""Below this nothing is saved: they are decoded in a second."""


def load_sizes(names: Sequence[str], column: str, count: int) -> NDArray[np.int64] | None:
    """Return the sizes of all images, int64 [count]; None if they are not saved.

    Args:
        names: of each file what names its content.
        column: name of the column.
        count: rows of all files.
    """
    if count < MIN_IMAGES:
        return None
    try:
        file = OpenFile(str(_get_path(names, column)))
        if file.read(0, len(MAGIC)) != MAGIC:
            return None
        sizes = read_block(StoredBytes(file), len(MAGIC), lambda _: ["<i8"])[1][0]
    except (*UNREADABLE, DataChanged):  # absent, cut short, being written
        return None
    return np.array(sizes) if sizes.shape == (count,) and sizes.min() >= 0 else None


def save_sizes(names: Sequence[str], column: str, sizes: NDArray[np.int64]) -> None:
    """Save the sizes of all images, where the cache can be written: else they are read again."""
    if len(sizes) < MIN_IMAGES:
        return
    path = _get_path(names, column)
    pieces = encode_block({}, [("<i8", sizes)], len(MAGIC))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, b"".join([MAGIC, *pieces]))
    except (OSError, DeitctlError):
        return


def _get_path(names: Sequence[str], column: str) -> Path:
    digest = hashlib.sha256("\n".join([*names, column]).encode()).hexdigest()[:32]
    return choose_cache_path(f"indexes/{digest}.sizes")

"""Arrays behind a JSON header, in one block with a checksum: what an index is, and what a pack ends with.

A block is a checksum of the rest, the length of the header, the header, and the arrays, each at a multiple of `ALIGN`
in its file. Its last byte is the file's.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitctl.data.mmap_array import MappedFile

ALIGN = 64
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
)
"""What reading a block raises that is cut short, damaged, or none."""


def block(
    header: Mapping[str, Any], columns: Sequence[tuple[str, NDArray[Any]]], at: int
) -> list[bytes | memoryview]:
    """Return the pieces of a block that is to lie at byte `at` of its file.

    Args:
        header: what JSON can say; `shapes` is added.
        columns: type, in numpy's words, and content of each array.
        at: bytes before the block.
    """
    text = json.dumps({**header, "shapes": [list(values.shape) for _, values in columns]}).encode()
    pieces: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    end = at + 12 + len(text)
    for dtype, values in columns:
        data = np.ascontiguousarray(values, dtype=dtype).reshape(-1).view(np.uint8).data
        pieces += [bytes(-end % ALIGN), data]
        end += len(pieces[-2]) + len(data)
    checksum = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    return [checksum.to_bytes(4, "little"), *pieces]


def read_block(
    file: MappedFile, at: int, dtypes: Callable[[dict[str, Any]], Iterable[str]]
) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    """Return the header and the arrays of a block at byte `at`.

    `dtypes` says of a header which types its arrays have. One of `UNREADABLE` is raised if anything is not as it was
    written; what the numbers mean is the caller's to check.
    """
    rest = file.array(at + 4, "|u1", (file.size - at - 4,))
    if zlib.crc32(rest.data) != int.from_bytes(file.array(at, "|u1", (4,)).tobytes(), "little"):
        raise ValueError("its checksum does not fit")
    length = int.from_bytes(rest[:8].tobytes(), "little")
    header = json.loads(rest[8 : 8 + length].tobytes())
    end, columns = at + 12 + length, []
    for dtype, shape in zip(dtypes(header), header["shapes"], strict=True):
        end += -end % ALIGN
        columns.append(file.array(end, dtype, tuple(shape)))
        end += columns[-1].nbytes
    return header, columns

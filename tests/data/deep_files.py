"""Files of 16 bits a channel, which Pillow does not write: PNG and TIFF, byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Of a PNG, by its channels."""
ASCII, SHORT, LONG = 2, 3, 4
CODES = {ASCII: "B", SHORT: "H", LONG: "I"}
SAMPLE_FORMATS = {"u": 1, "i": 2, "f": 3}


def encode_png(values: Values, sbit: tuple[int, ...] = ()) -> bytes:
    """Return a PNG of 16 bits, values [H,W] or [H,W,C], with an sBIT chunk if it is named."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    rows = values.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, COLOR_TYPES[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    if sbit:
        chunks.insert(1, (b"sBIT", bytes(sbit)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def encode_tiff(
    values: Values,
    tags: Mapping[int, int | tuple[int, ...] | str] | None = None,
    *,
    order: str = "<",
    compressed: bool = False,
    tile: int = 0,
    rows: int = 0,
) -> bytes:
    """Return a TIFF of values [H,W] or [H,W,C], in strips of `rows` or square tiles.

    Args:
        values: of any dtype of numpy's.
        tags: further ones, or others than these; numbers of up to 32 bits, or text.
        order: `<` or `>`.
        compressed: with deflate.
        tile: side in pixels, a multiple of 16; 0: strips.
        rows: of a strip; 0: all.
    """
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    values = values.reshape(height, width, channels).astype(values.dtype.newbyteorder(order))
    step = tile or rows or height
    across = range(0, width, tile) if tile else (0,)
    blocks = []
    for top in range(0, height, step):
        for left in across:
            block = values[top : top + step, left : left + tile if tile else width]
            if tile:
                padding = ((0, tile - block.shape[0]), (0, tile - block.shape[1]), (0, 0))
                block = np.pad(block, padding)
            blocks.append(block.tobytes())
    if compressed:
        blocks = [zlib.compress(block) for block in blocks]
    offsets = 8 + np.cumsum([0, *map(len, blocks)])
    bits = values.dtype.itemsize * 8
    entries: dict[int, int | tuple[int, ...] | str] = {
        256: width,
        257: height,
        258: (bits,) * channels,
        259: 8 if compressed else 1,
        262: 2 if channels > 2 else 1,
        277: channels,
        339: (SAMPLE_FORMATS[values.dtype.kind],) * channels,
        (324 if tile else 273): tuple(offsets[:-1].tolist()),
        (325 if tile else 279): tuple(map(len, blocks)),
    }
    entries |= {322: tile, 323: tile} if tile else {278: step}
    entries |= tags or {}
    start = int(offsets[-1]) + int(offsets[-1]) % 2
    body = b"".join(blocks)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    table, extra = b"", b""
    after = start + 2 + 12 * len(entries) + 4
    for tag, entry in sorted(entries.items()):
        if isinstance(entry, str):
            kind, numbers = ASCII, tuple(entry.encode() + b"\0")
        else:
            numbers = entry if isinstance(entry, tuple) else (entry,)
            kind = LONG if max(numbers) > 65535 or tag in (273, 279, 324, 325) else SHORT
        data = struct.pack(f"{order}{len(numbers)}{CODES[kind]}", *numbers)
        if len(data) > 4:
            place = struct.pack(order + "I", after + len(extra))
            extra += data
        else:
            place = data.ljust(4, b"\0")
        table += struct.pack(order + "HHI", tag, kind, len(numbers)) + place
    count = struct.pack(order + "H", len(entries))
    return head + body.ljust(start - 8, b"\0") + count + table + bytes(4) + extra


def write(path: Path, data: bytes) -> Path:
    """Write a file, and return its path."""
    path.write_bytes(data)
    return path

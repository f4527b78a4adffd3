"""Messages of Arrow files: where the buffers of each batch of rows lie, by the headers alone.

Reads both forms, the stream and the file, whose messages are a stream behind eight bytes. pyarrow decodes
a batch as a whole; with the places of its buffers one image is one read, and nothing is mapped.

Source: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deitctl.data.stores.stored_file import StoredFile

MAGIC = b"ARROW1"
CONTINUES = b"\xff\xff\xff\xff"
SCHEMA, RECORD_BATCH = 1, 3
"""Kinds of messages that are read; dictionaries are not."""
HEADER_BYTES = 4096
"""That are read for a header at first."""
MAX_HEADER_BYTES = 256 * 2**20
"""Of a header; that of a schema names all classes."""


class Message(NamedTuple):
    """A message, without its body."""

    kind: int
    header: _Table
    data: bytes
    """As it is in the file, up to the body."""
    body: int
    """Offset of the body in the file."""
    body_bytes: int


@dataclass(frozen=True)
class Batch:
    """Where the columns of some rows lie in a file."""

    num_rows: int
    nodes: NDArray[np.int64]
    """Length and number of nulls of each column and its parts, depth first, [n,2]."""
    buffers: NDArray[np.int64]
    """Offset in the file and length in bytes of each buffer, depth first, [m,2]."""
    is_compressed: bool


def read_messages(file: StoredFile) -> Iterator[Message]:
    """Yield the messages of a file.

    Raises:
        ValueError: it is damaged, cut short, or of another kind.
        OSError: it cannot be read.
    """
    start = file.read(0, len(MAGIC))
    offset = 0
    if start == MAGIC:
        if file.size < 24 or file.read(file.size - len(MAGIC), len(MAGIC)) != MAGIC:
            raise ValueError("it is cut short")
        offset = 8
    while offset < file.size:
        head = file.read(offset, HEADER_BYTES)
        prefix = 8 if head[:4] == CONTINUES else 4  # older than Arrow 0.15
        length = int.from_bytes(head[prefix - 4 : prefix], "little", signed=True)
        if length == 0 and len(head) >= prefix:
            return
        if not 0 < length <= min(MAX_HEADER_BYTES, file.size - offset):
            raise ValueError("it is cut short, or no Arrow file")
        if len(head) < prefix + length:
            head = file.read(offset, prefix + length)
        if len(head) < prefix + length:
            raise ValueError("it is cut short")
        message = _read_message(head[: prefix + length], prefix, offset)
        if not 0 <= message.body_bytes <= file.size - message.body:
            raise ValueError("it is cut short")
        yield message
        offset = message.body + message.body_bytes


def _read_message(data: bytes, prefix: int, offset: int) -> Message:
    table = _Table(data[prefix:], 0).follow()
    return Message(
        table.get("<B", 1),
        table.enter(2),
        data,
        offset + len(data),
        table.get("<q", 3),
    )


def read_batch(message: Message) -> Batch:
    """Return where the columns of a message of rows lie; raise `ValueError` if that is outside of it."""
    header = message.header
    buffers = header.list_pairs(2)
    within = (buffers >= 0).all() and (buffers[:, 0] <= message.body_bytes - buffers[:, 1]).all()
    nodes, num_rows = header.list_pairs(1), header.get("<q", 0)
    if not within or num_rows < 0 or (nodes < 0).any() or (nodes[:, 1] > nodes[:, 0]).any():
        raise ValueError("its buffers are not within it")
    is_compressed = header.has(3)
    return Batch(num_rows, nodes, buffers + np.array([message.body, 0]), is_compressed)


class _Table:
    """A table of FlatBuffers: fields by number, each of which may be absent.

    Source: https://flatbuffers.dev/internals
    """

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def follow(self) -> _Table:
        """Return the table that the offset here leads to."""
        return _Table(self.data, self.at + self._unpack("<I", self.at))

    def has(self, field: int) -> bool:
        return self._find(field) is not None

    def get(self, form: str, field: int) -> int:
        """Return the number in a field, 0 if it is absent."""
        place = self._find(field)
        return 0 if place is None else self._unpack(form, place)

    def enter(self, field: int) -> _Table:
        """Return the table in a field."""
        place = self._find(field)
        if place is None:
            raise ValueError("a header lacks its content")
        return _Table(self.data, place).follow()

    def list_pairs(self, field: int) -> NDArray[np.int64]:
        """Return a vector of structs of two long integers, [n,2]."""
        place = self._find(field)
        if place is None:
            return np.empty((0, 2), np.int64)
        start = place + self._unpack("<I", place)
        count = self._unpack("<I", start)
        if start + 4 + 16 * count > len(self.data):
            raise ValueError("a header is cut short")
        return np.frombuffer(self.data, "<i8", 2 * count, start + 4).reshape(count, 2)

    def _find(self, field: int) -> int | None:
        table = self.at - self._unpack("<i", self.at)
        if 4 + 2 * field + 2 > self._unpack("<H", table):
            return None
        offset = self._unpack("<H", table + 4 + 2 * field)
        return self.at + offset if offset else None

    def _unpack(self, form: str, at: int) -> int:
        if not 0 <= at <= len(self.data) - struct.calcsize(form):
            raise ValueError("a header is damaged")
        value: int = struct.unpack_from(form, self.data, at)[0]
        return value


def is_big_endian(schema: Message) -> bool:
    """Whether the numbers of a file are those of another kind of machine."""
    return schema.header.get("<h", 0) != 0


def read_schema(message: Message) -> Any:
    """Return pyarrow's schema of a message; raises its errors if it is damaged."""
    import pyarrow
    import pyarrow.ipc

    return pyarrow.ipc.read_schema(pyarrow.py_buffer(message.data))

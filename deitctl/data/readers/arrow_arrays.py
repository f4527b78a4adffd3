"""Columns of a batch of an Arrow file, each read by itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deitctl.data.readers.arrow_messages import Batch
from deitctl.data.readers.row_groups import BYTES
from deitctl.data.stores.stored_file import StoredFile

MAX_COLUMN_BYTES = 2**30
"""Of a buffer of labels or names that is read at once."""


class Place(NamedTuple):
    """Where a column or part of one begins among those of a batch."""

    kind: Any
    """pyarrow's type."""
    node: int
    buffer: int


def list_places(schema: Any) -> list[Place]:
    """Return where each column of a schema begins; the last place is the end.

    Raises:
        ValueError: a column has a form whose buffers are not known.
    """
    places, node, buffer = [], 0, 0
    for field in schema:
        places.append(Place(field.type, node, buffer))
        nodes, buffers = _count(field.type)
        node, buffer = node + nodes, buffer + buffers
    return [*places, Place(None, node, buffer)]


def enter(place: Place, part: str) -> Place:
    """Return where a part of structs begins."""
    node, buffer = place.node + 1, place.buffer + 1
    for number in range(place.kind.num_fields):
        field = place.kind.field(number)
        if field.name == part:
            return Place(field.type, node, buffer)
        nodes, buffers = _count(field.type)
        node, buffer = node + nodes, buffer + buffers
    raise ValueError(f"its structs have no {part}")


def _count(kind: Any) -> tuple[int, int]:
    """Return the number of nodes and buffers of a type with its parts."""
    import pyarrow.types as types

    if isinstance(kind, _extension()):
        return _count(kind.storage_type)
    if types.is_union(kind) or _is_view(kind) or types.is_run_end_encoded(kind):
        raise ValueError(f"it has a column of {kind}")
    own = 0 if types.is_null(kind) else 1 if _has_validity_alone(kind) else 2
    own += types.is_binary(kind) or types.is_large_binary(kind)
    own += types.is_string(kind) or types.is_large_string(kind)
    parts = [_count(kind.field(number).type) for number in range(kind.num_fields)]
    return 1 + sum(nodes for nodes, _ in parts), own + sum(buffers for _, buffers in parts)


def has_dictionary(kind: Any) -> bool:
    """Whether values of a type, or of a part of it, are places in a dictionary."""
    import pyarrow.types as types

    parts = (kind.field(number).type for number in range(kind.num_fields))
    return bool(types.is_dictionary(kind)) or any(map(has_dictionary, parts))


def _extension() -> Any:
    import pyarrow

    return pyarrow.BaseExtensionType


def _has_validity_alone(kind: Any) -> bool:
    import pyarrow.types as types

    return any(check(kind) for check in (types.is_struct, types.is_fixed_size_list))


def _is_view(kind: Any) -> bool:
    import pyarrow.types as types

    names = ("is_binary_view", "is_string_view", "is_list_view", "is_large_list_view")
    return any(getattr(types, name)(kind) for name in names)


def read_array(file: StoredFile, batch: Batch, place: Place) -> Any:
    """Return a column of a batch as pyarrow's array.

    Raises:
        ValueError: it is damaged, or coded by a dictionary.
        OSError: it cannot be read.
    """
    array, _, _ = _build(file, batch, place)
    array.validate(full=True)
    if len(array) != batch.num_rows:
        raise ValueError("a column has another length than its batch")
    return array


def _build(file: StoredFile, batch: Batch, place: Place) -> tuple[Any, int, int]:
    """Return an array, and the node and buffer behind it."""
    import pyarrow
    import pyarrow.types as types

    kind = place.kind.storage_type if isinstance(place.kind, _extension()) else place.kind
    if types.is_dictionary(kind):
        raise ValueError("a column is coded by a dictionary")
    num_buffers = _count(kind)[1]
    parts = [kind.field(number).type for number in range(kind.num_fields)]
    num_own = num_buffers - sum(_count(part)[1] for part in parts)
    length, num_nulls = (int(n) for n in batch.nodes[place.node])
    buffers = [
        _read_buffer(file, batch.buffers[at]) for at in range(place.buffer, place.buffer + num_own)
    ]
    children, node, buffer = [], place.node + 1, place.buffer + num_own
    for part in parts:
        child, node, buffer = _build(file, batch, Place(part, node, buffer))
        children.append(child)
    array = pyarrow.Array.from_buffers(
        kind, length, buffers or [None], num_nulls, children=children or None
    )
    return array, node, buffer


def _read_buffer(file: StoredFile, span: NDArray[np.int64]) -> Any:
    import pyarrow

    offset, size = (int(n) for n in span)
    if size > MAX_COLUMN_BYTES:
        raise ValueError("a column has more than 1 GiB in a batch")
    return pyarrow.py_buffer(_read(file, offset, size)) if size else None


def _read(file: StoredFile, offset: int, size: int) -> bytes:
    data = file.read(offset, size)
    if len(data) < size:
        raise ValueError("it is cut short")
    return data


def read_spans(
    file: StoredFile, batch: Batch, place: Place
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the bytes of each row lie in the file.

    Args:
        file: the Arrow file.
        batch: of its rows.
        place: of a column of bytes, or of structs with `bytes`.

    Returns:
        Offsets and sizes, int64 [rows]; a size of -1 where there are no bytes.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    import pyarrow.types as types

    is_valid = _read_validity(file, batch, place)
    if types.is_struct(place.kind):
        place = enter(place, BYTES)
        is_valid &= _read_validity(file, batch, place)
    if has_dictionary(place.kind):
        raise ValueError("its images are coded by a dictionary")
    count = batch.num_rows
    if batch.nodes[place.node, 0] != count:
        raise ValueError("a column has another length than its batch")
    start, size = (int(n) for n in batch.buffers[place.buffer + 1])
    data_start, data_size = (int(n) for n in batch.buffers[place.buffer + 2])
    dtype = np.dtype("<i8" if types.is_large_binary(place.kind) else "<i4")
    if not count:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if size < (count + 1) * dtype.itemsize:
        raise ValueError("a batch has more rows than offsets")
    ends = np.frombuffer(_read(file, start, (count + 1) * dtype.itemsize), dtype).astype(np.int64)
    if ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] > data_size:
        raise ValueError("its offsets are not within a batch")
    return data_start + ends[:-1], np.where(is_valid, np.diff(ends), -1)


def _read_validity(file: StoredFile, batch: Batch, place: Place) -> NDArray[np.bool_]:
    """Return which rows of a column have a value, [rows]."""
    start, size = (int(n) for n in batch.buffers[place.buffer])
    count = batch.num_rows
    if not batch.nodes[place.node, 1] or not size:
        return np.ones(count, np.bool_)
    if size < -(-count // 8):
        raise ValueError("a batch has more rows than it says are there")
    bits = np.frombuffer(_read(file, start, -(-count // 8)), np.uint8)
    return np.unpackbits(bits, count=count, bitorder="little").astype(np.bool_)

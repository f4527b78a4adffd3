"""What Parquet files have in their columns: paths or images, labels, splits.

The hub's data sets have a column of structs of `bytes` and `path`, and the names of classes in the
metadata of the schema. A column of the images' bytes alone is read too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deitctl.data.open_file import OpenFile
from deitctl.data.readers.parquet_images import BYTES, PATH, named_errors, open_reader
from deitctl.errors import DataError

MAGIC = b"PAR1"
MAX_GROUP_BYTES = 2 * 2**30
"""Of a row group, which is decoded up to an image that is not in the cache."""
BATCH_ROWS = 1024
"""That are objects of Python at a time."""


@dataclass(frozen=True)
class ParquetSchema:
    """What a Parquet file has in its columns."""

    names: tuple[str, ...]
    images: tuple[int, ...]
    """Places of columns that may hold images: bytes, or structs with bytes."""
    structs: frozenset[int]
    """Places of those that are structs."""
    named: frozenset[int]
    """Places of columns of structs with a path."""
    paths: tuple[int, ...]
    """Places of columns of structs with paths and no bytes."""
    class_names: Mapping[int, tuple[str, ...]]
    """Names of the classes that numbers in a column stand for, by the column's place."""
    nested: frozenset[int]
    """Places of columns of lists and other structures, which hold no class and no split."""
    lists: frozenset[int]
    """Places of those that are lists of numbers or text, which may be labels."""
    num_rows: int
    num_bytes: int
    """Of all columns, as they are encoded."""

    def name_parts(self, places: Sequence[int]) -> dict[int, str]:
        """Return what is read of some columns to have text: of structs the path."""
        return {at: self.names[at] + (f".{PATH}" if at in self.named else "") for at in places}


def is_parquet(path: Path) -> bool:
    """Whether a file begins as a Parquet file does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_schema(path: Path) -> ParquetSchema:
    """Return what a Parquet file has in its columns.

    Raises:
        DataError: it cannot be read, or pyarrow is not installed.
    """
    with named_errors(path):
        import pyarrow.types as types

        reader = open_reader(OpenFile(str(path)))
        schema, metadata = reader.schema_arrow, reader.metadata
        images, paths, structs, named, nested = [], [], set(), set(), set()
        is_list = (types.is_list, types.is_large_list, types.is_fixed_size_list)
        lists = frozenset(
            at
            for at, field in enumerate(schema)
            if any(check(field.type) for check in is_list)
            and not types.is_nested(field.type.value_type)
        )
        for at, field in enumerate(schema):
            inner = field.type
            nested |= {at} if types.is_nested(inner) else set()
            if types.is_struct(inner):
                parts = {part.name: part.type for part in _list_fields(field)}
                inner = parts.get(BYTES, inner)
                named |= {at} if PATH in parts else set()
                if PATH in parts and _has_paths_alone(reader, field):
                    paths.append(at)
                    continue
                structs.add(at)
            is_bytes = (types.is_binary, types.is_large_binary, types.is_binary_view)
            if any(check(inner) for check in is_bytes):
                images.append(at)
        groups = [metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)]
    if max(groups, default=0) > MAX_GROUP_BYTES and images:
        raise DataError(
            f"{path} has a row group of {max(groups) / 2**30:.1f} GiB, which is decoded for each image.",
            "Write it anew with row_group_size=1000.",
        )
    names = tuple(schema.names)
    class_names = _read_class_names(schema, names)
    return ParquetSchema(
        names,
        tuple(images),
        frozenset(structs),
        frozenset(named),
        tuple(paths),
        class_names,
        frozenset(nested),
        lists,
        metadata.num_rows,
        sum(groups),
    )


def _read_class_names(schema: Any, names: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Return the hub's names of classes, by the place of their column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    class_names = {}
    for at, name in enumerate(names):
        feature = features.get(name) if isinstance(features, dict) else None
        if isinstance(feature, list) and len(feature) == 1:  # of a list, as older versions write it
            feature = {"feature": feature[0]}
        if isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
            feature = feature["feature"]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            listed = feature.get("names")
            if isinstance(listed, list) and all(isinstance(n, str) for n in listed):
                class_names[at] = tuple(listed)
    return class_names


def read_rows(
    path: Path, columns: Mapping[int, str], batch_rows: int = BATCH_ROWS
) -> Iterator[list[Any]]:
    """Yield the values of some columns of each row; those of the other columns are empty.

    Args:
        path: the file.
        columns: what is read of a column, by its place: its name, or `name.path` of a struct.
        batch_rows: rows that are decoded at a time.
    """
    with named_errors(path):
        reader = open_reader(OpenFile(str(path)))
        width = len(reader.schema_arrow.names)
        batches = reader.iter_batches(batch_rows, columns=list(columns.values()), use_threads=False)
        for batch in batches:
            taken = {
                at: _flatten(batch.column(reader.schema_arrow.names[at])).to_pylist()
                for at in columns
            }
            for number in range(batch.num_rows):
                row: list[Any] = [""] * width
                for at, values in taken.items():
                    row[at] = _to_text(values[number])
                yield row


def _has_paths_alone(reader: Any, field: Any) -> bool:
    """Whether structs have paths and no bytes, by their type or else by the first row."""
    if BYTES not in [part.name for part in _list_fields(field)]:
        return True
    batches = reader.iter_batches(1, columns=[field.name], use_threads=False)
    first = next(iter(batches), None)
    value = None if first is None or not first.num_rows else first.column(0)[0].as_py()
    return value is not None and value[BYTES] is None and bool(value[PATH])


def _list_fields(field: Any) -> list[Any]:
    return [field.type.field(n) for n in range(field.type.num_fields)]


def _flatten(values: Any) -> Any:
    """Return the only field of structs that were read in part."""
    import pyarrow.types as types

    return values.flatten()[0] if types.is_struct(values.type) else values


def _to_text(value: object) -> str:
    """Return a value as text, a list as JSON; empty for one that is missing."""
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None or value != value else str(value)

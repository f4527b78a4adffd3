"""What Parquet and Arrow files have in their columns: paths or images, labels, splits.

The hub's data sets have a column of structs of `bytes` and `path`, and the names of classes in the
metadata of the schema. A column of the images' bytes alone is read too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deitctl.data.readers.row_groups import BYTES, PATH
from deitctl.errors import DataError


@dataclass(frozen=True)
class ColumnarSchema:
    """What a Parquet or Arrow file has in its columns."""

    names: tuple[str, ...]
    images: tuple[int, ...]
    """Places of columns that may hold images: bytes, or structs with bytes."""
    structs: frozenset[int]
    """Places of those that are structs."""
    named: frozenset[int]
    """Places of columns of structs with a path."""
    paths: tuple[int, ...]
    """Places of columns of structs with paths and no bytes."""
    several: frozenset[int]
    """Places of columns of lists of images."""
    class_names: Mapping[int, tuple[str, ...]]
    """Names of the classes that numbers in a column stand for, by the column's place."""
    nested: frozenset[int]
    """Places of columns of lists and other structures, which hold no class and no split."""
    lists: frozenset[int]
    """Places of those that are lists of numbers or text, which may be labels."""
    num_rows: int

    def name_parts(self, places: Sequence[int]) -> dict[int, str]:
        """Return what is read of some columns to have text: of structs the path."""
        return {at: self.names[at] + (f".{PATH}" if at in self.named else "") for at in places}


def describe_schema(
    schema: Any,
    num_rows: int,
    has_bytes: Callable[[str], bool],
    info: Mapping[str, Any] | None = None,
) -> ColumnarSchema:
    """Return what a file has in its columns.

    Args:
        schema: pyarrow's.
        num_rows: rows of the file.
        has_bytes: whether the first row of a column of structs has bytes, not a path alone.
        info: of the hub's data set, where the schema has none.
    """
    images, paths, structs, named = [], [], set(), set()
    for at, field in enumerate(schema):
        parts = list_parts(field.type)
        if PATH in parts:
            named.add(at)
            if BYTES not in parts or not has_bytes(field.name):
                paths.append(at)
                continue
        if parts:
            structs.add(at)
        if _is_binary(parts.get(BYTES, field.type)):
            images.append(at)
    values = [_get_list_values(field.type) for field in schema]
    names = tuple(schema.names)
    return ColumnarSchema(
        names,
        tuple(images),
        frozenset(structs),
        frozenset(named),
        tuple(paths),
        frozenset(at for at, value in enumerate(values) if value and _is_image(value)),
        _read_class_names(schema, names, info),
        frozenset(at for at, field in enumerate(schema) if _is_nested(field.type)),
        frozenset(at for at, value in enumerate(values) if value and not _is_nested(value)),
        num_rows,
    )


def require_different_names(path: str, names: Sequence[str]) -> None:
    """Raise `DataError` for columns of one name, which are read by their names."""
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(
            f"{path} has several columns called {repeated[0]!r:.40}.",
            "Write it anew with one of each name.",
        )


def list_parts(kind: Any) -> dict[str, Any]:
    """Return the types of the parts of a type of structs by name; empty for any other."""
    import pyarrow.types as types

    if not types.is_struct(kind):
        return {}
    return {part.name: part.type for part in (kind.field(n) for n in range(kind.num_fields))}


def _is_nested(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_nested(kind))


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    checks = (types.is_binary, types.is_large_binary, types.is_binary_view)
    return any(check(kind) for check in checks)


def _is_image(kind: Any) -> bool:
    return _is_binary(list_parts(kind).get(BYTES, kind))


def _get_list_values(kind: Any) -> Any:
    """Return the type of the values of a type of lists, None for any other."""
    import pyarrow.types as types

    is_list = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return kind.value_type if any(check(kind) for check in is_list) else None


def _read_class_names(
    schema: Any, names: Sequence[str], info: Mapping[str, Any] | None
) -> dict[int, tuple[str, ...]]:
    """Return the hub's names of classes, by the place of their column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        features = (info or {}).get("features")
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

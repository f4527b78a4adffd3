"""The JSON contract: results are dataclasses, and what a script reads of one follows from its fields.

A field becomes a snake_case key with a typed value; the docstring below it becomes its line in docs/reference/json.md.
Fields that only the library needs (tensors, open data) are declared with `hidden()`.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import math
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

SCHEMA_VERSION = 1
"""Goes up when a key changes its meaning or goes away; new keys do not count."""


def hidden(**options: Any) -> Any:
    """Declare a dataclass field that is no part of the JSON; takes the arguments of `dataclasses.field`."""
    return dataclasses.field(**options, metadata={"json": False})


def to_json(value: Any) -> Any:
    """Return a result, or anything within one, as JSON values.

    Dataclasses become objects without their hidden fields, paths become strings, and numbers that JSON does not have
    (NaN, infinities) become null.

    Raises:
        TypeError: a value that has no JSON form, such as a tensor in a field that is not hidden.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_json(getattr(value, field.name)) for field in json_fields(type(value))
        }
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def to_object(result: Any) -> dict[str, Any]:
    """Return a command's result as the top-level JSON object, which says the version of the contract."""
    return {"schema_version": SCHEMA_VERSION, **to_json(result)}


def json_fields(kind: type) -> Iterator[dataclasses.Field[Any]]:
    """Yield the fields of a result class that are part of its JSON."""
    return (field for field in dataclasses.fields(kind) if field.metadata.get("json", True))


def describe_fields(kind: type) -> list[tuple[str, Any, str]]:
    """Return name, type and docstring of each JSON field of a result class, inherited ones first."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            docs |= read_field_docs(base)
    hints = get_type_hints(kind)
    return [
        (field.name, hints[field.name], docs.get(field.name, "")) for field in json_fields(kind)
    ]


def read_field_docs(kind: type) -> dict[str, str]:
    """Return the docstrings that stand below the fields in a class's source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    docs: dict[str, str] = {}
    if not isinstance(body, ast.ClassDef):
        return docs
    for statement, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            docs[statement.target.id] = " ".join(below.value.value.split())
    return docs

"""Names of a caller's functions, and what tells one of them from another by content."""

from __future__ import annotations

import functools
import hashlib
import inspect
import pickle
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
from torch import Tensor, nn

from deitctl.errors import ExtensionError

LENGTH = 16
"""Hexadecimal digits of a hash."""
PLAIN = (str, bytes, bool, int, float, complex, type(None))
MAX_DEPTH = 8
"""Of objects in objects, of which deeper ones are not looked at."""


def name_function(function: object) -> str:
    """Return the name of a caller's function or of an object's class, with its module."""
    if isinstance(function, functools.partial):
        return f"partial of {name_function(function.func)}"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def identify_function(function: object) -> str:
    """Return a string that changes with a function's name, its source, and the values that it holds.

    These are default arguments, closures, what a partial or a bound method has, and an object's
    attributes, tensors by their values. What it calls or reads elsewhere is not seen: an attribute
    `version` of it, a text, counts instead of all but the name.

    Raises:
        ExtensionError: it holds what has no content that could be compared.
    """
    version = getattr(function, "version", None)
    parts = [f"version {version}"] if isinstance(version, str) and version else None
    digest = hashlib.sha256()
    for part in parts or _describe(function, name_function(function), 0):
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\x1f")
    return f"{name_function(function)} {digest.hexdigest()[:LENGTH]}"


def _describe(value: Any, name: str, depth: int) -> Iterator[str | bytes]:
    """Yield what a value is, in an order that is the same in every process."""
    if depth > MAX_DEPTH:
        return
    if isinstance(value, PLAIN):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().float().numpy() if isinstance(value, Tensor) else value
        yield f"{array.dtype} {array.shape}"
        yield hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield from _describe(key, name, depth + 1)
            yield from _describe(value[key], name, depth + 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in sorted(value, key=repr) if isinstance(value, set | frozenset) else value:
            yield from _describe(item, name, depth + 1)
    elif isinstance(value, functools.partial):
        yield from _describe((value.func, value.args, value.keywords), name, depth + 1)
    elif isinstance(value, MethodType):
        yield from _describe((value.__func__, value.__self__), name, depth + 1)
    elif isinstance(value, FunctionType):
        yield from _describe_function(value, name, depth)
    elif isinstance(value, type | BuiltinFunctionType):
        yield name_function(value)
        yield _read_source(value)
    elif isinstance(value, nn.Module):
        yield name_function(value)
        yield repr(value)
        yield from _describe(value.state_dict(), name, depth + 1)
    else:
        yield from _describe_object(value, name, depth)


def _describe_function(function: FunctionType, name: str, depth: int) -> Iterator[str | bytes]:
    yield name_function(function)
    # Of one that was typed into an interpreter there is no source.
    yield _read_source(function) or function.__code__.co_code
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    yield from _describe((function.__defaults__, function.__kwdefaults__, cells), name, depth + 1)


def _describe_object(value: Any, name: str, depth: int) -> Iterator[str | bytes]:
    yield name_function(type(value))
    yield _read_source(type(value))
    slots = [s for kind in type(value).__mro__ for s in getattr(kind, "__slots__", ())]
    attributes = {s: getattr(value, s) for s in slots if hasattr(value, s)}
    attributes |= getattr(value, "__dict__", {})
    if attributes:
        yield from _describe(attributes, name, depth + 1)
        return
    try:
        yield pickle.dumps(value)
    except Exception as error:
        raise ExtensionError(
            f"{name} holds a {type(value).__name__}, by whose content it cannot be known again.",
            "Give it an attribute `version`: a text that changes where its results do.",
        ) from error


def _read_source(code: Any) -> str:
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        return ""

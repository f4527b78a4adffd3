"""What the small members of a WebDataset sample say: its label, as a number or a name, and its file's name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from deitctl.names import canonicalize_name

MAX_LABEL_BYTES = 2**20
"""Of a member that may hold a label."""
MAX_NAME_BYTES = 1024
"""Of a text that may be a class name; longer ones are captions."""
CLASS_SUFFIXES = ("cls", "class", "label", "target", "index")
"""Of members that hold nothing but a label."""
LABEL_FIELDS = (
    *("label", "labels", "cls", "class", "classes", "target", "class_id", "label_id"),
    *("category_id", "class_name", "label_name", "category"),
)
"""Of a JSON member that may hold the label, in the order of preference."""
FILE_FIELDS = ("filename", "file_name")
"""Of a JSON member, with the path of the image before it was put into a shard, as timm writes."""
FILE = "filename"
TEXT = "txt"
LABEL_SUFFIXES = frozenset((*CLASS_SUFFIXES, "json", TEXT))
"""Of members that are read when shards are indexed."""
Label = int | str | tuple[int, ...] | tuple[str, ...]
"""A class by number or name, or several of them."""


def read_label_member(suffix: str, data: bytes) -> dict[str, Label]:
    """Return what a member says, by column: its suffix, `json.FIELD`, or `FILE` for the image's own path.

    Args:
        suffix: of the member, one of `LABEL_SUFFIXES`.
        data: its bytes.
    """
    if suffix == "json":
        return _read_json(data)
    if suffix == TEXT and len(data) > MAX_NAME_BYTES:
        return {TEXT: data[:MAX_NAME_BYTES].decode("utf-8", "replace")}
    label = _parse_text(data)
    return {} if label is None else {suffix: label}


def _read_json(data: bytes) -> dict[str, Label]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, Mapping):
        label = parse_label(values)
        return {} if label is None else {"json": label}
    labels = dict[str, Label]()
    for field in LABEL_FIELDS:
        if field in values and (label := parse_label(values[field])) is not None:
            labels[f"json.{field}"] = label
    for field in FILE_FIELDS:
        if isinstance(name := values.get(field), str) and name and _can_be_written(name):
            labels[FILE] = name
            break
    return labels


def _parse_text(data: bytes) -> Label | None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return parse_label(text)


def parse_label(value: Any) -> Label | None:
    """Return the label that a value means: a class, or several; None for none, as of -1, timm's for it."""
    if isinstance(value, list):
        if any(isinstance(entry, list) for entry in value):
            return None
        labels = [parse_label(entry) for entry in value]
        numbers = tuple(label for label in labels if isinstance(label, int))
        texts = tuple(label for label in labels if isinstance(label, str))
        # an empty list: none of the classes
        return next((own for own in (numbers, texts) if len(own) == len(labels)), None)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value < 2**31 else None
    if not isinstance(value, str) or not _can_be_written(value):
        return None
    text = value.strip()
    # "007" is a name: as a number it would be the class "7"
    if text.isdecimal() and text.isascii() and len(text) < 10 and str(int(text)) == text:
        return int(text)
    if text.removeprefix("-").isdecimal():
        return None if text.startswith("-") else text
    return canonicalize_name(text.replace("\0", "")) or None


def _can_be_written(text: str) -> bool:
    """Whether a text has no half of a character, which JSON can write and files cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""What the training and the validation part of a data set may be called."""

from __future__ import annotations

from collections.abc import Iterable

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "validation", "valid", "test")


def name_parts(present: Iterable[str]) -> dict[str, str]:
    """Return which of the names present is `train` and which is `val`, of those there are; `val` goes before `test`."""
    names = set(present)
    found = {
        "train": next((n for n in TRAIN_NAMES if n in names), None),
        "val": next((n for n in VAL_NAMES if n in names), None),
    }
    return {part: name for part, name in found.items() if name is not None}

"""Names of classes that a trainer stored beside its weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

from deitctl.models.catalog import load_imagenet_classes
from deitctl.models.model_config import MAX_CLASSES
from deitctl.models.pickles import StandIn
from deitctl.models.transformers_folder import are_imagenet
from deitctl.names import canonicalize_name

LIST_KEYS = ("classes", "class_names", "label_names", "labels", "categories")
MAP_KEYS = ("class_to_idx", "idx_to_class", "id2label", "label2id")
SETTINGS = (
    "args",
    "hyper_parameters",
    "config",
    "cfg",
    "opt",
    "meta",
    "dataset_meta",
    "data",
    "dataset",
)
"""Dictionaries, and dictionaries in them, that are searched beside the checkpoint itself."""
_DEPTH = 3


class StoredClasses(NamedTuple):
    """Names of a head's classes, in the order of its logits."""

    names: tuple[str, ...] | None = None
    """None where there are none, or where they contradict each other."""
    descriptions: tuple[str, ...] | None = None
    """Names for people, where they differ."""
    clause: str = ""
    """Where the names are from, in words to say once; empty for nothing."""


NO_CLASSES = StoredClasses()


def read_class_lists(loaded: Any) -> dict[str, tuple[str, ...]]:
    """Return every list of names in a checkpoint and its settings, by where it is; maps in the order of
    their numbers."""
    lists: dict[str, tuple[str, ...]] = {}
    for where, settings in _list_settings(loaded, "", _DEPTH):
        for key, value in settings.items():
            name = key.lower() if isinstance(key, str) else ""
            if name in LIST_KEYS or name in MAP_KEYS:
                names = _read_names(value)
                if names:
                    lists[f"{where}{key}"] = names
    return lists


def choose_class_names(
    lists: Mapping[str, tuple[str, ...]], num_classes: int | None
) -> StoredClasses:
    """Return the names of a head of so many classes, of what `read_class_lists` found.

    Lists of another length are those of something else. Where two have the same names in different
    orders, neither is taken.
    """
    fitting = {where: names for where, names in lists.items() if len(names) == num_classes}
    for (first, names), (second, others) in combinations(fitting.items(), 2):
        if names != others and set(names) == set(others):
            clause = f"class names not taken: {first} and {second} have them in different orders"
            return StoredClasses(clause=clause)
    ids, descriptions = load_imagenet_classes()
    for where, names in fitting.items():
        clause = f"{num_classes} classes named by {where}"
        if len(names) == len(ids) and are_imagenet(list(names), descriptions):
            return StoredClasses(ids, descriptions, clause)
        if len(set(names)) < len(names):
            continue
        label_of = dict(zip(ids, descriptions, strict=True))
        is_wordnet = all(name in label_of for name in names)
        return StoredClasses(
            names, tuple(label_of[name] for name in names) if is_wordnet else None, clause
        )
    return NO_CLASSES


def _list_settings(loaded: Any, where: str, depth: int) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    settings = loaded.state if isinstance(loaded, StandIn) else loaded
    if not isinstance(settings, dict) or not depth:
        return
    yield where, settings
    for key in SETTINGS:
        if key in settings:
            yield from _list_settings(settings[key], f"{where}{key}.", depth - 1)


def _read_names(value: Any) -> tuple[str, ...]:
    """Return the canonical names of a list, or of a map in the order of its numbers; else none."""
    if isinstance(value, dict):
        value = _order(value)
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_CLASSES:
        return ()
    if not all(isinstance(name, str) for name in value):
        return ()
    names = tuple(canonicalize_name(name) for name in value)
    # LABEL_0 is transformers' for a class without a name; half of a surrogate pair is no text.
    is_placeholder = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    is_text = all(name and not re.search(r"[\ud800-\udfff]", name) for name in names)
    return names if is_text and not is_placeholder else ()


def _order(value: Mapping[Any, Any]) -> list[Any]:
    """Return the names of a map from numbers, or to them, if these are 0, 1, 2 and so on; else none."""
    pairs = list(value.items())
    if all(isinstance(number, int) for _, number in pairs):
        pairs = [(number, name) for name, number in pairs]
    by_number = {
        int(number): name
        for number, name in pairs
        if isinstance(number, int) or (isinstance(number, str) and re.fullmatch(r"\d{1,7}", number))
    }
    if len(by_number) != len(pairs) or any(n not in by_number for n in range(len(pairs))):
        return []
    return [by_number[number] for number in range(len(pairs))]

"""Matching of class names between data and models: by name, never by position."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deitctl.errors import ConfigError, did_you_mean
from deitctl.models.catalog import load_imagenet_classes
from deitctl.models.model_config import ModelConfig
from deitctl.names import canonicalize_name, find_names

MAX_SUGGESTIONS = 4
MAX_LISTED = 3
"""Classes that a message names."""
NUMBERS = frozenset(map(str, range(1000)))
"""Folder names of ImageNetV2."""


@dataclass(frozen=True)
class ClassMatch:
    """The logits of a model that belong to the data's classes."""

    rows: tuple[int, ...]
    """For each class of the data, its logit."""
    kind: str
    """`same`, `permuted` (same classes, other order), `subset` (of the model's classes) or
    `numbers` (ImageNetV2)."""

    def __str__(self) -> str:
        return {
            "same": f"the same {len(self.rows)} classes",
            "permuted": f"the same {len(self.rows)} classes in another order",
            "numbers": f"the same {len(self.rows)} classes by number",
            "subset": f"{len(self.rows)} of the model's classes",
        }[self.kind]


def match_classes(model_config: ModelConfig, data_names: Sequence[str]) -> ClassMatch | None:
    """Find each class of the data among a model's, by WordNet id or name.

    Returns None unless all are found.

    Names are compared in canonical form, then without case, underscores and hyphens. Each synonym of an ImageNet class
    counts, unless two classes share it. Folders 0 to 999 are ImageNet's classes in the order of
    their WordNet ids, as in ImageNetV2.
    """
    rows = _find_rows(model_config, data_names)
    # By number only if all thousand are there and the model's classes are ImageNet's.
    if set(data_names) == NUMBERS and is_imagenet(model_config.class_names or ()):
        exact = {name: row for row, name in enumerate(model_config.class_names or ())}
        wordnet_ids = load_imagenet_classes()[0]
        return ClassMatch(tuple(exact[wordnet_ids[int(name)]] for name in data_names), "numbers")
    matched = tuple(row for row in rows if row is not None)
    if len(set(matched)) != len(rows):  # one is missing, or two classes match one logit
        return None
    if len(matched) < model_config.num_classes:
        return ClassMatch(matched, "subset")
    is_same = matched == tuple(range(model_config.num_classes))
    return ClassMatch(matched, "same" if is_same else "permuted")


def describe_lack(model_config: ModelConfig, names: Sequence[str], *, is_multilabel: bool) -> str:
    """Return why a model cannot label data, as the end of a sentence: `has 1 of 2 classes: no rose`."""
    if not model_config.num_classes:
        return "has no classifier"
    rows = _find_rows(model_config, names)
    missing = [name for name, row in zip(names, rows, strict=True) if row is None]
    if missing:
        more = f" and {len(missing) - MAX_LISTED} more" if len(missing) > MAX_LISTED else ""
        listed = ", ".join(missing[:MAX_LISTED])
        return f"has {len(names) - len(missing)} of {len(names)} classes: no {listed}{more}"
    if len(set(rows)) < len(rows):
        return "has one class for two of the data's"
    kinds = ("one label an image", "several labels an image")
    return f"is of {kinds[model_config.is_multilabel]}, the data of {kinds[is_multilabel]}"


def find_class(model_config: ModelConfig, name: str) -> int:
    """Return the logit of a class by class name, label, synonym, WordNet id or number.

    Spelled as for `match_classes`; a class that is called `7` goes before the class numbered 7.

    Raises:
        ConfigError: no class has this name, or several have.
    """
    spelling = _normalize_name(name)
    exact = {class_name: row for row, class_name in enumerate(model_config.class_names or ())}
    spellings = _index_spellings(model_config)
    row = exact.get(name, spellings.get(spelling))
    # isdecimal accepts other scripts' digits, and int() of thousands of digits raises.
    is_number = name.isascii() and name.isdecimal() and len(name) < 8
    if row is None and is_number and int(name) < model_config.num_classes:
        row = int(name)
    if row is not None:
        return row
    ambiguous = [
        n
        for n, label in enumerate(model_config.descriptions or ())
        if spelling in map(_normalize_name, label.split(","))
    ]
    if ambiguous:
        raise ConfigError(
            f"{len(ambiguous)} classes are called {name!r}.",
            f"Give the class by number: {', '.join(map(str, ambiguous))}.",
        )
    # `cat` is part of several names: "tiger cat", "Persian cat", ...
    containing = [other for other in spellings if f" {spelling} " in f" {other} "]
    if name.lstrip("-").isdecimal():
        hint = ""
    elif containing:
        hint = f"Did you mean {' or '.join(map(repr, containing[:MAX_SUGGESTIONS]))}?"
    else:
        hint = did_you_mean(spelling, spellings)
    raise ConfigError(
        f"The model has no class {name!r}.",
        hint or f"Classes may also be given by number, 0 to {model_config.num_classes - 1}.",
    )


def _find_rows(model_config: ModelConfig, data_names: Sequence[str]) -> list[int | None]:
    """Return each name's logit; None without one."""
    rows = find_names(data_names, model_config.class_names or ())
    if None in rows:
        index = _index_spellings(model_config)
        rows = [index.get(_normalize_name(name)) for name in data_names]
    return rows


def _index_spellings(model_config: ModelConfig) -> dict[str, int]:
    """Map normalized names to logits.

    Class names go before descriptions, these before synonyms; ambiguous ones are left out.
    """
    names, descriptions = model_config.class_names or (), model_config.descriptions or ()
    synonyms = [(row, part) for row, name in enumerate(descriptions) for part in name.split(",")]
    index: dict[str, int] = {}
    for level in (list(enumerate(names)), list(enumerate(descriptions)), synonyms):
        rows: dict[str, set[int]] = {}
        for row, name in level:
            rows.setdefault(_normalize_name(name), set()).add(row)
        # ImageNet has two cranes and two maillots: an ambiguous synonym must not choose one of
        # them.
        index = {spelling: min(r) for spelling, r in rows.items() if len(r) == 1} | index
    return index


def _normalize_name(name: str) -> str:
    # not a sign: `-1` and `B-` are other classes than `1` and `B`
    name = re.sub(r"(?<=\w)-(?=\w)", " ", canonicalize_name(name).replace("_", " "))
    return " ".join(name.lower().split())


def is_imagenet(class_names: Sequence[str]) -> bool:
    """Whether a dataset has exactly the WordNet ids of ImageNet-1k."""
    return set(load_imagenet_classes()[0]) == set(class_names)


def describe_classes(class_names: Sequence[str]) -> tuple[str, ...] | None:
    """Return readable names where all classes are WordNet ids of ImageNet-1k, else None."""
    labels = dict(zip(*load_imagenet_classes(), strict=True))
    if not all(name in labels for name in class_names):
        return None
    return tuple(labels[name] for name in class_names)

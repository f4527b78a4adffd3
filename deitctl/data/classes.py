"""Matching the classes of two parties by name, never by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deitctl.errors import ConfigError, did_you_mean
from deitctl.models.catalog import load_imagenet_classes
from deitctl.models.model_config import ModelConfig

MOST_NAMED = 4
NUMBERS = frozenset(map(str, range(1000)))


@dataclass(frozen=True)
class ClassMatch:
    """Where the data's classes stand in a model's logits."""

    rows: tuple[int, ...]
    """For each class of the data, its logit."""
    kind: str
    """`same`, `permuted` (same classes, other order), `subset` (the model knows more), or `numbers` (ImageNetV2's folders)."""

    def __str__(self) -> str:
        return {
            "same": f"the same {len(self.rows)} classes",
            "permuted": f"the same {len(self.rows)} classes in another order",
            "numbers": f"the same {len(self.rows)} classes by number",
            "subset": f"{len(self.rows)} of the model's classes",
        }[self.kind]


def match_classes(model_config: ModelConfig, data_names: Sequence[str]) -> ClassMatch | None:
    """Find each of the data's classes in a model's by WordNet id or name; None unless all are found.

    Names are compared without case, underscores and hyphens; each synonym of an ImageNet class counts, unless two
    classes share it. Folders called 0 to 999 mean ImageNet's classes in the order of their WordNet ids, which is how
    ImageNetV2 is published.
    """
    exact = {name: row for row, name in enumerate(model_config.class_names or ())}
    rows: list[int | None] = [exact.get(name) for name in data_names]
    if None in rows:
        index = _spellings(model_config)
        rows = [index.get(_plain(name)) for name in data_names]
    if set(data_names) == NUMBERS and is_imagenet(model_config.class_names or ()):
        return ClassMatch(
            tuple(exact[load_imagenet_classes()[0][int(name)]] for name in data_names), "numbers"
        )
    if any(row is None for row in rows) or len(set(rows)) != len(rows):
        return None
    found = tuple(row for row in rows if row is not None)
    if len(found) < model_config.num_classes:
        return ClassMatch(found, "subset")
    return ClassMatch(
        found, "same" if found == tuple(range(model_config.num_classes)) else "permuted"
    )


def find_class(model_config: ModelConfig, name: str) -> int:
    """Return the logit of a class that a person names: by its name, label, a synonym, WordNet id or number.

    Spelled as `match_classes` has it; a class that is called `7` comes before the one numbered 7.

    Raises:
        ConfigError: no class is called so, or more than one.
    """
    exact, spelled = (
        {known: row for row, known in enumerate(model_config.class_names or ())},
        _spellings(model_config),
    )
    row = exact.get(name, spelled.get(_plain(name)))
    if (
        row is None
        and name.isascii()
        and name.isdecimal()
        and len(name) < 8
        and int(name) < model_config.num_classes
    ):
        row = int(name)
    if row is not None:
        return row
    same = [
        n
        for n, label in enumerate(model_config.descriptions or ())
        if _plain(name) in map(_plain, label.split(","))
    ]
    if same:
        raise ConfigError(
            f"{name!r} is {len(same)} classes.",
            f"Say which by number: {', '.join(map(str, same))}.",
        )
    word = f" {_plain(name)} "
    named = [known for known in spelled if word in f" {known} "][
        :MOST_NAMED
    ]  # of a cat there are several kinds
    hint = (
        f"Did you mean {' or '.join(map(repr, named))}?"
        if named
        else did_you_mean(_plain(name), spelled)
    )
    hint = (
        not name.lstrip("-").isdecimal() and hint
    ) or f"Numbers from 0 to {model_config.num_classes - 1} name classes too."
    raise ConfigError(f"The model has no class {name!r}.", hint)


def _spellings(model_config: ModelConfig) -> dict[str, int]:
    """Map spellings to logits: class names before whole descriptions before their synonyms, unless two classes share it."""
    names, described = model_config.class_names or (), model_config.descriptions or ()
    synonyms = [(row, part) for row, name in enumerate(described) for part in name.split(",")]
    index: dict[str, int] = {}
    for level in (list(enumerate(names)), list(enumerate(described)), synonyms):
        rows: dict[str, set[int]] = {}
        for row, name in level:
            rows.setdefault(_plain(name), set()).add(row)
        index = {spelling: min(r) for spelling, r in rows.items() if len(r) == 1} | index
    return index


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())


def is_imagenet(class_names: Sequence[str]) -> bool:
    """Say whether a data set has all of ImageNet-1k's classes, by WordNet id."""
    return set(load_imagenet_classes()[0]) == set(class_names)


def describe_classes(class_names: Sequence[str]) -> tuple[str, ...] | None:
    """Return names for people where the data's classes are all WordNet ids of ImageNet's, else None."""
    known = dict(zip(*load_imagenet_classes(), strict=True))
    return tuple(known[n] for n in class_names) if all(n in known for n in class_names) else None

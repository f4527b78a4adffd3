"""What is wrong with the classes of a data set: names that do not match, orders that differ, too few images."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from deitctl.checks.findings import ERROR, WARNING, Finding, Remedy, found, listed
from deitctl.checks.survey import WHOLE, Split
from deitctl.recipes import RECIPES

FEW = 5
"""Images that a class needs in each part."""
IMBALANCE = 20
IMAGENET_CLASSES = 1000


def check_classes(parts: Sequence[Split]) -> Iterator[Finding]:
    """Compare the classes within and between the parts of a data set."""
    labeled = {part.name: part for part in parts if part.labeled}
    yield from found(
        "part_missing", len(parts) == 1 and parts[0].name != WHOLE, [p.name for p in parts]
    )
    train, val = labeled.get("train"), labeled.get("val")
    if train is not None and val is not None:
        yield from _between(train.source.class_names, val.source.class_names)
    for part in labeled.values():
        yield from _within(part)
    learned = train or labeled.get(WHOLE)
    if learned is not None:
        yield from _enough(learned)
    yield from _spellings(list(labeled.values()))
    small = [
        f"{p.name}/{name}: {n}"
        for p in labeled.values()
        for name, n in images_by_class(p).items()
        if n < FEW
    ]
    yield from found("few_images", len(small), small)


def images_by_class(part: Split) -> dict[str, int]:
    """Count the images of every class that has any."""
    counts = np.bincount(part.source.labels, minlength=len(part.source.class_names))
    return dict(zip(part.source.class_names, counts.tolist(), strict=True))


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Return the key by which timm sorts class folders: numbers by value, letters without case."""
    pieces = re.split(r"(\d+)", name.lower())
    return [(p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in pieces]


def plain_name(name: str) -> str:
    """Return what is left of a class name without case, spaces, underscores, hyphens and Unicode's ways to write it."""
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())


def _between(train: Sequence[str], val: Sequence[str]) -> Iterator[Finding]:
    strangers, untested = sorted(set(val) - set(train)), sorted(set(train) - set(val))
    yield from found("class_only_in_val", len(strangers), strangers)
    yield from found("class_only_in_train", len(untested), untested)


def _within(part: Split) -> Iterator[Finding]:
    names = sorted({*part.source.class_names, *part.empty})
    empty = [str(Path(part.root) / name) for name in part.empty]
    yield from found(
        "empty_class",
        len(empty),
        empty,
        remedies=listed(empty, lambda f: Remedy(f, "empty_class", "delete")),
    )
    natural = sorted(names, key=natural_key)
    moved = [(a, b) for a, b in zip(names, natural, strict=True) if a != b]
    where = (
        f"{part.name}: number {names.index(moved[0][0])} is {moved[0][0]!r} or {moved[0][1]!r}"
        if moved
        else ""
    )
    yield from found("folder_order", len(moved), [where])
    numbers = {int(name) for name in names if name.isdecimal()}
    numbered = len(names) == IMAGENET_CLASSES and numbers in (
        set(range(IMAGENET_CLASSES)),
        set(range(1, IMAGENET_CLASSES + 1)),
    )
    yield from found("numbered_imagenet", numbered, [f"{part.name}: {names[0]} to {names[-1]}"])


def _enough(part: Split) -> Iterator[Finding]:
    counts = images_by_class(part)
    yield from found(
        "too_few_classes", len(counts) < 2, [f"{part.root or part.name}: {', '.join(counts)}"]
    )
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    example = f"{most}: {counts[most]}, {least}: {counts[least]}"
    yield from found("imbalance", counts[most] > IMBALANCE * counts[least], [example])
    total, batch = sum(counts.values()), RECIPES["finetune"].batch_size
    yield from found("small_part", total < batch, [f"{part.name}: {total}, a batch: {batch}"])


def _spellings(parts: Sequence[Split]) -> Iterator[Finding]:
    """Find names that are one name in several spellings; between parts that keeps their classes apart."""
    where: dict[str, dict[str, list[Split]]] = {}
    for part in parts:
        for name in (*part.source.class_names, *part.empty):
            where.setdefault(plain_name(name), {}).setdefault(name, []).append(part)
    alike = [spellings for spellings in where.values() if len(spellings) > 1]
    examples = (
        " / ".join(f"{p[0].name}/{name!r}" for name, p in spellings.items()) for spellings in alike
    )
    lacking = any(len(p) < len(parts) for spellings in alike for p in spellings.values())
    severity = ERROR if len(parts) > 1 and lacking else WARNING
    yield from found(
        "similar_class_names",
        len(alike),
        examples,
        severity=severity,
        remedies=lambda: _renames(alike),
    )


def _renames(alike: Iterable[dict[str, list[Split]]]) -> Iterator[Remedy]:
    """Give every folder the spelling that comes first, which is training's."""
    for spellings in alike:
        first, *others = spellings
        for name in others:
            for part in spellings[name]:
                if part.root:
                    root, action = (
                        Path(part.root),
                        "merge" if part in spellings[first] else "rename",
                    )
                    yield Remedy(str(root / name), "similar_class_names", action, str(root / first))

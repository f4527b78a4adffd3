"""Checks of classes: names that do not match, sort orders that differ, too few images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from deitctl.checks.issues import ERROR, WARNING, Issue, Remedy, make_remedies, report
from deitctl.checks.labels import check_labels
from deitctl.checks.survey import ALL, Split
from deitctl.data.labels import count_images
from deitctl.data.several_labels import drop_unused
from deitctl.names import reduce_name

MIN_IMAGES = 5
"""Of a class, to train on."""
FEW_IMAGES = 50  # of which a held-out fifth is ten
MAX_IMBALANCE = 20
IMAGENET_CLASSES = 1000


def check_classes(splits: Sequence[Split]) -> Iterator[Issue]:
    """Compare the classes within and between the splits of a data set."""
    # Of several labels an image a split has the classes of all, whether its images have them or not.
    labeled = {
        split.name: replace(split, dataset=drop_unused(split.dataset)[0])
        for split in splits
        if split.labeled
    }
    names = [split.name for split in splits]
    # of training images alone a fifth is held out
    yield from report("missing_split", bool(names) and not {"train", ALL} & {*names}, names)
    train, val = labeled.get("train"), labeled.get("val", labeled.get("test"))
    if train is not None and val is not None:
        yield from _compare(train.dataset.class_names, val.dataset.class_names)
    for split in labeled.values():
        yield from _check_names(split)
        if split.dataset.is_multilabel:
            yield from check_labels(split)
    # validation may be small, and of other proportions
    trained = train or labeled.get(ALL)
    if trained is not None:
        yield from _check_counts(trained)
    yield from _find_similar_names(list(labeled.values()))


def count_by_class(split: Split) -> dict[str, int]:
    """Return the number of images of each class of a split."""
    class_names = split.dataset.class_names
    counts = count_images(split.dataset)
    return dict(zip(class_names, counts.tolist(), strict=True))


def make_natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Return the key by which timm sorts class folders: numbers by value, letters without case."""
    pieces = re.split(r"(\d+)", name.lower())
    return [(p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in pieces]


def _compare(train: Sequence[str], val: Sequence[str]) -> Iterator[Issue]:
    only_val, only_train = sorted(set(val) - set(train)), sorted(set(train) - set(val))
    yield from report("class_only_in_val", len(only_val), only_val)
    yield from report("class_only_in_train", len(only_train), only_train)


def _check_names(split: Split) -> Iterator[Issue]:
    names = sorted({*split.dataset.class_names, *split.empty})
    empty = [str(Path(split.root) / name) for name in split.empty]
    deletions = make_remedies(empty, lambda folder: Remedy(folder, "empty_class", "delete"))
    yield from report("empty_class", len(empty), empty, remedies=deletions)
    natural = sorted(names, key=make_natural_key)
    moved = [(a, b) for a, b in zip(names, natural, strict=True) if a != b]
    # one pair shows it: a class out of order shifts all that follow
    examples = [f"{split.name}: number {names.index(a)} is {a!r} or {b!r}" for a, b in moved[:1]]
    yield from report("folder_order", len(moved), examples)
    numbers = {int(name) for name in names if name.isdecimal()}
    # Caffe counts from 0, the devkit from 1
    first = min(numbers, default=0)
    numbered = (
        len(names) == len(numbers) == IMAGENET_CLASSES
        and first in (0, 1)
        and numbers == set(range(first, first + IMAGENET_CLASSES))
    )
    yield from report("numbered_imagenet", numbered, [f"{split.name}: {names[0]} to {names[-1]}"])


def _check_counts(split: Split) -> Iterator[Issue]:
    counts = count_by_class(split)
    yield from report(
        "too_few_classes", len(counts) < 2, [f"{split.root or split.name}: {', '.join(counts)}"]
    )
    smallest, largest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    example = f"{largest}: {counts[largest]}, {smallest}: {counts[smallest]}"
    yield from report("imbalance", counts[largest] > MAX_IMBALANCE * counts[smallest], [example])
    total = len(split.dataset.labels)
    yield from report("small_split", total < FEW_IMAGES, [f"{split.name}: {total}"])
    small = [f"{split.name}/{name}: {n}" for name, n in counts.items() if n < MIN_IMAGES]
    yield from report("few_images", len(small), small)


def _find_similar_names(splits: Sequence[Split]) -> Iterator[Issue]:
    """Find several spellings of one name, an error where classes of splits do not match by it."""
    by_name: dict[str, dict[str, list[Split]]] = {}
    for split in splits:
        # empty folders too: `train` leaves them out, and other tools do not
        for name in (*split.dataset.class_names, *split.empty):
            by_name.setdefault(reduce_name(name), {}).setdefault(name, []).append(split)
    similar = [spellings for spellings in by_name.values() if len(spellings) > 1]
    examples = (
        " / ".join(f"{where[0].name}/{name!r}" for name, where in spellings.items())
        for spellings in similar
    )
    unmatched = any(
        len(where) < len(splits) for spellings in similar for where in spellings.values()
    )
    yield from report(
        "similar_class_names",
        len(similar),
        examples,
        severity=ERROR if len(splits) > 1 and unmatched else WARNING,
        remedies=lambda: _rename(similar),
    )


def _rename(similar: Iterable[dict[str, list[Split]]]) -> Iterator[Remedy]:
    """Give every folder the first spelling, which is training's."""
    for spellings in similar:
        first, *others = spellings
        for name in others:
            for split in spellings[name]:
                if split.root:
                    root = Path(split.root)
                    # a split with both spellings has two folders, which become one
                    action = "merge" if split in spellings[first] else "rename"
                    yield Remedy(str(root / name), "similar_class_names", action, str(root / first))

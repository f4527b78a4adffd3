"""Which class a sample of a shard has, and how the classes are named.

Letters: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from deitctl.data.dataset import Labels
from deitctl.data.layout import match_split
from deitctl.data.readers.sample_labels import CLASS_SUFFIXES, LABEL_FIELDS, TEXT, Label
from deitctl.errors import DataError
from deitctl.models.catalog import load_imagenet_classes
from deitctl.names import canonicalize_name

COLUMNS = (*CLASS_SUFFIXES, *(f"json.{name}" for name in LABEL_FIELDS), "json", TEXT)
"""That may hold the label, in the order of preference."""
IMAGENET_CLASSES = 1000
MIN_CAPTIONS = 20
"""Texts from which on it shows whether they repeat, as names of classes do."""


@dataclass(frozen=True)
class SampleLabels:
    """The label of each sample, and all classes."""

    labels: Labels
    """[N]: -1 for a sample without one; of several labels bool [N,K]."""
    has_label: np.ndarray[tuple[int], np.dtype[np.bool_]]
    """[N]."""
    class_names: tuple[str, ...]
    note: str = ""
    """Where the names are from, if that had to be decided."""


def choose_column(counts: Mapping[str, int]) -> str:
    """Return the column that the labels are read from: the first that most samples have; empty for none."""
    most = max((counts.get(column, 0) for column in COLUMNS), default=0)
    if not most:
        return ""
    # A few samples may lack a member, or have one more.
    return next(column for column in COLUMNS if counts.get(column, 0) >= 0.99 * most)


def number_samples(
    values: Sequence[Label | None],
    files: Sequence[str | None],
    names: Sequence[str],
    has_texts: bool,
    name_sample: Callable[[int], str],
    data: str,
) -> SampleLabels:
    """Return the labels of samples as numbers of classes, and the names of those.

    Args:
        values: label of each sample, [N], None where it has none.
        files: path of each image before it was put into a shard, else in it, [N]; None for one without
            a folder.
        names: of the classes by number, as what lies beside the shards has them; may be empty.
        has_texts: whether some are from a `TEXT`, which may be a caption.
        name_sample: returns the name of a sample by its place, for messages.
        data: name of the data, for messages.

    Raises:
        DataError: the labels are captions, are of different kinds, or are numbers without a name.
    """
    values, note = _unify(values, names, name_sample, data)
    has_label = np.array([value is not None for value in values], np.bool_)
    flat = [one for value in values for one in _iterate(value)]
    number: dict[int | str, int]
    if numbers := [one for one in flat if isinstance(one, int)]:
        used = sorted(set(numbers))
        class_names, guess = _name_numbers(used, values, files, names, data)
        note = note or guess
        number = {one: one if names else at for at, one in enumerate(used)}
    else:
        texts = [one for one in flat if isinstance(one, str)]
        if has_texts:
            _refuse_captions(texts, data)
        class_names = tuple(sorted(set(texts)))
        number = {name: at for at, name in enumerate(class_names)}
    if not any(isinstance(value, tuple) for value in values):
        places = [number[one] for one in flat]
        single = np.full(len(values), -1, np.int64)
        single[has_label] = places
        return SampleLabels(single, has_label, class_names, note)
    multi = np.zeros((len(values), len(class_names)), np.bool_)
    for row, value in enumerate(values):
        multi[row, [number[one] for one in _iterate(value)]] = True
    return SampleLabels(multi, has_label, class_names, note)


def _iterate(value: Label | None) -> Sequence[int | str]:
    return () if value is None else value if isinstance(value, tuple) else (value,)


def _unify(
    values: Sequence[Label | None],
    names: Sequence[str],
    name_sample: Callable[[int], str],
    data: str,
) -> tuple[Sequence[Label | None], str]:
    """Return labels of one kind, and a note where it was not clear: numbers or names.

    Those of 0 and 1 for every class become numbers of classes.
    """
    if len({type(one) for value in values for one in _iterate(value)}) > 1:  # a class is called "7"
        note = _describe_kinds(values, names, name_sample, data)
        return [None if value is None else _to_text(value) for value in values], note
    lists = [value for value in values if isinstance(value, tuple)]
    num_labels = sum(value is not None for value in values)
    if not lists or len(lists) < num_labels or len({len(value) for value in lists}) > 1:
        return values, ""
    is_binary = all(one in (0, 1) for value in lists for one in value)
    if not is_binary or len(lists[0]) < 2:
        return values, ""
    if len(lists[0]) == 2 and len(set(lists)) == 1 and len(set(lists[0])) == 2:
        raise DataError(
            f"{data}: all labels are {list(lists[0])}, which may be the classes 0 and 1, or a 0 and a 1 for "
            "each of two classes.",
            "Write the number of the class instead.",
        )
    return [
        tuple(at for at, one in enumerate(_iterate(value)) if one) if value is not None else None
        for value in values
    ], ""


def _describe_kinds(
    values: Sequence[Label | None],
    names: Sequence[str],
    name_sample: Callable[[int], str],
    data: str,
) -> str:
    """Return a note about labels of which some are numbers and some names.

    Raises:
        DataError: a few are of the other kind, as by mistake, or there is a list of names for the numbers.
    """
    is_number = [
        all(isinstance(one, int) or one.isdecimal() for one in _iterate(value)) for value in values
    ]
    num_names, count = len(values) - sum(is_number), len(values)
    num_few = min(num_names, count - num_names)
    if not num_names and not names:
        return ""  # "007" among numbers
    if names or num_few < count / 100 or (num_few == 1 and count >= 10):
        few_are_numbers = num_names > count / 2
        at = is_number.index(few_are_numbers) if num_names else 0
        raise DataError(
            f"{data}: the label of {name_sample(at)} is {values[at]!r:.60}, and those of "
            f"{count - num_few:,} of the {count:,} samples are {'names' if few_are_numbers else 'numbers'}.",
            "Correct it: all labels are numbers, or all are names.",
        )
    return (
        f"{num_names:,} of the {count:,} labels are names, so that the numbers are read as names."
    )


def _to_text(value: Label) -> Label:
    return tuple(map(str, value)) if isinstance(value, tuple) else str(value)


def _refuse_captions(texts: Sequence[str], data: str) -> None:
    """Raise `DataError` for texts that are no names of classes: nearly every one is different."""
    if len(texts) >= MIN_CAPTIONS and len(set(texts)) > len(texts) / 2:
        raise DataError(
            f"{data}: the .txt of a sample is a caption ({texts[0]!r:.60}), not the name of a class: "
            f"{len(set(texts)):,} of {len(texts):,} are different.",
            "Images without labels are for --unlabelled; labels go into a .cls beside each image.",
        )


def _name_numbers(
    used: Sequence[int],
    values: Sequence[Label | None],
    files: Sequence[str | None],
    names: Sequence[str],
    data: str,
) -> tuple[tuple[str, ...], str]:
    """Return the names of the classes that labels number, and where they are from if that is a guess."""
    if names:
        if used[-1] >= len(names):
            raise DataError(
                f"{data} has the label {used[-1]}, and the list of classes beside it has "
                f"{len(names)} names, for 0 to {len(names) - 1}.",
                "Correct the list.",
            )
        if len(set(names)) < len(names):
            raise DataError(f"{data}: the list of classes beside it has a name twice.")
        return tuple(names), ""
    if folders := _name_by_folders(values, files):
        return tuple(folders[number] for number in used), ""
    if used == list(range(IMAGENET_CLASSES)):
        return load_imagenet_classes()[0], (
            "The labels 0 to 999 have no names: they are read as ImageNet's classes."
        )
    return tuple(map(str, used)), ""


def _name_by_folders(
    values: Sequence[Label | None], files: Sequence[str | None]
) -> dict[int, str] | None:
    """Return the class folder of each label, if the files' paths tell one for each and no two the same."""
    folders = map_folders(values, files)
    if folders is None or not all(isinstance(value, int) for value in folders):
        return None
    return {value: folder for value, folder in folders.items() if isinstance(value, int)}


def map_folders(
    values: Sequence[Label | None], files: Sequence[str | None]
) -> dict[Label, str] | None:
    """Return the class folder of each label; None if some have none or several, or two have the same."""
    folders = dict[Label, str]()
    for value, file in zip(values, files, strict=True):
        folder = find_class_folder(file) if file else ""
        if value is None:
            continue
        if not folder or folders.setdefault(value, folder) != folder:
            return None
    return folders if len(set(folders.values())) == len(folders) else None


def shorten_file(file: str) -> str:
    """Return the path of an image below its data set: `/data/train/rose/1.jpg` is `rose/1.jpg`."""
    parts = [part for part in file.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    is_absolute = file.startswith(("/", "\\")) or file[1:2] == ":"
    for at in range(len(parts) - 2, -1, -1):
        if _match_split(parts[at]):
            return "/".join(parts[at + 1 :])
    return "/".join(parts[-2:] if is_absolute else parts)


_canonicalize = lru_cache(100_000)(canonicalize_name)
_match_split = lru_cache(100_000)(match_split)
"""Class folders repeat."""


def find_class_folder(file: str) -> str:
    """Return the class folder in an image's path, empty for none."""
    folder, slash, _ = shorten_file(file).partition("/")
    return _canonicalize(folder) if slash else ""

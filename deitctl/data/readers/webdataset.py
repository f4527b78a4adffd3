"""WebDataset shards: samples are members that follow each other and have one key, an image and its label.

Letters: N images, M samples of a shard.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import StringArray
from deitctl.data.index import Listing
from deitctl.data.readers.sample_classes import (
    choose_column,
    find_class_folder,
    map_folders,
    number_samples,
    shorten_file,
)
from deitctl.data.readers.sample_labels import CLASS_SUFFIXES, FILE, TEXT, Label
from deitctl.data.readers.sample_names import name_images
from deitctl.data.readers.shard_contents import ShardContents, join_spans
from deitctl.data.shard_files import Spans
from deitctl.data.stores.address import get_name
from deitctl.errors import DataError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
"""Of the image of a sample that has several images, in the order of preference, as timm's."""
INPUT_NAMES = ("input", "image", "img")
"""Before the extension of the image, where others are masks: `input.jpg`, `mask.png`."""

HINT = "A sample is KEY.jpg and KEY.cls, one after the other; a key ends at the first dot."


@dataclass
class _Counts:
    """Samples that are left out."""

    no_image: int = 0
    no_label: int = 0
    several: int = 0
    repeated: int = 0

    def describe(self) -> str:
        parts = [
            (self.no_image, "without an image"),
            (self.no_label, "without a label"),
            (self.several, "with several images, of which none is the input"),
            (self.repeated, "with two members of one name"),
        ]
        return ", ".join(f"{count:,} {words}" for count, words in parts if count)


@dataclass
class _Chosen:
    """The images of a shard that are samples, N of them."""

    places: NDArray[np.int64]
    """Of each image among those of the shard, [N]."""
    values: list[Label | None]
    files: list[str | None]


def has_samples(contents: Sequence[ShardContents]) -> bool:
    """Whether the images of shards are labeled by the members beside them."""
    counts = _count_columns(contents)
    num_images = sum(len(shard.names) for shard in contents)
    if any(_has_class_members(shard) for shard in contents):
        return True
    is_flat = all("/" not in name for shard in contents for name in shard.names[:100])
    # A few files beside images in class folders are about them, as boxes are.
    fewest = 0 if is_flat else num_images / 2
    if any(count > fewest for column, count in counts.items() if column.startswith("json")):
        return True
    return is_flat and counts[TEXT] > num_images / 2


def _has_class_members(shard: ShardContents) -> bool:
    """Whether an image has a member that holds nothing but its label."""
    labeled = [shard.labels[suffix] for suffix in CLASS_SUFFIXES if suffix in shard.labels]
    samples = shard.samples.tolist() if labeled else ()
    return any(sample in own for own in labeled for sample in samples)


def list_samples(
    contents: Sequence[ShardContents],
    parts: Mapping[str, Sequence[int]],
    shards: Sequence[str],
    class_names: Sequence[str],
    data: str,
) -> dict[str, Listing]:
    """Return the samples of shards by split, in the order in which they are stored.

    Args:
        contents: of each shard.
        parts: numbers of the shards of each split.
        shards: path of each.
        class_names: by the number in a label, as what lies beside the shards has them; may be empty.
        data: name of the data, for messages.

    Raises:
        DataError: there is no sample with an image and a label, or the labels are not clear.
    """
    counts, order = _Counts(), [number for part in parts.values() for number in part]
    chosen, columns = dict[int, _Chosen](), set[str]()
    for split, numbers in parts.items():
        column = choose_column(_count_columns([contents[number] for number in numbers]))
        chosen |= {number: _choose(contents[number], column, counts) for number in numbers}
        columns.add(column)
        if split in ("train", "val") and not any(chosen[number].values for number in numbers):
            raise DataError(
                f"{data} has no sample with an image and a label in its {split} split.", HINT
            )
    values = [value for number in order for value in chosen[number].values]
    files = _list_paths(order, contents, chosen)

    def name_sample(at: int) -> str:
        number, name = next(islice(_iterate_members(order, contents, chosen), at, None))
        return f"{get_name(shards[number])}:{name}"

    labels = number_samples(
        values,
        files,
        class_names,
        TEXT in columns,
        name_sample,
        data,
    )
    left_out = counts.describe()
    if not labels.has_label.any():
        raise DataError(
            f"{data} has no sample with an image and a label{left_out and ': '}{left_out}.", HINT
        )
    warning = f"Samples that are left out: {left_out}." if left_out else ""
    note = labels.note or _describe_folders(columns, values, files)
    words = f"{note}\n{warning}".rstrip()
    listings, start = {}, 0
    for split, numbers in parts.items():
        names, spans = _join(numbers, contents, chosen, shards)
        own = labels.labels[start : start + len(names)]
        start += len(names)
        listings[split] = Listing(names, own, labels.class_names, spans, layout=words)
    unread = sum((Counter(shard.unread) for shard in contents), Counter[str]())
    first = next(iter(listings))
    listings[first] = Listing(**{**vars(listings[first]), "unread": dict(unread)})
    return listings


def _list_paths(
    order: Sequence[int], contents: Sequence[ShardContents], chosen: Mapping[int, _Chosen]
) -> list[str | None]:
    """Return the path of each sample's image: that in its JSON, else in its shard if there are folders."""
    files = [file for number in order for file in chosen[number].files]
    if all(files) or not any((contents[number].names.blob == ord("/")).any() for number in order):
        return files
    paths = [name for _, name in _iterate_members(order, contents, chosen)]
    if len({path.rpartition("/")[0] for path in paths}) < 2:
        return files
    return [file or path for file, path in zip(files, paths, strict=True)]


def _iterate_members(
    order: Sequence[int], contents: Sequence[ShardContents], chosen: Mapping[int, _Chosen]
) -> Iterator[tuple[int, str]]:
    """Yield the shard and the member of each sample's image."""
    for number in order:
        names = contents[number].names
        yield from ((number, names[place]) for place in chosen[number].places.tolist())


def _describe_folders(
    columns: Collection[str], values: Sequence[Label | None], files: Sequence[str | None]
) -> str:
    """Return a note if images lie in folders of other classes than their JSON says."""
    if not any(column.startswith("json") for column in columns):
        return ""
    folders = {find_class_folder(file) for file in files if file}
    folders = {folder for folder in folders if folder and not folder.isdecimal()}
    if len(folders) < 2 or map_folders(values, files) is not None:
        return ""
    return (
        f"The classes are those of the .json beside each image, not the {len(folders):,} folders that "
        "images lie in."
    )


def _count_columns(contents: Sequence[ShardContents]) -> Counter[str]:
    return sum(
        (Counter({c: len(v) for c, v in shard.labels.items()}) for shard in contents),
        Counter[str](),
    )


def _choose(shard: ShardContents, column: str, counts: _Counts) -> _Chosen:
    """Return the image of each sample of a shard, and count those that are left out."""
    values, files = shard.labels.get(column, {}), shard.labels.get(FILE, {})
    places = list[int]()
    samples = shard.samples.tolist()
    images: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        images.setdefault(sample, []).append(place)
    for sample, own in images.items():
        if sample in shard.repeated:
            counts.repeated += 1
        elif sample < 0 or sample not in values:
            counts.no_label += 1
        elif (place := own[0] if len(own) == 1 else _find_input(shard.names, own)) < 0:
            counts.several += 1
        else:
            places.append(place)
    counts.no_image += len(values.keys() - images.keys())
    return _Chosen(
        np.array(places, np.int64),
        [values[samples[place]] for place in places],
        [file if isinstance(file := files.get(samples[place]), str) else None for place in places],
    )


def _find_input(names: Sequence[str], places: Sequence[int]) -> int:
    """Return which of a sample's images is the one to classify, -1 if that is not clear."""
    suffixes = {posixpath.basename(names[at]).partition(".")[2].lower(): at for at in places}
    plain = [suffix for suffix in suffixes if "." not in suffix]
    for suffix in (*IMAGE_SUFFIXES, *sorted(plain)):
        if suffix in suffixes:
            return suffixes[suffix]
    inputs = [at for suffix, at in suffixes.items() if suffix.split(".")[0] in INPUT_NAMES]
    return inputs[0] if len(inputs) == 1 else -1


def _join(
    numbers: Sequence[int],
    contents: Sequence[ShardContents],
    chosen: Mapping[int, _Chosen],
    shards: Sequence[str],
) -> tuple[StringArray, Spans]:
    """Return names and places of the samples of some shards."""
    spans = join_spans(contents, numbers, {number: chosen[number].places for number in numbers})

    def list_files() -> Iterator[tuple[str, str | None]]:
        files = (file for number in numbers for file in chosen[number].files)
        members = _iterate_members(numbers, contents, chosen)
        for (_, member), file in zip(members, files, strict=True):
            yield member, shorten_file(file) if file else None

    return name_images(shards, spans.shards, list_files), spans

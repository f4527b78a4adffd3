"""Put a data set into one file that every command reads as DATA, and check such a file against what it was made of."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.readers.tar import TarDataset
from deitctl.data.index import Listing
from deitctl.data.open import DatasetSplits, open_dataset
from deitctl.data.readers.pack import SUFFIX, PackDataset, is_pack, open_pack, write_pack
from deitctl.data.arrays import StringArray
from deitctl.errors import ConfigError, DataError
from deitctl.events import Reporter, SilentReporter, track
from deitctl.packing.encode import Form, Kept, digest_of, keep_all
from deitctl.paths import open_atomic, require_writable

EXAMPLES = 20
"""Differences that are told one by one."""
GLANCE = 8
"""Side to which images are brought that are held against each other."""
ALIKE = 4.0
"""Levels that they may differ by in the mean; 84 photographs encoded at 160 pixels differed by 0.3, from others by 31."""


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """A pack that was written."""

    path: Path
    data: str
    parts: Mapping[str, Mapping[str, int]]
    """Images and classes of each part: train, val or all."""
    copied: int
    """Images whose bytes are as they were, the unreadable ones among them."""
    encoded: int
    """Images that are stored in another form."""
    unreadable: tuple[str, ...]
    """What is wrong with each image that could not be read, or had to be decoded and could not be."""
    bytes_before: int
    """Of all images where they come from."""
    bytes_after: int
    """Of the pack."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        return {
            "path": str(self.path),
            "data": self.data,
            "parts": {name: dict(p) for name, p in self.parts.items()},
            "images": self.copied + self.encoded,
            "copied": self.copied,
            "encoded": self.encoded,
            "unreadable": list(self.unreadable),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True, kw_only=True)
class PackCheck:
    """A pack beside the data that it should be of."""

    path: Path
    data: str
    num_images: int
    different: int
    """Images, and whatever else is not the same."""
    examples: tuple[str, ...]
    """The first of them, in words."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        return {
            "path": str(self.path),
            "data": self.data,
            "num_images": self.num_images,
            "different": self.different,
            "examples": list(self.examples),
            "seconds": round(self.seconds, 2),
        }


def pack(
    data: str,
    out: str,
    *,
    max_size: int = 0,
    raw: bool = False,
    workers: int = -1,
    reporter: Reporter | None = None,
) -> PackResult:
    """Write the images of a data set, with their names, labels and parts, into one file.

    Args:
        data: anything that `open_dataset` opens.
        out: the file, which must end in .pack; another pack there is replaced, nothing else is.
        max_size: short side in pixels above which an image is made smaller and becomes a JPEG; 0: none is.
        raw: keep pixels, which need no decoding.
        workers: processes that decode and encode, 0 for none, -1 for one a core; they change nothing in the result.
        reporter: told of progress.

    Raises:
        DataError: no such data, or `out` is something else.
        ConfigError: `out` does not end in .pack, or a size below 0.
        DiskError: the file cannot be written.
    """
    reporter, start, path = (
        reporter or SilentReporter(),
        time.perf_counter(),
        Path(out).expanduser(),
    )
    if max_size < 0:
        raise ConfigError(f"max_size = {max_size}: an image has 1 pixel or more a side.")
    _require_place(path, data)
    found = open_dataset(data, reporter)
    datasets = parts_of(found)
    home = os.path.join(Path(found.name).parent, "")
    parts = {name: Listing(_names(s, home), s.labels, s.class_names) for name, s in datasets.items()}
    tally = _Tally()
    count = sum(len(s.labels) for s in datasets.values())
    images = keep_all([*datasets.values()], Form(max_size, raw), workers)
    with open_atomic(path, "OUT") as file, closing(images) as kept:
        size = write_pack(file, parts, tally.passing(track(kept, reporter, "pack", count)))
    return PackResult(
        path=path,
        data=found.name,
        parts={
            n or "all": {"images": len(s.labels), "classes": len(s.class_names)}
            for n, s in datasets.items()
        },
        copied=count - tally.encoded,
        encoded=tally.encoded,
        unreadable=tuple(tally.unreadable),
        bytes_before=tally.before,
        bytes_after=size,
        seconds=time.perf_counter() - start,
    )


def _require_place(path: Path, data: str) -> None:
    if path.suffix != SUFFIX:
        raise ConfigError(
            f"OUT {str(path)!r} must end in {SUFFIX}.", "That is how it is known for a pack."
        )
    if os.path.lexists(path) and not is_pack(path):
        raise DataError(f"{path} is there and is not a pack.", "Name another OUT.")
    if (
        path.exists()
        and Path(data).expanduser().exists()
        and path.samefile(Path(data).expanduser())
    ):
        raise DataError(f"{path} cannot be packed into itself.", "Name another OUT.")
    require_writable(path, "OUT")


def parts_of(data: DatasetSplits) -> dict[str, ImageDataset]:
    """Return the parts of a data set that have images by name; one without parts has the empty name."""
    parts = {"train": data.train, "val": data.val, "": data.unsplit}
    datasets = {
        name: dataset for name, dataset in parts.items() if dataset is not None and len(dataset.labels)
    }
    if not datasets:
        raise DataError(f"{data.name} has no images to pack.")
    return datasets


def _names(dataset: ImageDataset, home: str) -> StringArray:
    """Return what images are called below their part, or below `home`, the folder that a table lies in."""
    if isinstance(dataset, PackDataset):
        return dataset.names.with_prefix("")
    if isinstance(dataset, TarDataset):
        return StringArray.from_strings(dataset.members)
    if (
        isinstance(dataset, FileDataset)
        and isinstance(dataset.paths, StringArray)
        and dataset.paths.prefix
    ):
        return dataset.paths.with_prefix("")
    names = map(dataset.name, range(len(dataset.labels)))
    return StringArray.from_strings(
        name.removeprefix(home) if isinstance(dataset, FileDataset) else name for name in names
    )


class _Tally:
    """What became of the images."""

    def __init__(self) -> None:
        self.before = self.encoded = 0
        self.unreadable: list[str] = []

    def passing(self, images: Iterator[Kept]) -> Iterator[tuple[bytes, int]]:
        for kept in images:
            self.before += kept.before
            self.encoded += kept.encoded
            if kept.why:
                self.unreadable.append(kept.why)
            yield kept.data, kept.digest


def check_pack(data: str, out: str, *, reporter: Reporter | None = None) -> PackCheck:
    """Compare a pack with the data that it was made of: parts, classes, names, labels and every image's bytes.

    An image that was stored in another form is the same if the bytes that it was made of are, those that it is stored
    in are as they were written, and it looks as its source does.

    Raises:
        DataError: no such data, or no readable pack.
    """
    reporter, start, path = (
        reporter or SilentReporter(),
        time.perf_counter(),
        Path(out).expanduser(),
    )
    found = open_dataset(data, reporter)
    home = os.path.join(Path(found.name).parent, "")
    theirs, ours = parts_of(found), open_pack(path)
    different = 0
    examples: list[str] = []
    for what in _differences(theirs, ours, home, reporter):
        different += 1
        if len(examples) < EXAMPLES:
            examples.append(what)
    return PackCheck(
        path=path,
        data=found.name,
        num_images=sum(len(s.labels) for s in ours.values()),
        different=different,
        examples=tuple(examples),
        seconds=time.perf_counter() - start,
    )


def _differences(
    theirs: Mapping[str, ImageDataset], ours: Mapping[str, PackDataset], home: str, reporter: Reporter
) -> Iterator[str]:
    for part in sorted({*theirs, *ours}):
        said = f"The {part} part" if part else "The whole"
        if part not in theirs or part not in ours:
            yield f"{said} is only in the {'pack' if part in ours else 'data'}."
            continue
        yield from _in_part(theirs[part], ours[part], home, said, reporter)


def _in_part(
    dataset: ImageDataset, packed: PackDataset, home: str, said: str, reporter: Reporter
) -> Iterator[str]:
    if dataset.class_names != packed.class_names:
        yield f"{said} has other classes."
    names, known = _names(dataset, home), packed.names.with_prefix("")
    here = there = np.arange(len(known))
    if not np.array_equal(names.blob, known.blob) or not np.array_equal(names.ends, known.ends):
        here, there = _matched(known, names)
        yield from (
            f"{packed.name(i)} is only in the pack."
            for i in np.setdiff1d(np.arange(len(known)), here).tolist()
        )
        yield from (
            f"{dataset.name(i)} is only in the data."
            for i in np.setdiff1d(np.arange(len(names)), there).tolist()
        )
        if (np.diff(there) < 0).any():
            yield f"{said} has another order."
    for pair in track(
        zip(here.tolist(), there.tolist(), strict=True), reporter, "compare", len(here)
    ):
        if what := _in_image(packed, pair[0], dataset, pair[1]):
            yield what


def _matched(known: StringArray, names: StringArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of the names that are in both, in the order of the first."""
    place = {name: index for index, name in enumerate(names)}
    pairs = [(index, place.pop(name)) for index, name in enumerate(known) if name in place]
    here, there = np.array(pairs, np.int64).reshape(-1, 2).T
    return here, there


def _in_image(packed: PackDataset, here: int, dataset: ImageDataset, there: int) -> str:
    """Say what is different in an image; empty if nothing is."""
    label, its = dataset.class_names[dataset.labels[there]], packed.class_names[packed.labels[here]]
    if label != its:
        return f"{packed.name(here)} is of class {its!r}, and of {label!r} in the data."
    try:
        kept = packed.read_bytes(here)
    except DataError as error:
        return error.message
    try:
        data = dataset.read_bytes(there)
    except DataError as error:
        return "" if not packed.digests[here] else error.message
    if digest_of(data) != packed.digests[here]:
        return f"{dataset.name(there)} is not what was packed."
    if kept != data and not looks_the_same(packed, here, dataset, there):
        return f"{packed.name(here)} is another image than {dataset.name(there)}."
    return ""


def looks_the_same(packed: PackDataset, here: int, dataset: ImageDataset, there: int) -> bool:
    """Say whether an image that was encoded anew is still the one of the data, but for what encoding loses."""
    try:
        one, other = (
            np.asarray(read(index).resize((GLANCE, GLANCE), Image.Resampling.BICUBIC), np.float32)
            for read, index in ((packed.read, here), (dataset.read, there))
        )
    except DataError:  # damaged, and packed so
        return False
    return float(np.abs(one - other).mean()) <= ALIKE

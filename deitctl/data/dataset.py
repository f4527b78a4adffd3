"""Where images and labels come from: class folders, tars of them, tables, the built-in digits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl import rng
from deitctl.data.decode import MAX_BYTES, decode, read_bytes
from deitctl.data.lazy_jpeg import LazyJpeg, open_image
from deitctl.errors import DataError

Labels = NDArray[np.int64]


class Source(Protocol):
    """Images with labels: `labels[i]` indexes `class_names`."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> Labels: ...

    def name(self, index: int) -> str:
        """Name image `index` for messages and records."""

    def read(self, index: int) -> Image.Image:
        """Decode image `index` into RGB; raise `DataError` if it cannot be."""

    def open(self, index: int) -> LazyJpeg | Image.Image:
        """Return image `index` for a training view, a JPEG undecoded; raise `DataError` if it cannot be."""

    def size(self, index: int) -> int:
        """Return how many bytes image `index` is stored in, 0 if it is not there."""

    def raw(self, index: int) -> bytes:
        """Return those bytes; raise `DataError` if they cannot be read."""


@dataclass(frozen=True)
class FileSource:
    """Images in files of their own."""

    paths: Sequence[str]
    """`StringArray` where there may be many."""
    labels: Labels
    class_names: tuple[str, ...]

    def name(self, index: int) -> str:
        return self.paths[index]

    def read(self, index: int) -> Image.Image:
        return decode(self.raw(index), self.name(index))

    def open(self, index: int) -> LazyJpeg | Image.Image:
        return open_image(self.raw(index), self.name(index))

    def size(self, index: int) -> int:
        try:
            return os.stat(self.paths[index]).st_size
        except (OSError, ValueError):
            return 0

    def raw(self, index: int) -> bytes:
        return read_bytes(Path(self.paths[index]))


@dataclass(frozen=True)
class TarSource:
    """Images inside an uncompressed tar, read in place by offset."""

    path: str
    members: Sequence[str]
    """`StringArray` where there may be many."""
    spans: NDArray[np.int64]
    """Offset and size of each in the tar, in bytes, [N,2]."""
    labels: Labels
    class_names: tuple[str, ...]

    def name(self, index: int) -> str:
        return f"{self.path}:{self.members[index]}"

    def read(self, index: int) -> Image.Image:
        return decode(self.raw(index), self.name(index))

    def open(self, index: int) -> LazyJpeg | Image.Image:
        return open_image(self.raw(index), self.name(index))

    def size(self, index: int) -> int:
        return int(self.spans[index, 1])

    def raw(self, index: int) -> bytes:
        offset, size = self.spans[index].tolist()
        if size > MAX_BYTES:
            raise DataError(f"{self.name(index)} has {size:,} bytes, more than {MAX_BYTES:,}.")
        try:
            with open(self.path, "rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise DataError(f"{self.name(index)} cannot be read: {error.strerror}.") from error


@dataclass(frozen=True)
class ArraySource:
    """Images held in memory, [N,H,W] uint8 greys."""

    images: NDArray[np.uint8]
    labels: Labels
    class_names: tuple[str, ...]
    title: str

    def name(self, index: int) -> str:
        return f"{self.title}:{index}"

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index]).convert("RGB")

    open = read

    def size(self, index: int) -> int:
        return int(self.images[index].nbytes)

    def raw(self, index: int) -> bytes:
        return bytes(self.images[index].tobytes())


@dataclass(frozen=True)
class Subset:
    """Some images of a source, possibly under other labels."""

    source: Source
    indices: NDArray[np.int64]
    labels: Labels
    class_names: tuple[str, ...]

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def read(self, index: int) -> Image.Image:
        return self.source.read(int(self.indices[index]))

    def open(self, index: int) -> LazyJpeg | Image.Image:
        return self.source.open(int(self.indices[index]))

    def size(self, index: int) -> int:
        return self.source.size(int(self.indices[index]))

    def raw(self, index: int) -> bytes:
        return self.source.raw(int(self.indices[index]))


def subset(source: Source, indices: Sequence[int] | NDArray[np.int64]) -> Subset:
    """Take some images of a source."""
    index = np.asarray(indices, dtype=np.int64)
    return Subset(source, index, source.labels[index], source.class_names)


def relabel(source: Source, class_names: tuple[str, ...]) -> Subset:
    """Number a source's labels by other class names, which must include every class that has an image.

    Raises:
        DataError: a class with images is not among `class_names`.
    """
    index = {name: i for i, name in enumerate(class_names)}
    used = sorted(source.class_names[label] for label in np.unique(source.labels))
    if strangers := [name for name in used if name not in index]:
        raise DataError(
            f"Class {strangers[0]!r} is in the validation set but not in the training set"
            + (f" (and {len(strangers) - 1} more)." if len(strangers) > 1 else "."),
            "Both must use the same class names.",
        )
    mapping = np.array([index.get(name, -1) for name in source.class_names], dtype=np.int64)
    return Subset(source, np.arange(len(source.labels)), mapping[source.labels], class_names)


def hold_out(source: Source, share: float, seed: int) -> tuple[Subset, Subset]:
    """Split a source into training and validation, `share` of every class held out, the same for the same seed.

    A class of one image stays in training; classes of two or more give at least one.
    """
    held = np.zeros(len(source.labels), dtype=bool)
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    by_class = np.split(np.argsort(source.labels, kind="stable"), np.cumsum(counts)[:-1])
    for label, members in enumerate(by_class):
        count = min(len(members) - 1, max(1, round(share * len(members))))
        if count > 0:
            held[rng.generator(seed, "hold-out", label).permutation(members)[:count]] = True
    return subset(source, np.flatnonzero(~held)), subset(source, np.flatnonzero(held))


def digits() -> tuple[Source, Source]:
    """Return the built-in set: 1,797 handwritten digits of 8x8 pixels in 10 classes, every fifth of a class for validation.

    From the UCI Machine Learning Repository, "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998,
    CC BY 4.0), the part that scikit-learn's `load_digits` carries.
    """
    with resources.files("deitctl").joinpath("assets/digits.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    images = np.rint(images * (255 / 16)).astype(np.uint8)  # the set counts ink in 0..16
    whole = ArraySource(images, labels, tuple(str(d) for d in range(10)), "digits")
    order = np.empty(len(labels), dtype=np.int64)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        order[members] = np.arange(len(members))
    validation = order % 5 == 4
    return subset(whole, np.flatnonzero(~validation)), subset(whole, np.flatnonzero(validation))


def drop_empty_classes(source: FileSource) -> tuple[FileSource, list[str]]:
    """Leave out classes without an image, so that every logit stands for something; return their names too."""
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    if counts.all():
        return source, []
    kept = np.flatnonzero(counts)
    empty = [source.class_names[i] for i in np.flatnonzero(counts == 0)]
    renumber = np.full(len(source.class_names), -1, dtype=np.int64)
    renumber[kept] = np.arange(len(kept))
    names = tuple(source.class_names[i] for i in kept)
    return replace(source, labels=renumber[source.labels], class_names=names), empty


def is_hidden(name: str) -> bool:
    """Say whether a folder or file is the system's or a tool's, not data."""
    return name.startswith((".", "__MACOSX")) or name in ("Thumbs.db", os.curdir)

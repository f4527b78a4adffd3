"""Image datasets: labels and class names in memory, images read by index."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.bands import decode_bands
from deitctl.data.contents import Contents, Fingerprint
from deitctl.data.decode import decode, read_bytes
from deitctl.data.file_types import START_BYTES
from deitctl.data.lazy_jpeg import LazyJpeg, open_image
from deitctl.data.own_augmentation import Augmentation
from deitctl.errors import DataError
from deitctl.models.model_config import ValueRange
from deitctl.names import canonicalize_name, find_names

Labels = NDArray[np.int64] | NDArray[np.bool_] | NDArray[np.int8]
"""Of one label an image: index into the class names, int64 [N], -1 for an image without a label; of
several: multi-hot, bool [N,K], or int8 [N,K] with rows of -1 where images without labels are among them."""
MIN_SEVERAL = 0.05
"""Of images that must be in several classes for the data to have several labels an image; fewer may
be mistakes."""


class ImageDataset(ABC):
    """Images with labels.

    Of one label an image, `labels[i]` indexes `class_names`; of several, `labels[i]` says of each
    class whether the image has it, and a row may be all False: an image with none of the classes.
    """

    labels: Labels
    class_names: tuple[str, ...]
    group_names: Sequence[str] | None = None
    """Of each image, [N]: a patient or camera, whose images belong on one side of a split; None: none
    are known."""
    value_range: ValueRange | None = None
    """Of images of more than 8 bits whose files state none; None: each is scaled by itself."""

    bands: int = 0
    """Of each image, which is then a `BandImage`; 0: images are RGB."""
    augmentation: Augmentation | None = None
    """The caller's own of training views, beside the recipe's."""

    def with_augmentation(self, augmentation: Augmentation | None) -> Self:
        """Return the same images, whose training views have another augmentation of the caller's."""
        images = self._copy()
        object.__setattr__(images, "augmentation", augmentation)  # of a frozen one too
        return images

    def with_value_range(self, value_range: ValueRange | None) -> Self:
        """Return the same images, scaled by another range where they have more than 8 bits."""
        images = self._copy()
        object.__setattr__(images, "value_range", value_range)  # of a frozen one too
        return images

    def with_bands(self, bands: int) -> Self:
        """Return the same images, read with so many bands; 0: as RGB.

        Raises:
            DataError: they are stored as RGB.
        """
        images = self._copy()
        object.__setattr__(images, "bands", bands)  # of a frozen one too
        return images

    @property
    def is_multilabel(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.labels.ndim == 2

    @property
    def is_in_memory(self) -> bool:
        """Whether there is nothing to read and decode, so that loader processes gain nothing."""
        return False

    @property
    def is_held_out(self) -> bool:
        """Whether these are validation images of data that has none of its own."""
        return False

    @property
    def draw_weights(self) -> NDArray[np.float32] | None:
        """How many times each training image comes in an epoch, on average of all, [N]; None: once."""
        return None

    @property
    def is_extra(self) -> NDArray[np.bool_] | None:
        """Which images are of a source beside the data itself, [N]; None: none is."""
        return None

    @property
    def blocks(self) -> NDArray[np.int32] | None:
        """Number of the block that each image is read with, [N]: a row group, a whole remote shard.

        -1: the image is read alone; None: all are. A function of the data, not of the machine, because
        the order of a run that goes on elsewhere rests on it.
        """
        return None

    @property
    def num_cached_blocks(self) -> int:
        """How many of its blocks this machine holds at once; 0 without blocks."""
        return 0

    def prefetch(self, indices: Sequence[int]) -> None:  # noqa: B027  # most have nothing to start
        """Start reading images that will be read soon, where waiting for them is what takes time."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Name of image `index` for messages and records."""

    def relative_path(self, index: int) -> str:
        """Path of image `index` below its data or part of it: the same wherever the data lies."""
        return self.name(index)

    @abstractmethod
    def num_bytes(self, index: int) -> int:
        """Size of the stored image in bytes, 0 if it is missing."""

    def read_sizes(self, indices: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return `num_bytes` of images, of all without `indices`; each is looked up once."""
        indices = np.arange(len(self.labels)) if indices is None else indices
        return self.contents.find_sizes(indices, self.num_bytes)

    @property
    def contents(self) -> Contents:
        """What was read of the images' files at this start; it stays in this process."""
        contents: Contents | None = self.__dict__.get("_contents")
        if contents is None:
            contents = self.__dict__["_contents"] = Contents(len(self.labels))
        return contents

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_contents"}

    def _copy(self) -> Self:
        images = copy.copy(self)
        images.__dict__["_contents"] = self.contents
        return images

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """Return the stored image.

        Raises:
            ReadError: it cannot be read now.
            DataError: it is nothing that can be read.
        """

    def list_cheap(self) -> NDArray[np.int64]:
        """Return indices of images, spread over the data, that are read quickly in this order.

        They are all, unless an image takes reading others.
        """
        return np.arange(len(self.labels))

    def read_start(self, index: int) -> bytes:
        """Return the first bytes of the stored image, `START_BYTES` or more if it has them.

        Raises:
            DataError: as `read_bytes`.
        """
        return self.read_bytes(index)

    def digest(self, index: int) -> int:
        """Digest of the image's file as it was before packing, 64 bits; 0 if it cannot be read."""
        try:
            return self.contents.find_digest(index, self.read_bytes)
        except DataError:
            return 0

    def expect_fingerprints(self) -> None:
        """Take fingerprints of images when their bytes are read for something else."""
        self.contents.are_fingerprinted = True

    def fingerprint(self, index: int) -> Fingerprint:
        """Return what a fingerprint of the data holds of an image's bytes; raise `DataError` as `read_bytes`."""
        return self.contents.find_fingerprint(index, self.read_bytes)

    def read(self, index: int) -> Image.Image:
        """Decode an image into RGB, or into its bands; raise `DataError` if it cannot be."""
        if self.bands:
            data = self.read_bytes(index)
            return decode_bands(data, self.name(index), self.bands, self.value_range)
        return decode(self.read_bytes(index), self.name(index), value_range=self.value_range)

    def open(self, index: int) -> LazyJpeg | Image.Image:
        """Open an image for a training view, a JPEG undecoded.

        Raises:
            DataError: it cannot be read or decoded.
        """
        if self.bands:
            return self.read(index)
        return open_image(self.read_bytes(index), self.name(index), self.value_range)

    def open_hashed(self, index: int) -> LazyJpeg | Image.Image:
        """Open an image as `open`, and remember the hashes of its bytes."""
        if self.bands:
            return self.read(index)
        data = self.read_bytes(index)
        self.contents.add(index, data)
        return open_image(data, self.name(index), self.value_range)


@dataclass(frozen=True)
class FileDataset(ImageDataset):
    """Images in files of their own."""

    paths: Sequence[str]
    """A `StringArray` where there may be many."""
    labels: Labels
    class_names: tuple[str, ...]
    root: str = ""
    """Folder that paths are relative to, with a separator behind it."""
    group_names: Sequence[str] | None = None

    def name(self, index: int) -> str:
        return self.paths[index]

    def relative_path(self, index: int) -> str:
        return self.paths[index].removeprefix(self.root)

    def num_bytes(self, index: int) -> int:
        return self.contents.find_size(index, self._look_up_size)

    def read_sizes(self, indices: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        indices = np.arange(len(self.labels)) if indices is None else indices
        return self.contents.find_sizes(indices, self._look_up_size)

    def _look_up_size(self, index: int) -> int:
        try:
            return os.stat(self.paths[index]).st_size
        except (OSError, ValueError):  # ValueError: a NUL in the name
            return 0

    def read_start(self, index: int) -> bytes:
        try:
            if self.num_bytes(index):  # a pipe, which has none, would be waited for
                with open(self.paths[index], "rb") as file:
                    return file.read(START_BYTES)
        except (OSError, ValueError):
            pass
        return self.read_bytes(index)  # patiently, and with the right error

    def read_bytes(self, index: int) -> bytes:
        return read_bytes(Path(self.paths[index]), was_there=True)


@dataclass(frozen=True)
class Subset(ImageDataset):
    """Some images of a dataset, possibly under other labels."""

    dataset: ImageDataset
    indices: NDArray[np.int64]
    labels: Labels
    class_names: tuple[str, ...]
    holds_out: bool = False
    """Whether they are held out of the dataset."""

    @property
    def group_names(self) -> Sequence[str] | None:  # type: ignore[override]
        names = self.dataset.group_names
        return None if names is None else [names[index] for index in self.indices.tolist()]

    @property
    def value_range(self) -> ValueRange | None:  # type: ignore[override]
        return self.dataset.value_range

    @property
    def augmentation(self) -> Augmentation | None:  # type: ignore[override]
        return self.dataset.augmentation

    def with_augmentation(self, augmentation: Augmentation | None) -> Subset:
        return replace(self, dataset=self.dataset.with_augmentation(augmentation))

    def with_value_range(self, value_range: ValueRange | None) -> Subset:
        return replace(self, dataset=self.dataset.with_value_range(value_range))

    @property
    def bands(self) -> int:  # type: ignore[override]
        return self.dataset.bands

    def with_bands(self, bands: int) -> Subset:
        return replace(self, dataset=self.dataset.with_bands(bands))

    @property
    def is_in_memory(self) -> bool:
        return self.dataset.is_in_memory

    @property
    def is_held_out(self) -> bool:
        return self.holds_out or self.dataset.is_held_out

    @property
    def draw_weights(self) -> NDArray[np.float32] | None:
        weights = self.dataset.draw_weights
        return None if weights is None else weights[self.indices]

    @property
    def is_extra(self) -> NDArray[np.bool_] | None:
        is_extra = self.dataset.is_extra
        return None if is_extra is None else is_extra[self.indices]

    @property
    def blocks(self) -> NDArray[np.int32] | None:
        blocks = self.dataset.blocks
        return None if blocks is None else blocks[self.indices]

    @property
    def num_cached_blocks(self) -> int:
        return self.dataset.num_cached_blocks

    def prefetch(self, indices: Sequence[int]) -> None:
        self.dataset.prefetch([int(self.indices[index]) for index in indices])

    def name(self, index: int) -> str:
        return self.dataset.name(int(self.indices[index]))

    def relative_path(self, index: int) -> str:
        return self.dataset.relative_path(int(self.indices[index]))

    def num_bytes(self, index: int) -> int:
        return self.dataset.num_bytes(int(self.indices[index]))

    def read_sizes(self, indices: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        return self.dataset.read_sizes(self.indices if indices is None else self.indices[indices])

    def expect_fingerprints(self) -> None:
        self.dataset.expect_fingerprints()

    def fingerprint(self, index: int) -> Fingerprint:
        return self.dataset.fingerprint(int(self.indices[index]))

    def list_cheap(self) -> NDArray[np.int64]:
        cheap = np.flatnonzero(np.isin(self.indices, self.dataset.list_cheap()))
        return cheap if len(cheap) else np.arange(min(len(self.labels), 16))

    def read_start(self, index: int) -> bytes:
        return self.dataset.read_start(int(self.indices[index]))

    def read_bytes(self, index: int) -> bytes:
        return self.dataset.read_bytes(int(self.indices[index]))

    def digest(self, index: int) -> int:
        return self.dataset.digest(int(self.indices[index]))

    # Delegated, because a dataset may decode in a way of its own.
    def read(self, index: int) -> Image.Image:
        return self.dataset.read(int(self.indices[index]))

    def open(self, index: int) -> LazyJpeg | Image.Image:
        return self.dataset.open(int(self.indices[index]))

    def open_hashed(self, index: int) -> LazyJpeg | Image.Image:
        return self.dataset.open_hashed(int(self.indices[index]))


@dataclass(frozen=True)
class JoinedDataset(ImageDataset):
    """Several datasets under one numbering, one after the other."""

    datasets: tuple[ImageDataset, ...]
    labels: Labels
    class_names: tuple[str, ...]
    ends: NDArray[np.int64]
    """Number of images in each dataset and those before it."""
    part_weights: tuple[float, ...] = ()
    """How many times an image of each dataset comes in an epoch: the first is the data itself, the others
    are extra; empty: they are parts of one source."""

    @property
    def group_names(self) -> Sequence[str] | None:  # type: ignore[override]
        parts = [part.group_names for part in self.datasets]
        names = [part for part in parts if part is not None]
        return list(chain.from_iterable(names)) if len(names) == len(parts) else None

    @property
    def value_range(self) -> ValueRange | None:  # type: ignore[override]
        return self.datasets[0].value_range

    @property
    def augmentation(self) -> Augmentation | None:  # type: ignore[override]
        return self.datasets[0].augmentation

    @property
    def is_in_memory(self) -> bool:
        return all(part.is_in_memory for part in self.datasets)

    @property
    def draw_weights(self) -> NDArray[np.float32] | None:
        parts = [part.draw_weights for part in self.datasets]
        if all(part is None for part in parts) and all(w == 1 for w in self.part_weights):
            return None
        weights = np.ones(len(self.labels), np.float32)
        starts = [0, *self.ends[:-1].tolist()]
        factors = self.part_weights or (1.0,) * len(parts)
        for part, start, end, factor in zip(parts, starts, self.ends, factors, strict=True):
            weights[start:end] = factor if part is None else factor * part
        return weights

    @property
    def is_extra(self) -> NDArray[np.bool_] | None:
        parts = [part.is_extra for part in self.datasets]
        if all(part is None for part in parts) and not self.part_weights:
            return None
        is_extra, start = np.zeros(len(self.labels), np.bool_), 0
        for number, (part, end) in enumerate(zip(parts, self.ends.tolist(), strict=True)):
            is_extra[start:end] = bool(self.part_weights) and number > 0 if part is None else part
            start = end
        return is_extra

    @property
    def blocks(self) -> NDArray[np.int32] | None:
        parts = [part.blocks for part in self.datasets]
        if all(part is None for part in parts):
            return None
        blocks, num_blocks = np.full(len(self.labels), -1, np.int32), 0
        for part, end in zip(parts, self.ends.tolist(), strict=True):
            if part is not None and len(part):
                of_part = blocks[end - len(part) : end]
                of_part[:] = np.where(part < 0, -1, part + num_blocks)
                num_blocks = max(num_blocks, int(of_part.max()) + 1)
        return blocks

    @property
    def num_cached_blocks(self) -> int:
        # They share one cache: as many as if all blocks were as large as those of the part with the largest.
        return min(
            (part.num_cached_blocks for part in self.datasets if part.blocks is not None), default=0
        )

    def prefetch(self, indices: Sequence[int]) -> None:
        places = np.asarray(indices, np.int64)
        parts = np.searchsorted(self.ends, places, side="right")
        for which in np.unique(parts).tolist():
            start = int(self.ends[which - 1]) if which else 0
            self.datasets[which].prefetch((places[parts == which] - start).tolist())

    def with_augmentation(self, augmentation: Augmentation | None) -> JoinedDataset:
        return replace(
            self, datasets=tuple(part.with_augmentation(augmentation) for part in self.datasets)
        )

    def with_value_range(self, value_range: ValueRange | None) -> JoinedDataset:
        return replace(
            self, datasets=tuple(part.with_value_range(value_range) for part in self.datasets)
        )

    @property
    def bands(self) -> int:  # type: ignore[override]
        return self.datasets[0].bands

    def with_bands(self, bands: int) -> JoinedDataset:
        return replace(self, datasets=tuple(part.with_bands(bands) for part in self.datasets))

    def name(self, index: int) -> str:
        dataset, place = self._locate(index)
        return dataset.name(place)

    def relative_path(self, index: int) -> str:
        dataset, place = self._locate(index)
        return dataset.relative_path(place)

    def num_bytes(self, index: int) -> int:
        dataset, place = self._locate(index)
        return dataset.num_bytes(place)

    def read_sizes(self, indices: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        indices = np.arange(len(self.labels)) if indices is None else indices
        sizes, start = np.zeros(len(indices), np.int64), 0
        for part, end in zip(self.datasets, self.ends.tolist(), strict=True):
            is_in_part = (start <= indices) & (indices < end)
            sizes[is_in_part] = part.read_sizes(indices[is_in_part] - start)
            start = end
        return sizes

    def expect_fingerprints(self) -> None:
        for part in self.datasets:
            part.expect_fingerprints()

    def fingerprint(self, index: int) -> Fingerprint:
        dataset, place = self._locate(index)
        return dataset.fingerprint(place)

    def open_hashed(self, index: int) -> LazyJpeg | Image.Image:
        dataset, place = self._locate(index)
        return dataset.open_hashed(place)

    def list_cheap(self) -> NDArray[np.int64]:
        starts = [0, *self.ends[:-1].tolist()]
        return np.concatenate(
            [part.list_cheap() + start for part, start in zip(self.datasets, starts, strict=True)]
        )

    def read_start(self, index: int) -> bytes:
        dataset, place = self._locate(index)
        return dataset.read_start(place)

    def read_bytes(self, index: int) -> bytes:
        dataset, place = self._locate(index)
        return dataset.read_bytes(place)

    def digest(self, index: int) -> int:
        dataset, place = self._locate(index)
        return dataset.digest(place)

    def read(self, index: int) -> Image.Image:
        dataset, place = self._locate(index)
        return dataset.read(place)

    def open(self, index: int) -> LazyJpeg | Image.Image:
        dataset, place = self._locate(index)
        return dataset.open(place)

    def _locate(self, index: int) -> tuple[ImageDataset, int]:
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.datasets[which], index - int(self.ends[which - 1] if which else 0)


def join(datasets: Sequence[ImageDataset]) -> ImageDataset:
    """Return the images of several datasets as one, with the classes of all; all are of one kind."""
    if len(datasets) == 1:
        return datasets[0]
    class_names = tuple(
        sorted({canonicalize_name(name) for dataset in datasets for name in dataset.class_names})
    )
    labels = np.concatenate([number_labels(dataset, class_names) for dataset in datasets])
    ends = np.cumsum([len(dataset.labels) for dataset in datasets])
    return JoinedDataset(tuple(datasets), labels, class_names, ends)


def select(dataset: ImageDataset, indices: Sequence[int] | NDArray[np.int64]) -> Subset:
    """Take some images of a dataset, under the same labels."""
    # An array, not a list: forked workers would copy a list's pages by counting references.
    index = np.asarray(indices, dtype=np.int64)
    return Subset(dataset, index, dataset.labels[index], dataset.class_names)


def select_own(dataset: ImageDataset) -> ImageDataset:
    """Return the images of the data itself, without those of other sources."""
    is_extra = dataset.is_extra
    return dataset if is_extra is None else select(dataset, np.flatnonzero(~is_extra))


def find_folder(dataset: ImageDataset) -> str | None:
    """Return the folder or tar that the paths of a dataset are below; None for images that have none."""
    if not len(dataset.labels):
        return None
    name, path = dataset.name(0), dataset.relative_path(0)
    folder = name.removesuffix(path)
    return (folder.rstrip(":/" + os.sep) or None) if folder != name else None


def count_images(dataset: ImageDataset) -> NDArray[np.int64]:
    """Count the images of each class, [K]; one of several labels counts in each of its classes, one
    without a label in none."""
    labels = dataset.labels
    if dataset.is_multilabel:
        is_of_class = labels if labels.dtype == np.bool_ else labels > 0
        counts: NDArray[np.int64] = is_of_class.sum(axis=0, dtype=np.int64)
        return counts
    return np.bincount(labels[labels >= 0], minlength=len(dataset.class_names))


def weigh_classes(dataset: ImageDataset, weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum the weights of the images of each class, [K]; which images count where as in `count_images`."""
    labels = dataset.labels
    if dataset.is_multilabel:
        columns = [weights[labels[:, k] > 0].sum(dtype=np.float64) for k in range(labels.shape[1])]
        return np.array(columns, np.float64)
    is_labeled = labels >= 0
    num_classes = len(dataset.class_names)
    sums = np.bincount(labels[is_labeled], weights[is_labeled], minlength=num_classes)
    return sums.astype(np.float64)


def find_used_classes(dataset: ImageDataset) -> set[str]:
    """Return the classes that have an image."""
    return {dataset.class_names[label] for label in np.flatnonzero(count_images(dataset))}


def list_labels(dataset: ImageDataset) -> list[tuple[int, ...]]:
    """Return the labels of each image, in rising order: one, or of several labels none, one or more.

    One that has no label has none here.
    """
    if not dataset.is_multilabel:
        return [(label,) if label >= 0 else () for label in dataset.labels.tolist()]
    labels: list[list[int]] = [[] for _ in range(len(dataset.labels))]
    for index, label in np.argwhere(dataset.labels > 0).tolist():
        labels[index].append(label)
    return list(map(tuple, labels))


def name_labels(dataset: ImageDataset) -> list[tuple[str, ...]]:
    """Return the classes of each image by name, in the order of the class names."""
    names = dataset.class_names
    return [tuple(names[label] for label in labels) for labels in list_labels(dataset)]


def name_label(dataset: ImageDataset, index: int) -> tuple[str, ...]:
    """Return the classes of an image by name, in the order of the class names."""
    label = dataset.labels[index]
    if not dataset.is_multilabel:
        return (dataset.class_names[label],) if label >= 0 else ()
    return tuple(dataset.class_names[n] for n in np.flatnonzero(label > 0))


def find_rarest(dataset: ImageDataset) -> NDArray[np.int64]:
    """Return one class of each image, [N]: of several labels the one of the fewest images, K for none."""
    if not dataset.is_multilabel:
        return dataset.labels.astype(np.int64, copy=False)
    by_count = np.argsort(count_images(dataset), kind="stable")
    rarest = by_count[dataset.labels[:, by_count].argmax(axis=1)]
    return np.where(dataset.labels.any(axis=1), rarest, len(dataset.class_names))


def number_labels(dataset: ImageDataset, class_names: Sequence[str]) -> Labels:
    """Return a dataset's labels by other class names; names are compared in canonical form.

    Returns:
        Of one label an image int64 [N], -1 for a missing class; of several bool [N,K], in which a
        missing class is left out.
    """
    places = find_names(dataset.class_names, class_names)
    # The last entry is that of images without a label, -1.
    mapping = np.array([-1 if place is None else place for place in (*places, None)], np.int64)
    if not dataset.is_multilabel:
        return mapping[dataset.labels]
    labels = np.zeros((len(dataset.labels), len(class_names)), np.bool_)
    for column, place in enumerate(mapping[:-1].tolist()):
        if place >= 0:
            labels[:, place] |= dataset.labels[:, column] > 0
    if dataset.labels.dtype != np.int8:
        return labels
    signed = labels.astype(np.int8)
    signed[(dataset.labels < 0).any(axis=1)] = -1
    return signed


def renumber(dataset: ImageDataset, class_names: tuple[str, ...]) -> Subset:
    """Return the same images with labels by other class names, see `number_labels`."""
    labels = number_labels(dataset, class_names)
    return Subset(dataset, np.arange(len(labels)), labels, class_names)


def drop_empty_classes(dataset: FileDataset) -> tuple[FileDataset, list[str]]:
    """Keep the classes that have an image, in lexicographic order.

    Returns the names of the others too.
    """
    used = find_used_classes(dataset)
    names = tuple(sorted(used))
    if names == dataset.class_names:  # labels may be mapped from a file, and stay so
        return dataset, []
    empty = [name for name in dataset.class_names if name not in used]
    return replace(dataset, labels=number_labels(dataset, names), class_names=names), empty


def encode_labels(labels: Labels, num_classes: int) -> NDArray[np.bool_]:
    """Return labels of one an image, [N], as multi-hot, [N,K]."""
    encoded = np.zeros((len(labels), num_classes), np.bool_)
    encoded[np.arange(len(labels)), labels] = True
    return encoded


def make_multilabel(dataset: ImageDataset) -> ImageDataset:
    """Return images of one label each as such of several, each with its one."""
    if dataset.is_multilabel:
        return dataset
    labels = encode_labels(dataset.labels, len(dataset.class_names))
    return Subset(dataset, np.arange(len(labels)), labels, dataset.class_names)


def describe_labels(labels: Labels) -> str:
    """Say how many images have several labels, [N,K], and how many none."""
    counts = labels.sum(axis=1)
    num_none = int((counts == 0).sum())
    none = f", {num_none:,} none" if num_none else ""
    return (
        f"{int((counts > 1).sum()):,} of {len(counts):,} images have several of the "
        f"{labels.shape[1]:,} classes{none}"
    )

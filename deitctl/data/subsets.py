"""Parts of datasets, and several datasets as one: their images are read by the datasets that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.contents import Fingerprint
from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.labels import encode_labels, number_labels
from deitctl.data.lazy_jpeg import LazyJpeg
from deitctl.data.own_augmentation import Augmentation
from deitctl.models.model_config import ValueRange
from deitctl.names import canonicalize_name


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

    @property
    def recorded_digests(self) -> NDArray[np.uint64] | None:
        digests = self.dataset.recorded_digests
        return None if digests is None else digests[self.indices]

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

    @property
    def recorded_digests(self) -> NDArray[np.uint64] | None:
        parts = [part.recorded_digests for part in self.datasets]
        if all(part is None for part in parts):
            return None
        digests = np.zeros(len(self.labels), np.uint64)
        for part, end in zip(parts, self.ends.tolist(), strict=True):
            if part is not None:
                digests[end - len(part) : end] = part
        return digests

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


def select_extra(dataset: ImageDataset) -> Subset:
    """Return the images of other sources than the data itself, see `is_extra`."""
    is_extra = dataset.is_extra
    return select(dataset, [] if is_extra is None else np.flatnonzero(is_extra))


def renumber(dataset: ImageDataset, class_names: tuple[str, ...]) -> Subset:
    """Return the same images with labels by other class names, see `number_labels`."""
    labels = number_labels(dataset, class_names)
    return Subset(dataset, np.arange(len(labels)), labels, class_names)


def make_multilabel(dataset: ImageDataset) -> ImageDataset:
    """Return images of one label each as such of several, each with its one; those without stay so."""
    if dataset.is_multilabel:
        return dataset
    labels: Labels = encode_labels(dataset.labels, len(dataset.class_names))
    is_unlabeled = dataset.labels < 0
    if is_unlabeled.any():
        labels = labels.astype(np.int8)
        labels[is_unlabeled] = -1
    return Subset(dataset, np.arange(len(labels)), labels, dataset.class_names)

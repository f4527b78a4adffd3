"""Image datasets: labels and class names in memory, images read by index."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
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

Labels = NDArray[np.int64] | NDArray[np.bool_] | NDArray[np.int8]
"""Of one label an image: index into the class names, int64 [N], -1 for an image without a label; of
several: multi-hot, bool [N,K], or int8 [N,K] with rows of -1 where images without labels are among them."""


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

    @property
    def recorded_digests(self) -> NDArray[np.uint64] | None:
        """What `digest` returns of each image without reading it, [N], 0 where it has to; None: of all."""
        return None

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


def find_folder(dataset: ImageDataset) -> str | None:
    """Return the folder or tar that the paths of a dataset are below, of several tars beside each other their folder.

    Returns:
        None for images that have none.
    """
    if not len(dataset.labels):
        return None
    name, path = dataset.name(0), dataset.relative_path(0)
    folder = name.removesuffix(path)
    if folder == name:
        return None
    if folder.endswith(":"):  # in a file
        files = {_find_file(dataset, index) for index in _spread(len(dataset.labels))}
        parents = {file.rpartition("/")[0] for file in files}
        if len(files) > 1 and len(parents) == 1 and "" not in parents:
            return parents.pop()
    return folder.rstrip(":/" + os.sep) or None


def _find_file(dataset: ImageDataset, index: int) -> str:
    return dataset.name(index).removesuffix(dataset.relative_path(index)).rstrip(":")


def _spread(count: int) -> list[int]:
    """Return up to 64 indices, from the first to the last."""
    return list(map(int, np.linspace(0, count - 1, min(count, 64))))

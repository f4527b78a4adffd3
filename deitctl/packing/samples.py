"""What is written of each image of a data set: key, label by the classes of all splits, name, bytes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deitctl import rng
from deitctl.data.arrays import StringArray
from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.file_types import AVIF, START_BYTES, TIFF, get_extensions, identify
from deitctl.data.open import DatasetSplits
from deitctl.data.readers.tar_dataset import TarDataset
from deitctl.data.subsets import Subset, select
from deitctl.data.value_range import NO_RANGE
from deitctl.errors import DataError
from deitctl.events import Reporter, track
from deitctl.packing.encode import EncodedImage, Encoding, encode_images

EXTENSIONS = {
    "a JPEG image": "jpg",
    "a PNG image": "png",
    "a WebP image": "webp",
    "a BMP image": "bmp",
    "a GIF image": "gif",
    TIFF: "tif",
    "a PPM image": "ppm",
    "a JPEG 2000 image": "jp2",
    AVIF: "avif",
}
"""Of what `identify` tells: `.JPEG` is nothing that timm's reader looks for."""

NO_UTF8 = re.compile("[\udc80-\udcff]")
"""What Python reads from a name's bytes that are no UTF-8."""


class Sample(NamedTuple):
    """What a shard holds of an image."""

    key: str
    label: int | list[int]
    """Number of its class, of several labels those of its classes."""
    name: str
    """Path of its file below the data."""
    extension: str
    """What its bytes are, without a dot."""
    data: bytes
    """Empty for an image that cannot be read."""
    digest: int
    """Of the source's bytes, 0 if they cannot be read."""


def find_folder(data: DatasetSplits) -> str:
    """Return the folder that a table lies in, with a slash behind it."""
    return os.path.join(Path(data.name).parent, "")


def list_names(dataset: ImageDataset, folder: str) -> StringArray:
    """Return the names of images below their split, or those in a table below `folder`."""
    if isinstance(dataset, Subset):  # of a tree whose copies are one image each
        return list_names(dataset.dataset, folder).take(dataset.indices.tolist())
    if isinstance(dataset, TarDataset):
        return StringArray.from_strings(dataset.names)
    if not isinstance(dataset, FileDataset):
        return StringArray.from_strings(map(dataset.relative_path, range(len(dataset.labels))))
    # a folder, listed below its root
    if isinstance(dataset.paths, StringArray) and dataset.paths.prefix:
        return dataset.paths.with_prefix("")
    names = map(dataset.name, range(len(dataset.labels)))
    return StringArray.from_strings(name.removeprefix(folder) for name in names)


def spell_in_utf8(name: str) -> str:
    """Return a name as Parquet, whose text is UTF-8, holds it: bytes that are none become `%FF`."""
    return NO_UTF8.sub(lambda match: f"%{ord(match[0]) - 0xDC00:02X}", name)


def join_class_names(datasets: Mapping[str, ImageDataset]) -> tuple[str, ...]:
    """Return the classes of all splits: those of the first in their order, then what others add."""
    return tuple(dict.fromkeys(name for part in datasets.values() for name in part.class_names))


class SampleSource:
    """The images of a data set, encoded one after the other, and what was noticed of them."""

    def __init__(
        self,
        data: DatasetSplits,
        encoding: Encoding,
        *,
        shuffles: bool,
        workers: int,
        reporter: Reporter,
    ) -> None:
        """Take the splits that have images.

        Args:
            data: the images.
            encoding: of each.
            shuffles: yield them in a random order, always the same.
            workers: processes that encode, see `encode_images`.
            reporter: shows progress.

        Raises:
            DataError: none has one.
        """
        self.datasets = data.list_parts()
        if not self.datasets:
            raise DataError(f"{data.name} has no images to pack.")
        folder = find_folder(data)
        self.names = {name: list_names(part, folder) for name, part in self.datasets.items()}
        self.class_names = join_class_names(self.datasets)
        value_range = next(iter(self.datasets.values())).value_range
        self.value_range = None if value_range == NO_RANGE else value_range
        self.count = sum(len(part.labels) for part in self.datasets.values())
        self.orders = {
            name: _shuffle(name, len(part.labels)) if shuffles else np.arange(len(part.labels))
            for name, part in self.datasets.items()
        }
        """Index in its split of each image, as they are yielded."""
        self.encoding, self.workers, self.reporter = encoding, workers, reporter
        self.source_bytes = self.num_encoded = 0
        self.unreadable: list[str] = []
        self.extensions: Counter[str] = Counter()
        """Images of each extension that were yielded."""

    @property
    def is_multilabel(self) -> bool:
        """Whether an image may have several labels, or none."""
        return any(part.is_multilabel for part in self.datasets.values())

    def count_bytes(self) -> int:
        """Return the size of all images' files."""
        return sum(int(part.read_sizes().sum()) for part in self.datasets.values())

    def iterate_samples(self) -> Generator[Sample]:
        """Yield all images, split by split; closing it ends the processes that encode.

        Raises:
            LoaderLost: a process ended, or cannot be started.
        """
        datasets = [select(part, self.orders[name]) for name, part in self.datasets.items()]
        encoded = encode_images(datasets, self.encoding, self.workers, self.reporter)
        first = 0
        with closing(encoded):
            images = iter(track(encoded, self.reporter, "pack", self.count))
            for part, (name, order) in zip(datasets, self.orders.items(), strict=True):
                labels = _number_labels(part, self.class_names)
                encoded_part = islice(images, len(order))
                for index, label, image in zip(order.tolist(), labels, encoded_part, strict=True):
                    self._count(image)
                    file_name = self.names[name][index]
                    extension = choose_extension(file_name, image.data)
                    self.extensions[extension] += 1
                    # Keys are numbers: a dot ends a key, and names of files may have dots, and any length.
                    yield Sample(
                        f"{first + index:09}",
                        label,
                        file_name,
                        extension,
                        image.data,
                        image.digest,
                    )
                first += len(order)

    def _count(self, image: EncodedImage) -> None:
        self.source_bytes += image.source_bytes
        self.num_encoded += image.encoded
        if image.error:
            self.unreadable.append(image.error)


def _shuffle(name: str, count: int) -> NDArray[np.int64]:
    return rng.generator(0, "pack", name).permutation(count)


def _number_labels(
    dataset: ImageDataset, class_names: tuple[str, ...]
) -> Iterator[int | list[int]]:
    """Yield the labels of each image by the classes of all splits."""
    number_of = {name: number for number, name in enumerate(class_names)}
    numbers = np.array([number_of[name] for name in dataset.class_names], np.int64)
    if not dataset.is_multilabel:
        yield from numbers[dataset.labels].tolist()
        return
    for row in dataset.labels:
        yield numbers[row > 0].tolist()


def choose_extension(name: str, data: bytes) -> str:
    """Return the extension of an image by its bytes, else by its name, without a dot."""
    if extension := EXTENSIONS.get(identify(data[:START_BYTES])):
        return extension
    suffix = PurePath(name).suffix.lower()
    return suffix[1:] if suffix in get_extensions() - {".jpeg"} else "jpg"

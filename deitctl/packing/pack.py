"""Packing: write a data set into one file that every command reads as DATA, and verify it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.checks.check import SplitSize
from deitctl.checks.labels import count_labels
from deitctl.data.arrays import StringArray
from deitctl.data.contents import compute_digest
from deitctl.data.dataset import FileDataset, ImageDataset, Subset, name_label
from deitctl.data.index import Listing
from deitctl.data.open import DatasetSplits, open_dataset
from deitctl.data.readers.pack import SUFFIX, PackDataset, is_pack, open_pack, write_pack
from deitctl.data.readers.tar_dataset import TarDataset
from deitctl.errors import ConfigError, DataError
from deitctl.events import Reporter, SilentReporter, track
from deitctl.home import expand_home
from deitctl.models.tasks import CLASSIFICATION, MULTILABEL
from deitctl.packing.encode import EncodedImage, Encoding, encode_images
from deitctl.paths import open_atomic, require_writable

NUM_EXAMPLES = 20
COMPARED_SIDE = 8
"""To which images are resized for a comparison."""
MAX_DIFFERENCE = 4.0
"""Mean gray levels; 84 photographs encoded at 160 pixels differed by 0.3, from others by 31."""


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """A pack that was written."""

    path: Path
    """The pack."""
    data: str
    """What was packed."""
    splits: dict[str, SplitSize]
    """By name: train, val, test, or all of a data set without splits."""
    num_copied: int
    """Images stored as the bytes of their files, unreadable ones included."""
    num_encoded: int
    """Images stored in another form."""
    unreadable: tuple[str, ...]
    """Why each image could not be read, or not be decoded where it had to be."""
    source_bytes: int
    """Of all images' files."""
    bytes: int
    """Of the pack."""
    seconds: float
    """Of packing."""


@dataclass(frozen=True, kw_only=True)
class PackVerification:
    """The comparison of a pack with its data."""

    path: Path
    """The pack."""
    data: str
    """What it was compared with."""
    num_images: int
    """In the pack."""
    num_different: int
    """Images, and splits, classes or orders, that differ."""
    examples: tuple[str, ...]
    """The first 20 differences."""
    seconds: float
    """Of the comparison."""


def pack(
    data: str,
    out: str,
    *,
    max_size: int = 0,
    raw: bool = False,
    image_folder: str = "",
    task: str = "auto",
    value_range: str = "auto",
    workers: int = -1,
    reporter: Reporter | None = None,
) -> PackResult:
    """Write the images of a data set, with their names, labels and splits, into one file.

    Args:
        data: anything that `open_dataset` opens.
        out: the file, which must end in .pack; another pack there is replaced, nothing else is.
        max_size: short side in pixels above which an image becomes a smaller JPEG; 0: none does.
        raw: store pixels, which need no decoding.
        image_folder: folder that the paths of a table are below; empty: where the table leads.
        task: whether an image has one label or several; auto: as the data has them.
        value_range: of images of more than 8 bits that are encoded anew, see `settle_range`; the
            pack keeps it, so that a model that is trained on it does.
        workers: processes that decode and encode, 0 for none, -1 for one a core; same result.
        reporter: shows progress.

    Raises:
        DataError: no such data, or `out` is something else.
        ConfigError: `out` does not end in .pack, or a size below 0.
        DiskError: the file cannot be written.
    """
    reporter, start = reporter or SilentReporter(), time.perf_counter()
    path = expand_home(out)
    if max_size < 0:
        raise ConfigError(f"max_size = {max_size}: an image has 1 pixel or more a side.")
    _check_path(path, data)
    opened = open_dataset(data, reporter, image_folder, task=task)
    encoding = Encoding(max_size, raw)
    # Files that are copied keep their values, and whoever reads them decides.
    if not encoding.copies_files or value_range != "auto":
        opened = opened.with_value_range(value_range, reporter.note)
    datasets, folder = _list_datasets(opened), _find_folder(opened)
    listings = {
        name: Listing(_list_names(dataset, folder), dataset.labels, dataset.class_names)
        for name, dataset in datasets.items()
    }
    count = sum(len(dataset.labels) for dataset in datasets.values())
    encoded = encode_images([*datasets.values()], encoding, workers, reporter)
    source_bytes, num_encoded, unreadable = 0, 0, list[str]()

    def count_images(images: Iterator[EncodedImage]) -> Iterator[tuple[bytes, int]]:
        nonlocal source_bytes, num_encoded
        for image in images:
            source_bytes += image.source_bytes
            num_encoded += image.encoded
            if image.error:
                unreadable.append(image.error)
            yield image.data, image.digest

    # closing ends the processes where writing fails
    # Renamed when it is complete: whoever reads the earlier pack goes on with that.
    with open_atomic(path, "OUT") as file, closing(encoded):
        tracked = track(encoded, reporter, "pack", count)
        size = write_pack(
            file, listings, count_images(tracked), next(iter(datasets.values())).value_range
        )
    return PackResult(
        path=path,
        data=opened.name,
        splits={
            name or "all": SplitSize(
                num_images=len(dataset.labels),
                num_classes=len(dataset.class_names),
                labels=count_labels(dataset),
            )
            for name, dataset in datasets.items()
        },
        num_copied=count - num_encoded,
        num_encoded=num_encoded,
        unreadable=tuple(unreadable),
        source_bytes=source_bytes,
        bytes=size,
        seconds=time.perf_counter() - start,
    )


def _check_path(path: Path, data: str) -> None:
    if path.suffix != SUFFIX:
        raise ConfigError(
            f"OUT {str(path)!r} must end in {SUFFIX}.", "Its extension is how a pack is recognized."
        )
    # lexists: a dangling link is something too.
    if os.path.lexists(path) and not is_pack(path):
        raise DataError(f"{path} exists and is not a pack.", "Name another OUT.")
    source = expand_home(data)
    if path.exists() and source.exists() and path.samefile(source):
        raise DataError(f"{path} cannot be packed into itself.", "Name another OUT.")
    require_writable(path, "OUT")


def _list_datasets(data: DatasetSplits) -> dict[str, ImageDataset]:
    """Return the splits that have images by name; a data set without splits has the empty name."""
    datasets = data.list_parts()
    if not datasets:
        raise DataError(f"{data.name} has no images to pack.")
    return datasets


def _find_folder(data: DatasetSplits) -> str:
    """Return the folder that a table lies in, with a slash behind it."""
    return os.path.join(Path(data.name).parent, "")


def _list_names(dataset: ImageDataset, folder: str) -> StringArray:
    """Return the names of images below their split, or those in a table below `folder`."""
    if isinstance(dataset, Subset):  # of a tree whose copies are one image each
        return _list_names(dataset.dataset, folder).take(dataset.indices.tolist())
    if isinstance(dataset, PackDataset):
        return dataset.names.with_prefix("")
    if isinstance(dataset, TarDataset):
        return StringArray.from_strings(dataset.names)
    if not isinstance(dataset, FileDataset):
        return StringArray.from_strings(map(dataset.name, range(len(dataset.labels))))
    # a folder, listed below its root
    if isinstance(dataset.paths, StringArray) and dataset.paths.prefix:
        return dataset.paths.with_prefix("")
    names = map(dataset.name, range(len(dataset.labels)))
    return StringArray.from_strings(name.removeprefix(folder) for name in names)


def verify_pack(
    data: str,
    out: str,
    *,
    image_folder: str = "",
    reporter: Reporter | None = None,
) -> PackVerification:
    """Compare a pack with the data that it was made of: splits, classes, names, labels, bytes.

    An image that was encoded anew is the same if its source has the digest in the pack, its own
    bytes have their checksum, and both show the same.

    Raises:
        DataError: no such data, or no readable pack.
    """
    reporter, start = reporter or SilentReporter(), time.perf_counter()
    path = expand_home(out)
    packs = open_pack(path)
    is_multilabel = any(packed.is_multilabel for packed in packs.values())
    task = MULTILABEL if is_multilabel else CLASSIFICATION
    opened = open_dataset(data, reporter, image_folder, task=task)
    if (value_range := next(iter(packs.values())).value_range) is not None:
        opened = opened.with_value_range(value_range, reporter.note)
    datasets = _list_datasets(opened)
    differences = _compare(datasets, packs, _find_folder(opened), reporter)
    examples = tuple(islice(differences, NUM_EXAMPLES))
    return PackVerification(
        path=path,
        data=opened.name,
        num_images=sum(len(packed.labels) for packed in packs.values()),
        # all is compared, also where the examples are complete
        num_different=len(examples) + sum(1 for _ in differences),
        examples=examples,
        seconds=time.perf_counter() - start,
    )


def _compare(
    datasets: Mapping[str, ImageDataset],
    packs: Mapping[str, PackDataset],
    folder: str,
    reporter: Reporter,
) -> Iterator[str]:
    for name in sorted({*datasets, *packs}):
        title = f"Split {name}" if name else "The data set"
        if name in datasets and name in packs:
            yield from _compare_split(datasets[name], packs[name], folder, title, reporter)
        else:
            yield f"{title} is only in the {'pack' if name in packs else 'data'}."


def _compare_split(
    dataset: ImageDataset, packed: PackDataset, folder: str, title: str, reporter: Reporter
) -> Iterator[str]:
    if dataset.class_names != packed.class_names:
        yield f"{title} has other classes."
    names, packed_names = _list_names(dataset, folder), packed.names.with_prefix("")
    at = packed_at = np.arange(len(packed_names))
    # whole arrays first: names of a million images are equal at once
    if not np.array_equal(names.blob, packed_names.blob) or not np.array_equal(
        names.ends, packed_names.ends
    ):
        packed_at, at = _match_names(packed_names, names)
        for index in np.setdiff1d(np.arange(len(packed_names)), packed_at).tolist():
            yield f"{packed.name(index)} is only in the pack."
        for index in np.setdiff1d(np.arange(len(names)), at).tolist():
            yield f"{dataset.name(index)} is only in the data."
        # Images of a pack keep their numbers: views, splits and cached teacher targets go by them.
        if (np.diff(at) < 0).any():
            yield f"{title} has another order."
    pairs = zip(packed_at.tolist(), at.tolist(), strict=True)
    for packed_index, index in track(pairs, reporter, "compare", len(at)):
        if difference := _compare_image(packed, packed_index, dataset, index):
            yield difference


def _match_names(
    packed_names: StringArray, names: StringArray
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the names that are in both, in the order of the first."""
    index_of = {name: index for index, name in enumerate(names)}
    pairs = [
        # popped, so that a name that is listed twice is matched once
        (index, index_of.pop(name))
        for index, name in enumerate(packed_names)
        if name in index_of
    ]
    packed_at, at = np.array(pairs, np.int64).reshape(-1, 2).T
    return packed_at, at


def _compare_image(
    packed: PackDataset, packed_index: int, dataset: ImageDataset, index: int
) -> str:
    """Return how an image differs, empty if it does not."""
    label, packed_label = name_label(dataset, index), name_label(packed, packed_index)
    if label != packed_label:
        one, other = (" and ".join(map(repr, names)) or "none" for names in (packed_label, label))
        return f"{packed.name(packed_index)} is of class {one}, and of {other} in the data."
    try:
        packed_data = packed.read_bytes(packed_index)
    except DataError as error:
        return error.message
    try:
        data = dataset.read_bytes(index)
    except DataError as error:
        # 0: it could not be read when it was packed either.
        return "" if not packed.digests[packed_index] else error.message
    # The digest is of the source's bytes, also where the pack holds another encoding of them.
    if compute_digest(data) != packed.digests[packed_index]:
        return f"{dataset.name(index)} is not what was packed."
    if packed_data != data and not _show_the_same(packed, packed_index, dataset, index):
        return f"{packed.name(packed_index)} is another image than {dataset.name(index)}."
    return ""


def _show_the_same(
    packed: PackDataset, packed_index: int, dataset: ImageDataset, index: int
) -> bool:
    """Return whether two images are equal but for what encoding loses."""
    # 8 x 8 pixels: small enough for JPEG's loss and the other size to vanish, large enough to tell
    # images apart.
    size, filter = (COMPARED_SIDE, COMPARED_SIDE), Image.Resampling.BICUBIC
    try:
        images = packed.read(packed_index), dataset.read(index)
    except DataError:  # damaged, and packed so
        return False
    one, other = (np.asarray(image.resize(size, filter), np.float32) for image in images)
    return float(np.abs(one - other).mean()) <= MAX_DIFFERENCE

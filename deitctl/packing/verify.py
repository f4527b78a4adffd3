"""Verification of packed shards: comparison with the data that they were made of."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.arrays import StringArray
from deitctl.data.contents import compute_digest
from deitctl.data.dataset import ImageDataset
from deitctl.data.labels import name_label
from deitctl.data.open import open_dataset
from deitctl.data.readers.columnar_dataset import ColumnarDataset
from deitctl.data.readers.shard_checksums import find_changed_shards
from deitctl.data.readers.tar_dataset import TarDataset
from deitctl.data.stores.store_settings import reading_stores
from deitctl.errors import DataError
from deitctl.events import Reporter, SilentReporter, track
from deitctl.home import expand_home
from deitctl.models.tasks import CLASSIFICATION, MULTILABEL
from deitctl.packing.samples import find_folder, join_class_names, list_names, spell_in_utf8
from deitctl.paths import suggest_path

NUM_EXAMPLES = 20
COMPARED_SIDE = 8
"""To which images are resized for a comparison."""
MAX_DIFFERENCE = 4.0
"""Mean gray levels; 84 photographs encoded at 160 pixels differed by 0.3, from others by 31."""


@dataclass(frozen=True, kw_only=True)
class PackVerification:
    """The comparison of shards with their data."""

    path: Path
    """The folder of the shards."""
    data: str
    """What it was compared with."""
    num_images: int
    """In the shards."""
    num_different: int
    """Images, and shards, splits, classes or orders, that differ."""
    examples: tuple[str, ...]
    """The first 20 differences."""
    seconds: float
    """Of the comparison."""


def verify_pack(
    data: str,
    out: str,
    *,
    image_folder: str = "",
    cache_dir: str = "",
    cache_size: str = "",
    reporter: Reporter | None = None,
) -> PackVerification:
    """Compare shards with the data that they were made of: splits, classes, names, labels, bytes.

    The files themselves are compared with the SHA-256 that `_info.json` has of each.

    An image that was encoded anew is the same if its source has the digest in the index (Parquet
    files have none), its own bytes have their checksum, and both show the same.

    Raises:
        DataError: no such data, or no readable shards.
    """
    reporter, start = reporter or SilentReporter(), time.perf_counter()
    path = expand_home(out)
    if not path.exists():
        raise DataError(f"There is no {path}.", suggest_path(path) or "`deitctl pack` writes it.")
    packs = open_dataset(out, reporter).list_parts()
    is_multilabel = any(packed.is_multilabel for packed in packs.values())
    task = MULTILABEL if is_multilabel else CLASSIFICATION
    with reading_stores(cache_dir, cache_size, reporter):
        opened = open_dataset(data, reporter, image_folder, task=task)
    if (value_range := next(iter(packs.values())).value_range) is not None:
        opened = opened.with_value_range(value_range, reporter.note)
    changed = find_changed_shards(out, reporter)
    differences = chain(
        (f"{shard} has not the bytes that were packed." for shard in changed),
        _compare(opened.list_parts(), packs, find_folder(opened), reporter),
    )
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
    packs: Mapping[str, ImageDataset],
    folder: str,
    reporter: Reporter,
) -> Iterator[str]:
    # Without the index, a split may have the classes of all.
    class_names = join_class_names(datasets)
    for name in sorted({*datasets, *packs}):
        title = f"Split {name}" if name else "The data set"
        if name in datasets and name in packs:
            expected = (datasets[name].class_names, class_names)
            if packs[name].class_names not in expected[: 1 if _has_digests(packs[name]) else 2]:
                yield f"{title} has other classes."
            yield from _compare_split(datasets[name], packs[name], folder, title, reporter)
        else:
            yield f"{title} is only in the {'shards' if name in packs else 'data'}."


def _compare_split(
    dataset: ImageDataset, packed: ImageDataset, folder: str, title: str, reporter: Reporter
) -> Iterator[str]:
    names, packed_names = list_names(dataset, folder), list_names(packed, "")
    if isinstance(packed, ColumnarDataset):
        names = StringArray.from_strings(map(spell_in_utf8, names))
    at = packed_at = np.arange(len(packed_names))
    # whole arrays first: names of a million images are equal at once
    if not np.array_equal(names.blob, packed_names.blob) or not np.array_equal(
        names.ends, packed_names.ends
    ):
        packed_at, at = _match_names(packed_names, names)
        for index in np.setdiff1d(np.arange(len(packed_names)), packed_at).tolist():
            yield f"{packed.name(index)} is only in the shards."
        for index in np.setdiff1d(np.arange(len(names)), at).tolist():
            yield f"{dataset.name(index)} is only in the data."
        # Packed images keep their numbers: views, splits and cached teacher targets go by them.
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
    packed: ImageDataset, packed_index: int, dataset: ImageDataset, index: int
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
        return error.message if packed_data else ""
    # The digest is of the source's bytes, also where the shard holds another encoding of them.
    if _has_digests(packed) and compute_digest(data) != packed.digest(packed_index):
        return f"{dataset.name(index)} is not what was packed."
    if packed_data != data and not _show_the_same(packed, packed_index, dataset, index):
        return f"{packed.name(packed_index)} is another image than {dataset.name(index)}."
    return ""


def _has_digests(packed: ImageDataset) -> bool:
    """Whether the digests of the sources are recorded beside the images."""
    return isinstance(packed, TarDataset) and packed.spans.digests is not None


def _show_the_same(
    packed: ImageDataset, packed_index: int, dataset: ImageDataset, index: int
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

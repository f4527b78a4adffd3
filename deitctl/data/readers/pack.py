"""Reader and writer of packs: a dataset in one file, images first, their index behind them.

A pack is a magic line, eight bytes with the offset of the index, the images in order, and the
index: a block of arrays (`arrays.encode_block`) with names, labels and, of each image, its span and
two checksums. Reading in order reads the file from end to end; any one image costs one `pread` and
no `open`. Whatever a pack holds is validated. A pack that is written to while it is open is noticed at
the next read.

Letters: N images.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import (
    ALIGN,
    UNREADABLE,
    StoredBytes,
    StringArray,
    encode_block,
    read_block,
)
from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.decode import require_bytes
from deitctl.data.index import Listing
from deitctl.data.open_file import OpenFile
from deitctl.data.reading import raise_read_error, read_patiently
from deitctl.data.splits import SPLITS
from deitctl.data.value_range import NO_RANGE, describe_range
from deitctl.errors import DataError
from deitctl.models.model_config import ValueRange, read_value_range
from deitctl.paths import suggest_path

SUFFIX = ".pack"
FAMILY = b"deitctl pack "
MAGIC = FAMILY + b"2\n"
MAGIC_SEVERAL = FAMILY + b"3\n"
"""Of several labels an image, which earlier versions would read as one."""
START = ALIGN
"""Offset of the first image: magic line, offset of the index, padding."""
LISTING_DTYPES = {"blob": "|u1", "ends": "<i8", "labels": "<i8", "spans": "<i8"}
CHECKSUM_DTYPES = {"checksums": "<u4", "digests": "<u8"}
DTYPES = (*LISTING_DTYPES.values(), *CHECKSUM_DTYPES.values())
AT_LABELS = list(LISTING_DTYPES).index("labels")
DTYPES_SEVERAL = (*DTYPES[:AT_LABELS], "|u1", *DTYPES[AT_LABELS + 1 :])
"""Of several labels an image: bits, eight classes a byte, [N, K/8]."""


@dataclass(frozen=True)
class PackDataset(ImageDataset):
    """Images in a pack."""

    file: OpenFile
    names: StringArray
    """Names at the time of packing, below those of the pack and the split."""
    spans: NDArray[np.int64]
    """Offset and size of each image in the pack, in bytes, [N,2]."""
    checksums: NDArray[np.uint32]
    """CRC-32 of each image's bytes in the pack, [N]."""
    digests: NDArray[np.uint64]
    """Digest of each original file, which packing may have encoded anew, [N]; 0 for an unreadable
    one."""
    labels: Labels
    class_names: tuple[str, ...]
    value_range: ValueRange | None = None
    """By which its images of more than 8 bits were scaled, or are to be."""

    def with_value_range(self, value_range: ValueRange | None) -> PackDataset:
        """Return the same images; raise `DataError` for another range than the one they were packed by."""
        own = self.value_range
        if own is None:
            return super().with_value_range(value_range)
        if value_range is None or value_range == NO_RANGE:
            return self
        if value_range[:2] != own[:2]:
            raise DataError(
                f"{self.file.path} was packed with the value range {describe_range(own)}, not "
                f"with {describe_range(value_range)}.",
                "Pack the images again with the one that you want (--value-range).",
            )
        return super().with_value_range(value_range)

    def with_bands(self, bands: int) -> PackDataset:
        """Return the images; raise `DataError` for bands, which they have not."""
        if bands:
            raise DataError(
                f"{self.file.path} is a pack, which holds RGB, and --in-chans {bands} takes images of {bands} bands.",
                "Name the folder, table or tar that has the images.",
            )
        return self

    def name(self, index: int) -> str:
        return self.names[index]

    def relative_path(self, index: int) -> str:
        return self.names[index].removeprefix(self.names.prefix)

    def num_bytes(self, index: int) -> int:
        return int(self.spans[index, 1])

    def read_bytes(self, index: int) -> bytes:
        offset, size = self.spans[index].tolist()
        require_bytes(size, self.name(index))
        try:
            data = read_patiently(lambda: self.file.read(offset, size), self.file.path)
        except OSError as error:
            raise_read_error(self.name(index), error)
        # At each read, which costs a hundredth of decoding the image.
        if zlib.crc32(data) != self.checksums[index]:
            raise DataError(
                f"{self.name(index)} is damaged: its bytes do not match their checksum.",
                "Pack the data again.",
            )
        return data

    def digest(self, index: int) -> int:
        return int(self.digests[index])


def open_pack(path: Path) -> dict[str, PackDataset]:
    """Open a pack's `train`, `val` and `test` split, or all of it under "".

    Raises:
        DataError: it is missing, not a pack, of another version, truncated or damaged.
    """
    if not path.exists():
        raise DataError(f"There is no {path}.", suggest_path(path) or "`deitctl pack` writes one.")
    try:
        file = OpenFile(os.path.abspath(path))
        start = file.read(0, START)
        if not start.startswith(FAMILY):
            raise DataError(f"{path} is not a pack.", "`deitctl pack` writes one.")
        if not start.startswith((MAGIC, MAGIC_SEVERAL)):
            raise DataError(
                f"{path} is a pack of another version of deitctl.", "Pack the data again."
            )
        offset = int.from_bytes(start[len(MAGIC) : len(MAGIC) + 8], "little")
        index = StoredBytes(file, offset)
        is_multilabel = start.startswith(MAGIC_SEVERAL)
        dtypes = DTYPES_SEVERAL if is_multilabel else DTYPES
        header, arrays = read_block(index, offset, lambda header: dtypes * len(header["splits"]))
        splits: dict[str, list[str]] = header["splits"]
        if not splits or (set(splits) != {""} and not set(splits) <= set(SPLITS)):
            raise ValueError("it has no splits")
        value_range = read_value_range(header.get("value_range"))
        return {
            name: _open_split(
                file,
                f"{path}:{name and name + '/'}",
                class_names,
                arrays[n * len(DTYPES) : (n + 1) * len(DTYPES)],
                offset,
                value_range,
                is_multilabel,
            )
            for n, (name, class_names) in enumerate(splits.items())
        }
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UNREADABLE as error:
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{path} is a damaged pack: {why}.", "Pack the data again.") from error


def _open_split(
    file: OpenFile,
    prefix: str,
    classes: list[str],
    arrays: list[NDArray[Any]],
    end: int,
    value_range: ValueRange | None,
    is_multilabel: bool,
) -> PackDataset:
    """Build one split.

    Raises:
        ValueError: its arrays are inconsistent or point outside of the images' bytes.
    """
    labels = _unpack_labels(arrays, len(classes)) if is_multilabel else None
    blob, name_ends, numbers, spans = arrays[: len(LISTING_DTYPES)]
    checksums, digests = arrays[len(LISTING_DTYPES) :]
    names, class_names = StringArray(blob, name_ends), tuple(map(str, classes))
    count = len(names.ends) - 1
    if not names.is_valid() or numbers.shape != (count,):
        raise ValueError("its arrays are inconsistent")
    # Negative offsets and labels would index from the end, silently.
    if min(numbers.min(initial=0), spans.min(initial=0)) < 0:
        raise ValueError("its arrays are inconsistent")
    if numbers.max(initial=-1) >= len(classes):
        raise ValueError("its arrays are inconsistent")
    shapes = (spans.shape, checksums.shape, digests.shape)
    if not count or shapes != ((count, 2), (count,), (count,)):
        raise ValueError("its arrays are inconsistent")
    if len(set(class_names)) != len(class_names):
        raise ValueError("it has two classes with the same name")
    # Written so that sums of huge offsets cannot overflow.
    if spans[:, 0].min() < START or (spans[:, 1] > end - spans[:, 0]).any():
        raise ValueError("an image lies outside of it")
    return PackDataset(
        file,
        names.with_prefix(prefix),
        spans,
        checksums,
        digests,
        numbers if labels is None else labels,
        class_names,
        value_range,
    )


def _unpack_labels(arrays: list[NDArray[Any]], num_classes: int) -> NDArray[np.bool_]:
    """Return the labels of several an image, [N,K], and put labels of one into their place among the arrays.

    Raises:
        ValueError: they are of another number of classes.
    """
    bits = arrays[AT_LABELS]
    count = max(0, len(arrays[AT_LABELS - 1]) - 1)
    if not num_classes or bits.shape != (count, -(-num_classes // 8)):
        raise ValueError("its labels are inconsistent")
    arrays[AT_LABELS] = np.zeros(count, np.int64)
    return np.unpackbits(bits, axis=1, count=num_classes).astype(np.bool_)


def is_pack(path: Path) -> bool:
    """Whether a file begins as a pack of any version does."""
    if not path.is_file():  # opening a pipe would block
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(FAMILY)) == FAMILY
    except OSError:
        return False


def write_pack(
    file: BinaryIO,
    splits: Mapping[str, Listing],
    images: Iterable[tuple[bytes, int]],
    value_range: ValueRange | None = None,
) -> int:
    """Write a pack and return its size in bytes.

    Args:
        file: empty, open for writing.
        splits: names, labels and classes of each; spans are not used.
        images: bytes and digest (see `PackDataset.digests`) of every image, split by split;
            consumed one by one.
        value_range: by which images of more than 8 bits were scaled, or are to be.
    """
    ends, checksums, digests = array("q", [START]), array("I"), array("Q")
    file.write(bytes(START))
    for data, digest in images:
        file.write(data)
        ends.append(ends[-1] + len(data))
        checksums.append(zlib.crc32(data))
        digests.append(digest)
    offsets = np.frombuffer(ends, np.int64)
    spans = np.stack([offsets[:-1], np.diff(offsets)], axis=1)
    arrays: list[tuple[str, NDArray[Any]]] = []
    is_multilabel = any(split.labels.ndim == 2 for split in splits.values())
    bounds = np.cumsum([0, *(len(split.labels) for split in splits.values())]).tolist()
    for split, (first, last) in zip(splits.values(), pairwise(bounds), strict=True):
        values = (
            split.names.blob,
            split.names.ends,
            np.packbits(split.labels, axis=1) if is_multilabel else split.labels,
            spans[first:last],
            np.frombuffer(checksums, np.uint32)[first:last],
            np.frombuffer(digests, np.uint64)[first:last],
        )
        arrays += zip(DTYPES_SEVERAL if is_multilabel else DTYPES, values, strict=True)
    offset = ends[-1] + -ends[-1] % ALIGN
    # Aligned, so that arrays can be used in place.
    file.write(bytes(offset - ends[-1]))
    header: dict[str, Any] = {"splits": {name: split.class_names for name, split in splits.items()}}
    if value_range not in (None, NO_RANGE):
        header["value_range"] = value_range
    for piece in encode_block(header, arrays, offset):
        file.write(piece)
    size = file.tell()
    # The magic line goes last: an interrupted write leaves no file that looks like a pack.
    file.seek(0)
    file.write((MAGIC_SEVERAL if is_multilabel else MAGIC) + offset.to_bytes(8, "little"))
    return size

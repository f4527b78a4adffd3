"""Images inside uncompressed tars, read in place: of one tar, of shards, of what `pack` wrote."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.decode import require_bytes
from deitctl.data.index import Listing
from deitctl.data.open_file import OpenFile
from deitctl.data.reading import raise_read_error, read_patiently
from deitctl.data.shard_files import ShardFiles, Spans
from deitctl.data.stores.stored_file import StoredFile
from deitctl.data.value_range import NO_RANGE, describe_range
from deitctl.errors import DataError
from deitctl.models.model_config import ValueRange
from deitctl.names import canonicalize_name

LARGE = 2**17
"""Bytes above which memory for a copy is mapped anew each time, which takes longer than a second read."""


@dataclass(frozen=True)
class TarDataset(ImageDataset):
    """Images inside uncompressed tars, any of which costs one read at an offset."""

    files: ShardFiles
    names: Sequence[str]
    """Paths of the images below the data, [N]; a `StringArray` where there may be many."""
    spans: Spans
    labels: Labels
    class_names: tuple[str, ...]
    packed_range: ValueRange | None = None
    """By which its images of more than 8 bits were scaled when they were packed."""
    is_rgb: bool = False
    """Whether packing made RGB of its images, so that bands are gone."""
    value_range: ValueRange | None = None
    group_names: Sequence[str] | None = None

    @property
    def is_packed(self) -> bool:
        """Whether `pack` wrote them: their labels are as they are, and digests of the sources are recorded."""
        return self.spans.digests is not None

    @property
    def is_tree(self) -> bool:
        """Whether the classes are the folders of the images, so that one of several classes has copies."""
        if self.is_packed or self.is_multilabel or not len(self.labels):
            return False
        folder = canonicalize_name(self.names[0].partition("/")[0])
        return folder == self.class_names[int(self.labels[0])]

    def with_value_range(self, value_range: ValueRange | None) -> TarDataset:
        """Return the same images; raise `DataError` for another range than the one they were packed by."""
        packed = self.packed_range
        if packed is None:
            return super().with_value_range(value_range)
        if value_range is None or value_range == NO_RANGE:
            return self
        if value_range[:2] != packed[:2]:
            raise DataError(
                f"{self.files.name(0)} was packed with the value range {describe_range(packed)}, not "
                f"with {describe_range(value_range)}.",
                "Pack the images again with the one that you want (--value-range).",
            )
        return super().with_value_range(value_range)

    def with_bands(self, bands: int) -> TarDataset:
        """Return the images; raise `DataError` for bands that packing removed."""
        if bands and self.is_rgb:
            raise DataError(
                f"{self.files.name(0)} was packed as RGB, and --in-chans {bands} takes images of "
                f"{bands} bands.",
                "Name the folder, table or tar that has the images.",
            )
        return super().with_bands(bands)

    def name(self, index: int) -> str:
        return f"{self.files.name(self.spans.shards[index])}:{self.names[index]}"

    def relative_path(self, index: int) -> str:
        return self.names[index]

    def num_bytes(self, index: int) -> int:
        return int(self.spans.sizes[index])

    def read_sizes(self, indices: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        return self.spans.sizes if indices is None else self.spans.sizes[indices]

    def read_bytes(self, index: int) -> bytes:
        spans, shard = self.spans, int(self.spans.shards[index])
        lead, offset, size = (
            self._get_lead(index),
            int(spans.offsets[index]),
            int(spans.sizes[index]),
        )
        require_bytes(size, self.name(index))
        try:
            head, data = read_patiently(
                lambda: _read_parts(self.files.open(shard), offset - lead, lead, size),
                self.files.paths[shard],
            )
        except OSError as error:
            raise_read_error(self.name(index), error)
        # At each read, which costs a hundredth of decoding the image.
        if spans.crc32s is not None and zlib.crc32(data, zlib.crc32(head)) != spans.crc32s[index]:
            raise DataError(
                f"{self.name(index)} is damaged: its bytes do not match their checksum.",
                "Copy the shard again, or pack the data again.",
            )
        return data

    def _get_lead(self, index: int) -> int:
        return 0 if self.spans.leads is None else int(self.spans.leads[index])

    @property
    def blocks(self) -> NDArray[np.int32] | None:
        return self.spans.shards if self.files.come_whole else None

    @property
    def num_cached_blocks(self) -> int:
        return self.files.num_cached if self.files.come_whole else 0

    def prefetch(self, indices: Sequence[int]) -> None:
        if not self.files.are_remote:  # the system reads ahead, and opening shards costs more
            return
        ranges: dict[int, list[tuple[int, int]]] = {}
        for index in indices:
            lead, size = self._get_lead(index), int(self.spans.sizes[index])
            span = int(self.spans.offsets[index]) - lead, size + lead
            ranges.setdefault(int(self.spans.shards[index]), []).append(span)
        for shard, spans in ranges.items():
            with suppress(OSError):  # the read itself says so
                self.files.open(shard).prefetch(spans)

    @property
    def recorded_digests(self) -> NDArray[np.uint64] | None:
        return self.spans.digests

    def digest(self, index: int) -> int:
        digests = self.spans.digests
        return super().digest(index) if digests is None else int(digests[index])


def _read_parts(file: StoredFile, offset: int, lead: int, size: int) -> tuple[bytes, bytes]:
    """Return what precedes an image, and the image: in one read, but for large ones of a local file."""
    if not lead:
        return b"", file.read(offset, size)
    if size > LARGE and isinstance(file, OpenFile):
        return file.read(offset, lead), file.read(offset + lead, size)
    data = file.read(offset, lead + size)
    return data[:lead], data[lead:]


def build_tar_dataset(
    files: ShardFiles,
    listing: Listing,
    value_range: ValueRange | None = None,
    *,
    is_rgb: bool = False,
) -> TarDataset:
    """Return the images of a listing.

    Args:
        files: the shards that its spans are in.
        listing: names, labels, class names and spans.
        value_range: by which packing scaled images of more than 8 bits; None: none was recorded.
        is_rgb: whether packing made RGB of them.

    Raises:
        ValueError: it has no spans.
    """
    if listing.spans is None:
        raise ValueError("the images of a tar have spans")
    return TarDataset(
        files,
        listing.names,
        listing.spans,
        listing.labels,
        listing.class_names,
        value_range,
        is_rgb,
        value_range,
    )

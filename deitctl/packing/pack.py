"""Packing: write a data set into shards, which every command and other libraries read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deitctl.byte_sizes import parse_bytes
from deitctl.checks.check import SplitSize
from deitctl.checks.labels import count_labels
from deitctl.data.open import open_dataset
from deitctl.data.stores.store_settings import reading_stores
from deitctl.errors import ConfigError
from deitctl.events import Reporter, SilentReporter
from deitctl.packing.destination import (
    choose_folder,
    require_apart,
    require_space,
    warn_of_leftovers,
    write_folder,
)
from deitctl.packing.encode import Encoding
from deitctl.packing.manifest import UNSPLIT, Shard
from deitctl.packing.parquet_shards import write_parquet
from deitctl.packing.samples import SampleSource
from deitctl.packing.tar_shards import write_webdataset

WEBDATASET, PARQUET = "wds", "parquet"
FORMATS = (WEBDATASET, PARQUET)
TIMM_EXTENSIONS = {"jpg", "png", "webp"}
"""That timm's reader of shards looks for; without a word, it has no image of others."""
SAMPLE_OVERHEAD = 3072
"""Bytes that a tar needs beside an image: headers, label, name, padding."""


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """Shards that were written."""

    path: Path
    """Their folder."""
    data: str
    """What was packed."""
    format: str
    """wds (WebDataset tars) or parquet."""
    splits: dict[str, SplitSize]
    """By name: train, val, test, or all of a data set without splits."""
    num_shards: int
    """Files with images."""
    num_copied: int
    """Images stored as the bytes of their files, unreadable ones included."""
    num_encoded: int
    """Images stored in another form."""
    unreadable: tuple[str, ...]
    """Why each image could not be read, or not be decoded where it had to be."""
    source_bytes: int
    """Of all images' files."""
    bytes: int
    """Of the folder."""
    seconds: float
    """Of packing."""


def pack(
    data: str,
    out: str,
    *,
    max_size: int = 0,
    raw: bool = False,
    to: str = WEBDATASET,
    shard_size: str | int = "1GB",
    shuffle: bool = False,
    image_folder: str = "",
    task: str = "auto",
    value_range: str = "auto",
    workers: int = -1,
    cache_dir: str = "",
    cache_size: str = "",
    reporter: Reporter | None = None,
) -> PackResult:
    """Write the images of a data set, with their names, labels and splits, into shards.

    Args:
        data: anything that `open_dataset` opens.
        out: the folder; one that `pack` wrote is replaced, nothing else is.
        max_size: short side in pixels above which an image becomes a smaller JPEG; 0: none does.
        raw: store pixels, which need no decoding.
        to: wds, WebDataset tars with an index; parquet, the hub's form.
        shard_size: bytes of a shard at most, with a unit: `500MB`; one image may be larger.
        shuffle: write images in a random order, always the same, for readers that stream shards; the
            index has the order of the data.
        image_folder: folder that the paths of a table are below; empty: where the table leads.
        task: whether an image has one label or several; auto: as the data has them.
        value_range: of images of more than 8 bits that are encoded anew, see `settle_range`; the
            shards keep it, so that a model that is trained on them does.
        workers: processes that decode and encode, 0 for none, -1 for one a core; same result.
        cache_dir: folder of what is read from stores, see `reading_stores`.
        cache_size: of that folder.
        reporter: shows progress.

    Raises:
        DataError: no such data, or `out` is something else.
        ConfigError: `out` is no folder on a disk, or a value is out of its range.
        DiskError: the shards cannot be written.
    """
    reporter, start = reporter or SilentReporter(), time.perf_counter()
    if max_size < 0:
        raise ConfigError(f"max_size = {max_size}: an image has 1 pixel or more a side.")
    if to not in FORMATS:
        raise ConfigError(f"to = {to!r} is not a format.", f"Choose from: {', '.join(FORMATS)}.")
    max_bytes = parse_bytes(shard_size, "shard_size")
    path = choose_folder(out, data)
    warn_of_leftovers(path, reporter)
    with reading_stores(cache_dir, cache_size, reporter):
        opened = open_dataset(data, reporter, image_folder, task=task)
    require_apart(path, opened.list_parts().values())
    encoding = Encoding(max_size, raw)
    # Files that are copied keep their values, and whoever reads them decides.
    if not encoding.copies_files or value_range != "auto":
        opened = opened.with_value_range(value_range, reporter.note)
    source = SampleSource(opened, encoding, shuffles=shuffle, workers=workers, reporter=reporter)
    if encoding.copies_files:
        require_space(path, source.count_bytes() + source.count * SAMPLE_OVERHEAD)
    if to == PARQUET and source.value_range is not None:
        low, high, _ = source.value_range
        reporter.warn(
            f"Parquet files do not hold the value range of the images: train on them with --value-range "
            f"{low},{high}, so that the model has it."
        )
    write = write_webdataset if to == WEBDATASET else write_parquet
    with write_folder(path) as folder:
        shards = write(folder, source, max_bytes)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if to == WEBDATASET:
        _note_extensions(source, reporter)
    _warn_of_small_shards(shards, len(source.datasets), max_bytes, reporter)
    return PackResult(
        path=path,
        data=opened.name,
        format=to,
        splits={
            name or UNSPLIT: SplitSize(
                num_images=len(dataset.labels),
                num_classes=len(dataset.class_names),
                labels=count_labels(dataset),
            )
            for name, dataset in source.datasets.items()
        },
        num_shards=len(shards),
        num_copied=source.count - source.num_encoded,
        num_encoded=source.num_encoded,
        unreadable=tuple(source.unreadable),
        source_bytes=source.source_bytes,
        bytes=size,
        seconds=time.perf_counter() - start,
    )


def _note_extensions(source: SampleSource, reporter: Reporter) -> None:
    """Report the images that timm's reader of shards passes over."""
    others = sorted(set(source.extensions) - TIMM_EXTENSIONS)
    if others:
        count = sum(source.extensions[extension] for extension in others)
        reporter.note(
            f"{count:,} image(s) are stored as .{', .'.join(others)}, which webdataset reads; timm's reader of shards "
            "takes .jpg, .png and .webp alone."
        )


def _warn_of_small_shards(
    shards: Sequence[Shard], num_splits: int, max_bytes: int, reporter: Reporter
) -> None:
    """Warn of shards most of which hold one image: each is a file to open."""
    num_single = sum(shard.num_samples == 1 for shard in shards)
    if len(shards) > 2 * num_splits and 2 * num_single > len(shards):
        reporter.warn(
            f"{num_single:,} of {len(shards):,} shards hold one image: --shard-size is {max_bytes:,} bytes. "
            "Name a larger one, 500MB for example."
        )

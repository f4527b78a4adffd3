"""Reader of tars: of class folders, of one class each, of WebDataset samples; one of them or many shards.

From the index of the tars where it is current, else from their headers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from deitctl.data.index import Listing, ScanState, load_or_scan
from deitctl.data.readers.beside_shards import INFO_FILES
from deitctl.data.readers.class_tars import list_class_folders
from deitctl.data.readers.passed_over import merge_spellings, report_layout, report_unread
from deitctl.data.readers.sample_names import name_images
from deitctl.data.readers.shard_checksums import require_sizes
from deitctl.data.readers.shard_contents import ShardContents, join_spans, scan_shards
from deitctl.data.readers.shard_names import ShardSet
from deitctl.data.readers.tar_dataset import TarDataset, build_tar_dataset
from deitctl.data.readers.webdataset import has_samples, list_samples
from deitctl.data.shard_files import ShardFiles, open_shards
from deitctl.data.stores.address import get_folder, get_name, is_remote, name_version
from deitctl.errors import DataError
from deitctl.events import Reporter


def open_tars(shards: ShardSet, reporter: Reporter) -> dict[str, TarDataset]:
    """Open the `train`, `val` and `test` split of some tars, or all of them under "".

    Raises:
        DataError: one is not a readable tar, or they have no images with labels.
    """
    paths = shards.list_shards()
    # before they are scanned: offsets are those of these files
    files = open_shards(paths, shards.name)
    require_sizes(shards.info, files)
    listings = _load_listings(shards, files, reporter, partial(_list_images, shards))
    # the same words for every part
    note, _, warning = next(iter(listings.values())).layout.partition("\n")
    report_layout(shards.name, note, warning, reporter)
    report_unread(shards.name, [listing.unread for listing in listings.values()], reporter)
    datasets = {}
    for split, listing in listings.items():
        where = f"{shards.name}:{split}/" if split else shards.name
        datasets[split] = build_tar_dataset(files, merge_spellings(listing, where, reporter))
    return datasets


def open_unlabeled_tars(shards: ShardSet, reporter: Reporter) -> TarDataset:
    """Open all images of some tars, with -1 as the label of each.

    Raises:
        DataError: one is not a readable tar.
    """
    files = open_shards(shards.list_shards(), shards.name)
    require_sizes(shards.info, files)

    def list_images(contents: Sequence[ShardContents]) -> dict[str, Listing]:
        members = [name for shard in contents for name in shard.names]
        spans = join_spans(contents, range(len(contents)))
        names = name_images(files.paths, spans.shards, lambda: ((name, None) for name in members))
        unread = sum((Counter(shard.unread) for shard in contents), Counter[str]())
        labels = np.zeros(len(names), np.int64)  # an index has no -1
        return {"": Listing(names, labels, ("",), spans, dict(unread))}

    listing = _load_listings(shards, files, reporter, list_images, ("without labels",))[""]
    report_unread(shards.name, [listing.unread], reporter)
    assert listing.spans is not None
    labels = np.full(len(listing.names), -1, np.int64)
    return TarDataset(files, listing.names, listing.spans, labels, ())


def _load_listings(
    shards: ShardSet,
    files: ShardFiles,
    reporter: Reporter,
    list_images: Callable[[Sequence[ShardContents]], dict[str, Listing]],
    purpose: Sequence[str] = (),
) -> dict[str, Listing]:
    """Return the images of tars by split, from their index if it is current.

    Args:
        shards: the tars.
        files: the same, open.
        reporter: receives progress.
        list_images: returns the listings for what was scanned.
        purpose: what tells this index of the tars from others.
    """
    first = files.paths[0]
    is_single = len(files) == 1 and not is_remote(first)
    folder = get_folder(first) if is_remote(first) else os.path.dirname(first)
    root = Path(first if is_single else folder)

    def scan(state: ScanState) -> dict[str, Listing]:
        for path in files.paths:
            if not is_remote(path):
                state.add(os.path.abspath(path))
        return list_images(scan_shards(files, root.name, reporter))

    is_plain = set(shards.parts) == {""} and not (shards.info or shards.list_class_names())
    key = [] if is_single and is_plain and not purpose else list(_iterate_key(shards, files))
    return load_or_scan(root, scan, reporter, [*key, *purpose])


def _iterate_key(shards: ShardSet, files: ShardFiles) -> Iterator[str]:
    """Yield what the index of some tars depends on beside the state of each."""
    for split, paths in shards.parts.items():
        yield f"{split}: {len(paths)}"
    for path, identity in zip(files.paths, files.identities, strict=True):
        if is_remote(path):
            yield f"{name_version(path, str(identity[1]))} {identity[0]}"
        else:
            yield os.path.abspath(path)
    lengths = shards.list_lengths()
    yield repr((shards.list_class_names(), [lengths.get(get_name(path)) for path in files.paths]))


def _list_images(shards: ShardSet, contents: Sequence[ShardContents]) -> dict[str, Listing]:
    paths, parts, start = shards.list_shards(), dict[str, range](), 0
    for split, own in shards.parts.items():
        parts[split] = range(start, start + len(own))
        start += len(own)
    if not has_samples(contents):
        _refuse_dotted_keys(shards, contents)
        return list_class_folders(contents, parts, paths, shards.name)
    _require_numbers(shards, contents)
    return list_samples(contents, parts, paths, shards.list_class_names(), shards.name)


def _refuse_dotted_keys(shards: ShardSet, contents: Sequence[ShardContents]) -> None:
    """Raise `DataError` if images without folders have labels beside them that are not theirs."""
    is_flat = not any((shard.names.blob == ord("/")).any() for shard in contents)
    if is_flat and (count := sum(shard.unread.get(".cls", 0) for shard in contents)):
        raise DataError(
            f"{shards.name} has {count:,} .cls, and none is of an image: a key ends at the first dot.",
            "Name the members of a sample KEY.jpg and KEY.cls, without a dot in KEY.",
        )


def _require_numbers(shards: ShardSet, contents: Sequence[ShardContents]) -> None:
    """Raise `DataError` if a shard has fewer samples than `_info.json` says."""
    lengths = shards.list_lengths()
    for path, shard in zip(shards.list_shards(), contents, strict=True):
        expected = lengths.get(get_name(path))
        if isinstance(expected, int) and shard.num_samples < expected:
            raise DataError(
                f"{path} has {shard.num_samples:,} samples, and {INFO_FILES[0]} beside it says "
                f"{expected:,}.",
                "Copy or download it again.",
            )

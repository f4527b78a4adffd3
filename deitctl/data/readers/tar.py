"""Reader of uncompressed tars of class folders.

From the tar's index where it is current, else from its headers.
"""

from __future__ import annotations

import posixpath
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import StringArray
from deitctl.data.file_types import (
    START_BYTES,
    get_extensions,
    identify,
    is_image_kind,
    is_image_start,
    may_be_image,
)
from deitctl.data.find_layout import find_layout
from deitctl.data.index import Listing, ScanState, load_or_scan
from deitctl.data.layout import is_junk
from deitctl.data.readers.folder import split_classes
from deitctl.data.readers.passed_over import (
    leave_out,
    merge_spellings,
    report_layout,
    report_unread,
    require_labels,
)
from deitctl.data.readers.tar_dataset import TarDataset, build_tar_dataset
from deitctl.data.shard_files import Spans, open_local
from deitctl.data.trees import NameTree
from deitctl.errors import DataError
from deitctl.events import Reporter


def open_tar(path: Path, reporter: Reporter) -> dict[str, TarDataset]:
    """Open a tar's `train`, `val` and `test` split, or all of it under "".

    Raises:
        DataError: it is not a readable tar, or has no class folders with images.
    """

    def scan(state: ScanState) -> dict[str, Listing]:
        state.add("")
        return _scan(path, reporter)

    files = open_local([path])  # before it is scanned: offsets are those of this file
    listings = load_or_scan(path, scan, reporter)
    # the same words for every part
    note, _, warning = next(iter(listings.values())).layout.partition("\n")
    report_layout(str(path), note, warning, reporter)
    report_unread(str(path), [listing.unread for listing in listings.values()], reporter)
    datasets = {}
    for split, listing in listings.items():
        where = f"{path}:{split}/" if split else str(path)
        datasets[split] = build_tar_dataset(files, merge_spellings(listing, where, reporter))
    return datasets


def _scan(path: Path, reporter: Reporter) -> dict[str, Listing]:
    spans, unread, links = array("q"), Counter[str](), list[tuple[str, str]]()
    # NUL sorts before every character of a name, so sorted keys are in the order of a walk, folder
    # by folder.
    keys = [
        name.replace("/", "\0")
        for name in StringArray.from_strings(_list_members(path, spans, unread, links, reporter))
    ]
    keys += [key.replace("/", "\0") for key in _resolve_links(links, keys, spans)]
    tree = NameTree(key.replace("\0", "/") for key in keys)
    layout = find_layout(tree, str(path))
    require_labels(layout, tree, str(path))
    unread.update(layout.loose)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    places = np.frombuffer(spans, np.int64).reshape(-1, 2)
    listings = {}
    for split, folder in layout.parts.items():
        if not tree.list(folder).folders:
            raise DataError(
                f"{path} has no class folders with images in it.",
                "Put the images of each class into a folder with its name, and pack those.",
            )
        unread.update(tree.list(folder).images)
        listing = _build_listing(keys, order, places, folder)
        listings[split] = leave_out(listing, layout.list_not_read(split))
    if layout.in_classes:
        listings = split_classes(listings[""])
    first = next(iter(listings))
    words = f"{layout.describe(names_root=False)}\n{layout.warn()}".rstrip()
    listings = {split: replace(listing, layout=words) for split, listing in listings.items()}
    return listings | {first: replace(listings[first], unread=dict(unread))}


def _list_members(
    path: Path,
    spans: array[int],
    unread: Counter[str],
    links: list[tuple[str, str]],
    reporter: Reporter,
) -> Iterator[str]:
    """Yield the names of a tar's images.

    Appends offset and size of each, in bytes, to `spans`, links to `links`, and counts other files
    in `unread`.
    """
    for member in iterate_files(path, reporter, links):
        if member.is_image:
            spans.extend((member.offset, member.size))
            yield member.name
        elif kind := PurePosixPath(member.name).suffix.lower() or member.unread_kind:
            unread[kind] += 1


def _resolve_links(
    links: Sequence[tuple[str, str]], keys: Sequence[str], spans: array[int]
) -> list[str]:
    """Return the names of links to images of the same tar; append the images' offsets and sizes.

    tar stores a file of several names once: an image in several class folders, for example.
    """
    place_of = {key.replace("\0", "/"): at for at, key in enumerate(keys)} if links else {}
    names = []
    for name, target in links:
        if (at := place_of.get(target)) is not None and name not in place_of:
            spans.extend(spans[2 * at : 2 * at + 2])
            place_of[name] = at
            names.append(name)
    return names


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int
    """Of its bytes in the tar."""
    size: int
    """In bytes."""
    is_image: bool
    """Whether it is an image that is read."""
    unread_kind: str
    """What it is, if its name says nothing, and it shows something and is not read; else empty."""


def iterate_files(
    path: Path, reporter: Reporter, links: list[tuple[str, str]] | None = None
) -> Iterator[Member]:
    """Yield the files in a tar, junk left out.

    Args:
        path: the tar.
        reporter: receives progress.
        links: name and target, which need not be there, of each link are appended to it.

    Raises:
        DataError: it is not a readable, uncompressed tar.
    """
    extensions = get_extensions()
    try:
        with (
            reporter.task(f"scan {path.name}", None, "files") as task,
            # "r:" refuses compression: members of a compressed tar cannot be read by offset.
            tarfile.open(path, "r:") as archive,
        ):
            last = -1
            while (member := archive.next()) is not None:
                # tarfile keeps a kilobyte a member: 274 instead of 52 MiB for 200,000
                archive.members.clear()  # type: ignore[attr-defined]
                # A negative size leads back to an earlier header, and the loop would never end.
                if member.offset <= last or not 0 <= member.size < 2**62:
                    raise tarfile.ReadError("its members overlap")
                last = member.offset
                # Only a name: nothing is ever unpacked, so `..` leads nowhere.
                name = PurePosixPath(member.name.lstrip("/"))
                if member.isreg() and not any(map(is_junk, name.parts)):
                    start = _read_start(archive, member) if may_be_image(name.name) else b""
                    is_image = not member.issparse() and (
                        name.suffix.lower() in extensions or is_image_start(start)
                    )
                    kind = "" if is_image else identify(start)
                    kind = kind if is_image_kind(kind) else ""
                    yield Member(str(name), member.offset_data, member.size, is_image, kind)
                elif links is not None and (member.islnk() or member.issym()):
                    base = "" if member.islnk() else str(name.parent)
                    target = posixpath.normpath(posixpath.join(base, member.linkname.lstrip("/")))
                    if not any(map(is_junk, name.parts)):
                        links.append((str(name), target))
                task.advance()
    except Exception as error:  # damaged tars raise RecursionError, MemoryError, ValueError, ...
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path} is not a readable, uncompressed tar: {why}.", "Unpack a .tar.gz first."
        ) from error


def _read_start(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read(START_BYTES)


def _build_listing(
    keys: Sequence[str], order: Sequence[int], places: NDArray[np.int64], folder: str
) -> Listing:
    """List the images in the class folders of a folder, which may be "" for all of the tar."""
    chosen, labels = array("q"), array("q")
    classes: dict[str, int] = {}
    prefix = folder.replace("/", "\0") + "\0" if folder else ""

    def iterate_names() -> Iterator[str]:
        for at in order:
            key = keys[at]
            name = key[len(prefix) :]
            if key.startswith(prefix) and "\0" in name:  # else beside the class folders
                chosen.append(at)
                class_name = name.partition("\0")[0]
                labels.append(classes.setdefault(class_name, len(classes)))
                yield name.replace("\0", "/")

    names = StringArray.from_strings(iterate_names())
    offsets, sizes = places[np.array(chosen, np.int64)].T.copy()
    spans = Spans(np.zeros(len(names), np.int32), offsets, sizes)
    return Listing(names, np.array(labels, np.int64), tuple(classes), spans)

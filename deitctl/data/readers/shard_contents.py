"""What a tar of images holds, by its headers and the small members beside them: scanned once, in parallel.

Letters: N images, M samples.
"""

from __future__ import annotations

import os
import posixpath
import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from deitctl.cores import count_cores
from deitctl.data.arrays import StringArray
from deitctl.data.file_types import (
    START_BYTES,
    get_extensions,
    identify,
    is_image_kind,
    is_image_start,
    may_be_image,
)
from deitctl.data.layout import is_junk
from deitctl.data.open_file import OpenFile
from deitctl.data.readers.sample_labels import (
    LABEL_SUFFIXES,
    MAX_LABEL_BYTES,
    Label,
    read_label_member,
)
from deitctl.data.readers.tar_headers import DamagedTar, Entry, Window, iterate_entries
from deitctl.data.shard_files import REMOTE_THREADS, ShardFiles, Spans
from deitctl.data.stores.stored_file import StoredFile
from deitctl.data.stream import stream_batches
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.threads import DaemonThreads

META = re.compile(r"__[^/]*__($|/)")
"""Members that describe a shard, as webdataset names them."""
MAX_NESTED = 2
"""Tars in a tar in a tar: ImageNet's is one of class tars."""
SHARDS_A_PROCESS = 8
"""Below this many, starting a process takes longer than it saves."""


@dataclass
class ShardContents:
    """The images of a tar, and what its other members say of them."""

    names: StringArray = field(default_factory=lambda: StringArray.from_strings(()))
    """Of the members that are images, [N]; in a tar of class tars below the name of theirs."""
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    sizes: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    samples: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """Number of the sample of each image, [N]: members that follow each other and have one key, their
    path up to the first dot of its last part; -1 for a name without one."""
    num_samples: int = 0
    labels: dict[str, dict[int, Label]] = field(default_factory=dict)
    """What samples say, by column and sample."""
    repeated: frozenset[int] = frozenset()
    """Samples with a member twice."""
    unread: dict[str, int] = field(default_factory=dict)
    """Other files by extension, those without one by what they are if they show something."""
    num_nested: int = 0
    """Tars in it."""


class _Scan:
    """The pass over one tar, and the tars in it."""

    def __init__(self, window: Window, extensions: Collection[str]) -> None:
        self.window, self.extensions = window, extensions
        self.names, self.places, self.samples = list[str](), array("q"), array("i")
        self.labels: dict[str, dict[int, Label]] = {}
        self.unread = Counter[str]()
        self.links: list[tuple[str, str, int]] = []
        self.num_samples, self.num_nested, self.key = 0, 0, ""
        self.suffixes, self.repeated = set[str](), set[int]()
        self.has_own = False
        """Whether there are images that are not in a tar in it."""

    def scan(self, start: int, end: int, around: str = "", depth: int = 1) -> None:
        """Add the members of a tar from `start` to `end` in the file, named below `around`."""
        for entry in iterate_entries(self.window, start, end):
            if entry.kind == "other":
                continue
            name = clean_name(entry.name)
            if around and not name.startswith(f"{around}/"):
                name = f"{around}/{name}"
            folder, _, file = name.rpartition("/")
            if _is_junk_folder(folder) or is_junk(file) or META.match(name):
                continue
            sample, suffix = self._find_sample(folder, file)
            if entry.kind in ("hard link", "symbolic link"):
                base = folder if entry.kind == "symbolic link" else around
                target = posixpath.normpath(posixpath.join(base, clean_name(entry.target)))
                self.links.append((name, target, sample))
            elif self._is_class_tar(suffix, entry) and depth < MAX_NESTED:
                self.num_nested += 1
                inner = posixpath.join(folder, file.rpartition(".")[0])
                self.scan(entry.offset, entry.offset + entry.size, inner, depth + 1)
            else:
                is_image = self._add(name, file, suffix, sample, entry)
                self.has_own |= is_image and depth == 1

    def _is_class_tar(self, suffix: str, entry: Entry) -> bool:
        """Whether a member is a tar of images; beside images it is something else."""
        return suffix.endswith("tar") and entry.kind == "file" and not self.has_own

    def _find_sample(self, folder: str, file: str) -> tuple[int, str]:
        """Return the sample of a member, and the lower-case end of its name behind the first dot."""
        stem, dot, suffix = file.partition(".")
        if not dot:
            return -1, ""
        key = f"{folder}/{stem}" if folder else stem
        if key != self.key or not self.num_samples:
            self.key, self.num_samples = key, self.num_samples + 1
            self.suffixes.clear()
        suffix = suffix.lower()
        if suffix in self.suffixes:
            self.repeated.add(self.num_samples - 1)
        self.suffixes.add(suffix)
        return self.num_samples - 1, suffix

    def _add(self, name: str, file: str, suffix: str, sample: int, entry: Entry) -> bool:
        """Add a file, and return whether it is an image."""
        if suffix in LABEL_SUFFIXES:  # before others: there is one beside each image
            if entry.size <= MAX_LABEL_BYTES:
                data = self.window.read(entry.offset, entry.size)
                for column, label in read_label_member(suffix, data).items():
                    self.labels.setdefault(column, {})[sample] = label
            return False
        is_image, kind = identify_entry(self.window, entry, file, self.extensions)
        if is_image:
            self.names.append(name)
            self.places.extend((entry.offset, entry.size))
            self.samples.append(sample)
        elif kind:
            self.unread[kind] += 1
        return is_image

    def resolve_links(self) -> None:
        """Add the links that lead to an image or label of the same tar, which stores a file of several names once."""
        if not self.links:
            return
        place_of = {name: at for at, name in enumerate(self.names)}
        count, labels = len(self.names), dict[str, list[tuple[str, int]]]()
        for name, target, sample in self.links:
            suffix = posixpath.basename(name).partition(".")[2].lower()
            if (at := place_of.get(target)) is not None and name not in place_of:
                place_of[name] = at
                self.names.append(name)
                self.places.extend(self.places[2 * at : 2 * at + 2])
                self.samples.append(sample)
            elif at is None and suffix in LABEL_SUFFIXES:
                labels.setdefault(target, []).append((suffix, sample))
        if labels:
            self._read_linked(labels)
        if len(self.names) > count and min(self.samples) >= 0:
            self._sort_samples()

    def _read_linked(self, labels: Mapping[str, Sequence[tuple[str, int]]]) -> None:
        """Read the label members that links lead to, by their names, for the samples of those links."""
        for entry in iterate_entries(self.window, 0, self.window.file.size):
            own = labels.get(clean_name(entry.name)) if entry.kind == "file" else None
            if own and entry.size <= MAX_LABEL_BYTES:
                data = self.window.read(entry.offset, entry.size)
                for suffix, sample in own:
                    for column, label in read_label_member(suffix, data).items():
                        self.labels.setdefault(column, {})[sample] = label

    def _sort_samples(self) -> None:
        """Put images into the order of their samples, as links are members like others."""
        order = np.argsort(np.array(self.samples), kind="stable")
        places = np.array(self.places, np.int64).reshape(-1, 2)[order]
        self.names = [self.names[at] for at in order.tolist()]
        self.places = array("q", places.ravel().tolist())
        self.samples = array("i", np.array(self.samples)[order].tolist())

    def finish(self) -> ShardContents:
        """Return the entries that were listed, as arrays."""
        self.resolve_links()
        offsets, sizes = np.frombuffer(self.places, np.int64).reshape(-1, 2).T.copy()
        return ShardContents(
            StringArray.from_strings(self.names),
            offsets,
            sizes,
            np.frombuffer(self.samples, np.int32),
            self.num_samples,
            self.labels,
            frozenset(self.repeated),
            dict(self.unread),
            self.num_nested,
        )


def identify_entry(
    window: Window, entry: Entry, file: str, extensions: Collection[str]
) -> tuple[bool, str]:
    """Return whether a member is an image, and what it is else: its extension, or what it shows.

    Args:
        window: of the tar.
        entry: the member.
        file: its name without folders.
        extensions: of images.
    """
    extension = os.path.splitext(file)[1].lower()
    if extension in extensions:
        return entry.kind == "file", f"sparse {extension}" if entry.kind == "sparse" else extension
    if not may_be_image(file):
        return False, extension
    start = window.read(entry.offset, min(entry.size, START_BYTES))
    kind = identify(start)
    return entry.kind == "file" and is_image_start(start), extension or (
        kind if is_image_kind(kind) else ""
    )


def clean_name(name: str) -> str:
    """Return a member's name without what leads outside, which is a name here and nothing else."""
    if "//" in name or "./" in name or name.endswith("/."):
        name = str(PurePosixPath(name))
    return name.lstrip("/")


@lru_cache(1000)
def _is_junk_folder(folder: str) -> bool:
    return bool(folder) and any(map(is_junk, folder.split("/")))


def scan_tar(file: StoredFile, extensions: Collection[str]) -> ShardContents:
    """Return what a tar holds.

    Args:
        file: the tar.
        extensions: of images.

    Raises:
        DamagedTar: it is none, or is cut short or damaged.
        OSError: it cannot be read.
    """
    scan = _Scan(Window(file), extensions)
    scan.scan(0, file.size)
    return scan.finish()


def iterate_files(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the name of each file in a tar, junk left out, and whether it is an image.

    Raises:
        DataError: it is not a readable, uncompressed tar.
    """
    extensions = get_extensions()
    try:
        file = OpenFile(str(path))
        window = Window(file)
        for entry in iterate_entries(window, 0, file.size):
            name = clean_name(entry.name)
            if entry.kind in ("file", "sparse") and not any(map(is_junk, name.split("/"))):
                own = name.rpartition("/")[2]
                yield name, identify_entry(window, entry, own, extensions)[0]
    except (DamagedTar, OSError) as error:
        raise make_error(str(path), error) from error


def make_error(path: str, error: DamagedTar | OSError, more: str = "") -> DataError:
    """Return the error of a tar that cannot be read, with what to do."""
    if isinstance(error, OSError):
        return DataError(f"{path} cannot be read: {error.strerror or error}.{more}")
    return DataError(
        f"{path} is not a readable, uncompressed tar: {error}.{more}",
        "Copy or download it again; unpack a .tar.gz first.",
    )


def _scan_shard(
    files: ShardFiles, extensions: Collection[str], shard: int
) -> ShardContents | DamagedTar | OSError:
    """Scan a shard in any process; what is wrong with it is returned, so that damaged ones are counted."""
    try:
        return scan_tar(files.open(shard), extensions)
    except (DamagedTar, OSError) as error:
        return error


def scan_shards(files: ShardFiles, name: str, reporter: Reporter) -> list[ShardContents]:
    """Return what each of some tars holds, read by as many processes as there are cores.

    Args:
        files: the tars.
        name: of the data, for progress.
        reporter: receives progress.

    Raises:
        DataError: some cannot be read, or are cut short or damaged: a part of a data set would be lost.
    """
    scan, damaged = (
        partial(_scan_shard, files, get_extensions()),
        list[tuple[str, DamagedTar | OSError]](),
    )
    contents = list[ShardContents]()
    with reporter.task(f"scan {name}", len(files), "shards") as task:
        for shard, result in enumerate(_scan_in_parallel(files, scan)):
            if isinstance(result, (DamagedTar, OSError)):
                damaged.append((files.name(shard), result))
            else:
                contents.append(result)
            task.advance()
    if damaged:
        (path, why), num_more = damaged[0], len(damaged) - 1
        more = f" {num_more} more of its {len(files)} shards are damaged." if num_more else ""
        raise make_error(path, why, more)
    return contents


def _scan_in_parallel(
    files: ShardFiles, scan: partial[ShardContents | DamagedTar | OSError]
) -> Iterator[ShardContents | DamagedTar | OSError]:
    shards = range(len(files))
    if files.are_remote:
        with DaemonThreads(REMOTE_THREADS) as threads:
            yield from threads.map(scan, shards)
        return
    workers = min(count_cores(), len(files) // SHARDS_A_PROCESS)
    workers = workers if workers > 1 else 0
    batches: Sequence[list[int]] = [[shard] for shard in shards]
    for (result,) in stream_batches(scan, list, batches, workers=workers):
        yield result


def join_spans(
    contents: Sequence[ShardContents],
    numbers: Sequence[int],
    chosen: Mapping[int, NDArray[np.int64]] | None = None,
) -> Spans:
    """Return where images of some shards lie, shard after shard.

    Args:
        contents: of each shard.
        numbers: of the shards.
        chosen: places of the images of each among all of its; None: all.
    """
    parts = [contents[number] for number in numbers]
    places = [slice(None) if chosen is None else chosen[number] for number in numbers]
    offsets = [part.offsets[at] for part, at in zip(parts, places, strict=True)]
    sizes = [part.sizes[at] for part, at in zip(parts, places, strict=True)]
    return Spans(
        np.repeat(np.array(numbers, np.int32), [len(part) for part in sizes]),
        np.concatenate(offsets),
        np.concatenate(sizes),
    )

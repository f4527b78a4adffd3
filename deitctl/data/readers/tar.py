"""An uncompressed tar of class folders becomes sources: from its index where that is good, else by reading its headers."""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from deitctl.data import index
from deitctl.data.dataset import Source, TarSource, is_hidden
from deitctl.data.decode import EXTENSIONS
from deitctl.data.index import Listing, Watched
from deitctl.data.splits import name_parts
from deitctl.data.string_array import StringArray
from deitctl.errors import DataError
from deitctl.events import Reporter


def open_tar(path: Path, reporter: Reporter) -> dict[str, Source]:
    """Return the `train` and `val` part of a tar, or its whole under the empty name.

    Raises:
        DataError: it is no readable tar, or holds no class folders with images.
    """
    parts = index.find(path)
    if parts is None:
        watched = Watched(path)
        watched.add("")
        parts = _list(path, reporter)
        index.keep(parts, watched, reporter)
        parts = index.find(path) or parts  # in the file, where other processes have it too
    return {
        name: TarSource(str(path), p.names, p.spans, p.labels, p.class_names)
        for name, p in parts.items()
    }


def _list(path: Path, reporter: Reporter) -> dict[str, Listing]:
    spans = array("q")
    keys = [
        name.replace("/", "\0") for name in StringArray.of(_members(path, spans, reporter))
    ]  # sort folder by folder
    if not keys or min(key.count("\0") for key in keys) < 1:
        raise DataError(f"{path} has no class folders with images in it.")
    order = sorted(range(len(keys)), key=keys.__getitem__)
    first, last = (keys[at].split("\0") for at in (order[0], order[-1]))
    depth = min(key.count("\0") for key in keys) + 1
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))))
    around = min(shared, depth - 2)  # folders around everything
    places = np.frombuffer(spans, np.int64).reshape(-1, 2)
    parts = name_parts({key.split("\0", around + 1)[around] for key in keys})
    if not parts:
        return {"": _part(keys, order, places, around)}
    return {part: _part(keys, order, places, around + 1, name) for part, name in parts.items()}


def _members(path: Path, spans: array[int], reporter: Reporter) -> Iterator[str]:
    """Yield the names of the images in a tar and append to `spans` where each begins and how long it is, in bytes."""
    try:
        with (
            reporter.task(f"scan {path.name}", None, "files") as task,
            tarfile.open(path, "r:") as archive,
        ):
            last = -1
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep a kilobyte for each
                if (
                    member.offset <= last or member.size < 0
                ):  # a negative size leads back, and round for ever
                    raise tarfile.ReadError("its members lie on each other")
                last = member.offset
                name = PurePosixPath(member.name.lstrip("/"))
                plain = member.isreg() and not member.issparse()
                if (
                    plain
                    and name.suffix.lower() in EXTENSIONS
                    and not any(map(is_hidden, name.parts))
                ):
                    spans.extend((member.offset_data, member.size))
                    yield str(name)
                task.advance()
    except Exception as error:  # tarfile raises whatever it trips over: RecursionError, MemoryError, ValueError, ...
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path} is not a readable, uncompressed tar: {why}.", "Unpack a .tar.gz first."
        ) from error


def _part(
    keys: Sequence[str], order: Sequence[int], places: NDArray[np.int64], skip: int, part: str = ""
) -> Listing:
    """List the images of a part without its first `skip` folders; an image beside the class folders has no class."""
    chosen, labels = array("q"), array("q")
    classes: dict[str, int] = {}

    def names() -> Iterator[str]:
        for at in order:
            folders = keys[at].split("\0")
            if len(folders) > skip + 1 and (not part or folders[skip - 1] == part):
                chosen.append(at)
                labels.append(classes.setdefault(folders[skip], len(classes)))
                yield "/".join(folders[skip:])

    listed = StringArray.of(names())
    return Listing(
        listed, np.array(labels, np.int64), tuple(classes), places[np.array(chosen, np.int64)]
    )

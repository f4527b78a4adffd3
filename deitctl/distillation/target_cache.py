"""What a teacher says, kept on disk: one small record a view and image, mapped into memory.

A cache is a folder of its stamp (`cache.json`: everything the words depend on) and a file a view. A record of zeros
is a word not yet heard. A hard record is two bytes, written at once or not at all; a soft one carries a checksum. So
several processes may write together, a kill at any moment loses at most the word being written, and a file that was
cut short or is missing is filled up again.

Letters: B images, K classes, N images of the data, W numbers a record.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import reprlib
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deitctl.errors import TeacherError
from deitctl.paths import read_json, write_json

Records = NDArray[np.uint16]
UNREADABLE = 65535
"""First number of the record of an image that could not be read when its word was asked for."""
MOST_CLASSES = 65_000
STAMP = "cache.json"
TARGETS_VERSION = 1
"""Goes up when records mean something else."""
OPEN_VIEWS = 64
"""Files mapped at a time: each holds a file descriptor, of which a process has a thousand or so."""
INFINITE = 0x7C00
"""The first float16 pattern that is no number from 0 on: infinities, not-a-numbers, and all negative ones."""
CHUNK = 4096
"""Records checked at a time, so that checking a large view takes little memory."""


@dataclass(frozen=True)
class TargetCodec:
    """How a word, a distribution over K classes, becomes W unsigned 16-bit numbers.

    Hard: the class plus one, 2 bytes. Soft: a checksum, then for every class its probability, or with fewer than K
    kept, the `topk` likeliest classes and their probabilities; the rest of the mass is spread evenly over the others.
    Probabilities are float16, which keeps three digits of all above 6e-5.
    """

    mode: str
    classes: int
    topk: int = 0

    def __post_init__(self) -> None:
        if self.classes > MOST_CLASSES:
            raise TeacherError(
                f"Words are kept over at most {MOST_CLASSES:,} classes, these are {self.classes:,}."
            )

    @property
    def kept(self) -> int:
        """Classes of a soft word that are kept one by one."""
        return min(self.topk, self.classes)

    @property
    def width(self) -> int:
        """Numbers a record, W."""
        if self.mode == "hard":
            return 1
        return 1 + self.kept * (1 if self.kept == self.classes else 2)

    def encode(self, word: Tensor) -> Records:
        """Turn distributions [B,K] into records [B,W]."""
        if self.mode == "hard":
            return np.asarray((word.argmax(dim=1, keepdim=True) + 1).cpu().numpy(), dtype=np.uint16)
        word = word.float().cpu()
        if self.kept == self.classes:
            body = word.half().numpy().view(np.uint16)
        else:
            best = word.topk(self.kept, dim=1)
            body = np.concatenate(
                [
                    best.indices.numpy().astype(np.uint16),
                    best.values.half().numpy().view(np.uint16),
                ],
                axis=1,
            )
        return np.concatenate([_checksum(body)[:, None], body], axis=1)

    def decode(self, records: Records) -> Tensor:
        """Turn records [B,W] back into distributions [B,K], each of which sums to one."""
        if self.mode == "hard":
            labels = torch.from_numpy(records[:, 0].astype(np.int64) - 1)
            return torch.nn.functional.one_hot(labels, self.classes).float()
        body = np.ascontiguousarray(records[:, 1:])
        if self.kept == self.classes:
            word = torch.from_numpy(body.view(np.float16).astype(np.float32))
            return word / word.sum(dim=1, keepdim=True)
        index = torch.from_numpy(body[:, : self.kept].astype(np.int64))
        value = torch.from_numpy(
            np.ascontiguousarray(body[:, self.kept :]).view(np.float16).astype(np.float32)
        )
        rest = (1 - value.sum(dim=1, keepdim=True)).clamp(min=0) / (self.classes - self.kept)
        word = rest.expand(-1, self.classes).clone().scatter_(1, index, value)
        return word / word.sum(dim=1, keepdim=True)

    def valid(self, records: Records) -> NDArray[np.bool_]:
        """Say of each record [B,W] whether it holds a word."""
        if self.mode == "hard":
            return (records[:, 0] > 0) & (records[:, 0] <= self.classes)
        chunks = [records[n : n + CHUNK] for n in range(0, len(records), CHUNK)]
        return np.concatenate([self._sound(c) for c in chunks or [records]])

    def _sound(self, records: Records) -> NDArray[np.bool_]:
        """Check sums, and that classes are classes and probabilities numbers: somebody may have made the sums fit."""
        body = records[:, 1:]
        fine = (records[:, 0] == _checksum(body)) & body.any(axis=1)
        if self.kept < self.classes:
            fine &= (body[:, : self.kept] < self.classes).all(axis=1)
            body = body[:, self.kept :]
        return np.asarray(fine & (body < INFINITE).all(axis=1))


def _checksum(body: Records) -> Records:
    """Return a number in 1..65521 for each row, which another content of the row hardly shares."""
    weights = np.arange(body.shape[1], dtype=np.uint64) % 65520 + 1  # none is 0 modulo 65521
    return np.asarray((body.astype(np.uint64) * weights).sum(axis=1) % 65521 + 1, dtype=np.uint16)


class TargetCache:
    """The words of a teacher about the views of a data set, by view and image."""

    def __init__(self, root: Path, form: TargetCodec, num_images: int) -> None:
        """Map the folder `root`, which `open_cache` has made or found fitting, for `images` images."""
        self.root, self.form, self.num_images = root, form, num_images
        self._views: dict[int, Records] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Travel to a loader process without the maps, which it opens for itself."""
        return {**self.__dict__, "_views": {}}

    def _view(self, view: int) -> Records:
        """Return the records of a view, [N,W], making its file if there is none."""
        if view not in self._views:
            record = self.form.width * 2
            path, size = self._path(view), self.num_images * record
            try:
                mapped = _map(path, size, record)
            except OSError as error:
                raise TeacherError(
                    f"Cannot write {path}: {error.strerror}.",
                    "Free some space, or name another --teacher-cache.",
                ) from error
            if len(self._views) >= OPEN_VIEWS:
                del self._views[
                    next(iter(self._views))
                ]  # closed when nobody holds its array any more
            self._views[view] = np.frombuffer(mapped, dtype=np.uint16).reshape(
                self.num_images, self.form.width
            )
        return self._views[view]

    def _path(self, view: int) -> Path:
        return self.root / f"view-{view:05d}.words"

    def _begun(self, view: int) -> bool:
        return view in self._views or self._path(view).exists()

    def holds(self, view: int, index: int) -> bool:
        """Say whether the word about a view of an image is here."""
        return self._begun(view) and bool(self.form.valid(self._view(view)[index : index + 1])[0])

    def read(self, places: Sequence[tuple[int, int]]) -> tuple[Records, NDArray[np.bool_]]:
        """Return the records [B,W] of (view, image) pairs and which of them are words."""
        records = np.stack([self._view(view)[index] for view, index in places])
        return records, self.form.valid(records)

    def write(self, places: Sequence[tuple[int, int]], records: Records) -> None:
        """Keep records [B,W] for (view, image) pairs."""
        for (view, index), record in zip(places, records, strict=True):
            self._writable(view)[index] = record

    def mark_unreadable(self, places: Sequence[tuple[int, int]]) -> None:
        """Note that images could not be read, so that nobody waits for their words."""
        for view, index in places:
            self._writable(view)[index, 0] = UNREADABLE

    def _writable(self, view: int) -> Records:
        records = self._view(view)
        if not records.flags.writeable:
            raise TeacherError(
                f"{self.root} lacks words and may not be written.", "Name another --teacher-cache."
            )
        return records

    def unreadable(self, views: int) -> set[int]:
        """Return the images that could not be read in one of the first `views` views."""
        return {
            int(i)
            for v in range(views)
            if self._begun(v)
            for i in np.flatnonzero(self._view(v)[:, 0] == UNREADABLE)
        }

    def missing(self, view: int, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Return which images in start..stop of a view have no word here and could have."""
        if not self._begun(view):
            return np.arange(self.num_images)[start:stop]
        records = self._view(view)[start:stop]
        return start + np.flatnonzero(~self.form.valid(records) & (records[:, 0] != UNREADABLE))

    def known(self, view: int) -> NDArray[np.int64]:
        """Return the images of a view whose word is here."""
        return (
            np.flatnonzero(self.form.valid(self._view(view))) if self._begun(view) else np.arange(0)
        )

    def count_missing(self, views: int) -> int:
        """Return how many words the first `views` views lack."""
        return sum(len(self.missing(view)) for view in range(views))


def _map(path: Path, size: int, record: int) -> mmap.mmap:
    """Map a file of words to be read and written, making it if need be; a finished one of somebody else's to be read."""
    flags = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:  # a link may lead out of the cache, to a file that would be written over
        file, access = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666), mmap.ACCESS_WRITE
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM) or not path.exists():
            raise
        file, access = os.open(path, os.O_RDONLY | flags), mmap.ACCESS_READ
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "it is no file")
        if access == mmap.ACCESS_WRITE:
            _reserve(file, size, record)
        elif os.fstat(file).st_size < size:
            raise PermissionError(errno.EACCES, "it is not complete and may not be written")
        return mmap.mmap(file, size, access=access)
    finally:
        os.close(file)


def _reserve(file: int, size: int, record: int) -> None:
    """Make a file `size` bytes long, the new ones zero; a full disk is said now, not when the map is written to.

    Whoever comes first makes it; to do it again changes nothing.
    """
    present = os.fstat(file).st_size
    if present < size:
        if present % record:  # cut short inside a record: not even half a hard word may stand there
            os.lseek(file, present - 1, os.SEEK_SET)
            os.write(file, b"\0")
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.ftruncate(file, size)


def open_cache(
    root: Path, stamp: Mapping[str, Any], form: TargetCodec, num_images: int
) -> TargetCache:
    """Open the cache in a folder, or begin one.

    Args:
        root: the folder.
        stamp: everything that the words depend on, by names that a person understands.
        form: how words are kept.
        images: how many images the data has.

    Raises:
        TeacherError: a cache of something else is there; the message names what differs. Or it cannot be read.
    """
    path = root / STAMP
    if not os.path.lexists(path):
        if any(not name.startswith(".") and name != STAMP for name in _listing(root)):
            raise TeacherError(
                f"{root} holds other files and no teacher's words.", "Name another --teacher-cache."
            )
        write_json(path, dict(stamp))
    kept = read_stamp(root)
    wanted = json.loads(json.dumps(dict(stamp)))
    if reason := _differences(kept, wanted):
        raise TeacherError(
            f"The teacher's words in {root} are stale: {reason}.",
            "Name another --teacher-cache, or leave it out, or delete that folder.",
        )
    return TargetCache(root, form, num_images)


def _listing(root: Path) -> list[str]:
    try:
        return os.listdir(root) if root.is_dir() else []
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"{root} cannot be read: {error}.", "Name another --teacher-cache."
        ) from error


def read_stamp(root: Path) -> dict[str, Any]:
    """Return what the words in a folder depend on; raise `TeacherError` if that cannot be read."""
    try:
        stamp = read_json(root / STAMP)
        if not isinstance(stamp, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"{root / STAMP} cannot be read: {error}.", "Delete that folder."
        ) from error
    return stamp


def _differences(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say what differs, inner settings by their own names."""
    parts = []
    for name in [*wanted, *(k for k in kept if k not in wanted)]:
        old, new = kept.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict) and old != new:
            parts.append(f"{name}: {_differences(old, new)}")
        elif old != new:
            parts.append(f"{name} was {_short(old)}, is {_short(new)}")
    return "; ".join(parts)


def _short(value: Any) -> str:
    return (
        "not said"
        if value is None
        else reprlib.repr(value)
        if len(str(value)) > 200
        else json.dumps(value)
    )

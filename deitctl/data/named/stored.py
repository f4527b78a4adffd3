"""A data set that is there: one file that lists its images, or has their pixels; read without torchvision.

The file is written last, so that it says that everything else is complete. It begins with `MAGIC`; a
block of arrays follows (`arrays.encode_block`), with a checksum.

Letters: N images, H, W pixels, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitctl.data.arrays import UNREADABLE, StoredBytes, StringArray, encode_block, read_block
from deitctl.data.dataset import FileDataset, ImageDataset, Labels
from deitctl.data.named.samples import Samples
from deitctl.data.open_file import OpenFile
from deitctl.errors import DataChanged, DataError
from deitctl.paths import write_bytes

FILE = "images.deitctl"
MAGIC = b"deitctl images 1\n"
DTYPES = {"files": ("|u1", "<i8", "<i8"), "pixels": ("|u1", "<i8")}
"""Of the arrays of a part: names and their ends, or pixels; then labels."""


@dataclass(frozen=True, eq=False)
class PixelDataset(ImageDataset):
    """Images whose pixels are in memory; each is read as the plain PPM or PGM that it would be as a file."""

    pixels: NDArray[np.uint8]
    """Gray [N,H,W] or color [N,H,W,3]."""
    labels: Labels
    class_names: tuple[str, ...]
    title: str
    """Of the part: `cifar10/train`."""

    @property
    def _header(self) -> bytes:
        height, width = self.pixels.shape[1:3]
        return b"P%d\n%d %d\n255\n" % (6 if self.pixels.ndim == 4 else 5, width, height)

    def name(self, index: int) -> str:
        return f"{self.title}/{self.relative_path(index)}"

    def relative_path(self, index: int) -> str:
        return f"{index:06d}.{'ppm' if self.pixels.ndim == 4 else 'pgm'}"

    def num_bytes(self, index: int) -> int:
        return len(self._header) + int(self.pixels[index].nbytes)

    def read_bytes(self, index: int) -> bytes:
        return self._header + bytes(self.pixels[index].tobytes())


def write_stored(path: Path, parts: Mapping[str, Samples]) -> None:
    """Write the file of a data set.

    Args:
        path: the file; images in files lie below its folder.
        parts: by name; the empty name is that of data without parts.

    Raises:
        DiskError: it cannot be written.
    """
    header: dict[str, Any] = {"splits": {}, "class_names": []}
    arrays: list[tuple[str, NDArray[Any]]] = []
    for name, part in parts.items():
        header["class_names"] = list(part.class_names)
        kind, prefix = ("files", "") if part.pixels is None else ("pixels", "")
        values: tuple[NDArray[Any], ...]
        if part.pixels is None:
            files = [os.path.relpath(file, path.parent) for file in part.files]
            prefix = os.path.join(os.path.commonpath([os.path.dirname(f) for f in files]), "")
            names = StringArray.from_strings(file.removeprefix(prefix) for file in files)
            values = (names.blob, names.ends, part.labels)
        else:
            values = (part.pixels, part.labels)
        header["splits"][name] = [kind, prefix]
        arrays += zip(DTYPES[kind], values, strict=True)
    write_bytes(path, b"".join([MAGIC, *encode_block(header, arrays, len(MAGIC))]))


def read_stored(path: Path, title: str) -> dict[str, ImageDataset]:
    """Return the parts of a data set from its file.

    Raises:
        FileNotFoundError: it is not there.
        DataError: it cannot be read, is damaged, or of another version.
    """
    try:
        file = StoredBytes(OpenFile(str(path)))
        if file.read_array(0, "|u1", (len(MAGIC),)).tobytes() != MAGIC:
            raise ValueError("it is of another version")
        header, arrays = read_block(
            file,
            len(MAGIC),
            lambda header: [d for kind, _ in header["splits"].values() for d in DTYPES[kind]],
        )
        class_names = tuple(map(str, header["class_names"]))
        rest, parts = iter(arrays), {}
        for name, (kind, prefix) in header["splits"].items():
            values = [next(rest) for _ in DTYPES[kind]]
            parts[name] = _build(path, title, name, str(prefix), values, class_names)
        return parts
    except FileNotFoundError:
        raise
    except (*UNREADABLE, DataChanged) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path} cannot be read: {reason}.",
            f"Remove {path.parent}: the next start downloads {title} again.",
        ) from error


def _build(
    path: Path,
    title: str,
    name: str,
    prefix: str,
    values: list[NDArray[Any]],
    class_names: tuple[str, ...],
) -> ImageDataset:
    """Return a part from its arrays; raise `ValueError` if they do not fit each other."""
    *content, labels = values
    if labels.ndim == 2:
        labels = labels.astype(np.bool_)
    elif labels.min(initial=0) < 0 or labels.max(initial=-1) >= len(class_names):
        raise ValueError("its labels are inconsistent")
    if len(content) == 1:
        pixels = content[0]
        is_image = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)
        if not is_image or len(pixels) != len(labels):
            raise ValueError("its pixels are inconsistent")
        return PixelDataset(pixels, labels, class_names, f"{title}/{name}".rstrip("/"))
    names = StringArray(content[0], content[1])
    if not names.is_valid() or len(names) != len(labels):
        raise ValueError("its names are inconsistent")
    root = os.path.join(path.parent, prefix)
    return FileDataset(names.with_prefix(root), labels, class_names, root)

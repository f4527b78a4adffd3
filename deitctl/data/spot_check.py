"""A look at the headers of some images before long work: data of pointers, pages or bands is refused at once."""

from __future__ import annotations

import shlex
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from deitctl.data.bands import require_bands
from deitctl.data.dataset import ImageDataset
from deitctl.data.decode import read_depth
from deitctl.data.file_types import is_image_start
from deitctl.data.labels import find_rarest
from deitctl.errors import DataError, ReadError
from deitctl.events import Reporter

NUM_LOOKED_AT = 64
"""Images of a part of the data, spread over its classes: a tenth of a second."""
MIN_SHARE = 0.1
"""Of them, from which on a warning is due at the start. Fewer are named when they are met."""
MAX_BYTES = 2**28
"""Of the images whose headers are read, after which the first bytes of the others count: they may be large."""
JPEG_START = b"\xff\xd8\xff"
"""Of images whose header is read no further: it says nothing that is not read, and most images are such."""


def require_images(dataset: ImageDataset, part: str, name: str, reporter: Reporter) -> None:
    """Look at the headers of up to 64 images, and say if many of them are something else.

    Args:
        dataset: a part of the data; one in memory is not looked at.
        part: its name, may be empty.
        name: of the data, for messages.
        reporter: receives a warning where a tenth or more, or all of a class, cannot be read.

    Raises:
        DataError: none of the images looked at can be read.
    """
    if dataset.is_in_memory:
        return
    cheap, labels = dataset.list_cheap(), find_rarest(dataset)
    chosen = cheap[choose_spread(labels[cheap])].tolist()
    error_of_index: dict[int, str] = {}
    num_bytes = 0
    for index in chosen:
        error_of_index[index], size = _find_error(dataset, index, num_bytes < MAX_BYTES)
        num_bytes += size
    errors = _sort_errors({dataset.name(i): error for i, error in error_of_index.items() if error})
    is_class_lost = _is_class_lost(labels, error_of_index)
    if not errors or not (is_class_lost or len(errors) >= MIN_SHARE * len(error_of_index)):
        return
    is_all = len(error_of_index) == len(dataset.labels)
    what = f"of {len(error_of_index):,} {part + ' ' if part else ''}images of {name}"
    what += "" if is_all else f", taken from all over its {len(dataset.labels):,},"
    hint = f"`deitctl check {shlex.quote(name)}` lists all of them."
    if len(errors) == len(error_of_index):
        raise DataError(f"None {what} can be read; for example: {errors[0]}", hint)
    verb = "cannot be read and are left out" if is_all else "cannot be read"
    reporter.warn(f"{len(errors):,} {what} {verb}; for example: {errors[0]} {hint}")


def choose_spread(labels: NDArray[np.int64], count: int = NUM_LOOKED_AT) -> NDArray[np.int64]:
    """Return the indices of up to `count` images, as many of each class as can be, spread over it."""
    order = np.argsort(labels, kind="stable")
    if len(order) <= count:
        return order
    classes = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    if len(classes) > count:
        return order[np.linspace(0, len(order) - 1, count).astype(np.int64)]
    per_class = count // len(classes)
    return np.concatenate([_spread(indices, per_class) for indices in classes])


def _spread(indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    places = np.linspace(0, len(indices) - 1, min(count, len(indices)))
    return indices[places.astype(np.int64)]


def _find_error(dataset: ImageDataset, index: int, reads_header: bool) -> tuple[str, int]:
    """Return why an image cannot be read and the bytes that were looked at.

    The reason is empty if its first bytes, and with `reads_header` its header, show none.
    """
    num_bytes = 0
    try:
        if dataset.bands:
            data = dataset.read_bytes(index)
            require_bands(data, dataset.name(index), dataset.bands)
            return "", len(data)
        start = dataset.read_start(index)
        if start.startswith(JPEG_START) or (not reads_header and is_image_start(start)):
            return "", 0
        data = dataset.read_bytes(index)
        num_bytes = len(data)
        read_depth(data, dataset.name(index))
    except ReadError:  # says nothing about the image
        pass
    except DataError as error:
        return str(error), num_bytes
    return "", num_bytes


def _sort_errors(error_of_name: dict[str, str]) -> list[str]:
    """Return the errors, those of the most frequent reason first."""
    reasons = {error: error.replace(name, "") for name, error in error_of_name.items()}
    counts = Counter(reasons.values())
    return sorted(reasons, key=lambda error: -counts[reasons[error]])


def _is_class_lost(labels: NDArray[np.int64], errors: dict[int, str]) -> bool:
    """Whether two or more images of a class were looked at, and none of them can be read."""
    seen = Counter(int(labels[index]) for index in errors)
    lost = Counter(int(labels[index]) for index, error in errors.items() if error)
    return any(count > 1 and count == seen[label] for label, count in lost.items())

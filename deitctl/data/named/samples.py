"""What a data set of torchvision's holds: files and labels, or pixels and labels.

Letters: N images, H, W pixels, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deitctl.data.dataset import Labels
from deitctl.data.readers.torch_dataset import LABELS, get_item, to_image, to_labels
from deitctl.errors import DataError, ExtensionError
from deitctl.events import Reporter, track

FILES = (("_image_files", "_labels"), ("_images", "_labels"))
"""Attributes with the files, and with their labels."""
PAIRS = ("samples", "_samples", "imgs")
"""Attributes with pairs of a file and its label."""
CLASSES = ("wnids", "classes", "categories", "all_categories")
"""Attributes with the names of classes; WordNet ids first, which say which classes of ImageNet's they are."""
MAX_PIXELS = 1 << 32
"""Bytes of images that a class decodes itself, which are held in memory."""


@dataclass(frozen=True)
class Samples:
    """The images of a part: either their files or their pixels."""

    files: Sequence[str]
    """Paths, in order; empty where there are pixels."""
    pixels: NDArray[np.uint8] | None
    """Gray [N,H,W] or color [N,H,W,3]."""
    labels: Labels
    class_names: tuple[str, ...]


def list_samples(dataset: Any, title: str, reporter: Reporter) -> Samples:
    """Return what a part of a data set holds.

    Args:
        dataset: of images and labels, as torchvision's classes are.
        title: of the part, for messages.
        reporter: shows the progress where each item must be read.

    Raises:
        DataError: its items are no images with a label.
    """
    pixels = _find_pixels(dataset)
    try:
        if pixels is not None:
            values = next(v for n in LABELS if (v := getattr(dataset, n, None)) is not None)
            files: list[str] = []
        elif (listed := _find_files(dataset)) is not None:
            files, values = listed
        else:
            files, pixels, values = _read_items(dataset, title, reporter)
        labels = to_labels(values, len(files) if pixels is None else len(pixels), title)
    except ExtensionError as error:
        raise DataError(
            f"{title} is no data set of images with a label: {error.message}"
        ) from error
    names = _name_classes(dataset, labels)
    if not files:
        return Samples([], pixels, labels, names)
    order = np.array(sorted(range(len(files)), key=lambda n: files[n].split(os.sep)), np.int64)
    # Some classes list a folder in the file system's order, which is another on each machine.
    return Samples([files[n] for n in order.tolist()], None, labels[order], names)


def _find_pixels(dataset: Any) -> NDArray[np.uint8] | None:
    """Return the pixels that a data set has in memory, [N,H,W] or [N,H,W,3]; None if it has none."""
    data = getattr(dataset, "data", None)
    has_labels = any(getattr(dataset, name, None) is not None for name in LABELS)
    if data is None or not has_labels or not hasattr(data, "shape"):
        return None
    pixels: NDArray[Any] = np.asarray(data)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or not len(pixels):
        return None
    if pixels.ndim == 4 and pixels.shape[3] != 3:
        pixels = pixels.transpose(0, 2, 3, 1)  # colors first
    # An item may turn what is stored: the first one shows whether these are its pixels.
    first = np.asarray(get_item(dataset, 0, "image 0")[0])
    return np.ascontiguousarray(pixels) if np.array_equal(first, pixels[0]) else None


def _find_files(dataset: Any) -> tuple[list[str], Sequence[Any]] | None:
    """Return the files of a data set and their labels; None if it does not list them."""
    for name in PAIRS:
        pairs = getattr(dataset, name, None)
        if pairs and all(isinstance(pair[0], str | os.PathLike) for pair in pairs):
            return [os.fspath(path) for path, *_ in pairs], [label for _, label, *_ in pairs]
    for name, label_name in FILES:
        files, labels = getattr(dataset, name, None), getattr(dataset, label_name, None)
        if files and labels is not None and all(isinstance(f, str | os.PathLike) for f in files):
            return list(map(os.fspath, files)), labels
    return None


def _read_items(
    dataset: Any, title: str, reporter: Reporter
) -> tuple[list[str], NDArray[np.uint8] | None, list[Any]]:
    """Read every item: the file that its image comes from, else its pixels; and its label."""
    files: list[str] = []
    pixels: list[NDArray[np.uint8]] = []
    labels = []
    num_bytes, count = 0, len(dataset)
    for index in track(range(count), reporter, f"read {title}", count):
        image, label = get_item(dataset, index, f"{title}[{index}]")[:2]
        labels.append(label)
        if path := getattr(
            image, "filename", ""
        ):  # of an image that Pillow opened and did not decode
            files.append(os.fspath(path))
            image.close()
            continue
        array = np.asarray(to_image(image, f"{title}[{index}]"))
        num_bytes += array.nbytes
        if num_bytes > MAX_PIXELS or files or (pixels and array.shape != pixels[0].shape):
            raise ExtensionError(
                "its images are neither files nor all of one size"
                if num_bytes <= MAX_PIXELS
                else f"its pixels take more than {MAX_PIXELS >> 30} GiB",
            )
        pixels.append(array)
    if pixels and files:
        raise ExtensionError("its images are neither files nor all of one size")
    return files, np.stack(pixels) if pixels else None, labels


def _name_classes(dataset: Any, labels: Labels) -> tuple[str, ...]:
    """Return the names of a data set's classes, else their numbers."""
    num_classes = labels.shape[1] if labels.ndim == 2 else int(labels.max(initial=-1)) + 1
    for attribute in CLASSES:
        names = getattr(dataset, attribute, None)
        if names is not None and len(names) >= num_classes:
            # a tuple: synonyms
            return tuple(n if isinstance(n, str) else ", ".join(map(str, n)) for n in names)
    return tuple(map(str, range(num_classes)))

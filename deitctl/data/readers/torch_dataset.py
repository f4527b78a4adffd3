"""A caller's `torch.utils.data.Dataset` of images and labels as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from deitctl.data.dataset import ImageDataset, Labels
from deitctl.data.decode import convert_image
from deitctl.data.held_out import VAL_FRACTION
from deitctl.data.splits import hold_out, relabel
from deitctl.errors import DataError, DeitctlError, ExtensionError
from deitctl.events import Reporter, track

PREFIX = "dataset:"
"""Of what a run calls such data: `dataset:Flowers102`."""
ASSUMED_BYTES = 200_000
"""Of an image whose file is not known: a photo's, by which a fingerprint decides how many it reads."""
NUM_COMPARED = 8
"""Items whose labels are compared with those of the attribute."""
LABELS = ("targets", "labels")
"""Attributes that torchvision's data sets have their labels under."""


@dataclass(frozen=True, eq=False)
class TorchDataset(ImageDataset):
    """Images of a map-style data set, whose items begin with an image and a label."""

    dataset: Any
    labels: Labels
    class_names: tuple[str, ...]
    title: str

    def with_bands(self, bands: int) -> TorchDataset:
        """Return the images; raise `DataError` for bands, which they have not."""
        if bands:
            raise DataError(
                f"The data set {self.title} is read as RGB, and --in-chans {bands} takes images of {bands} bands.",
                "Write its images as .npy files in class folders, and name their folder.",
            )
        return self

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def relative_path(self, index: int) -> str:
        return str(index)

    def num_bytes(self, index: int) -> int:
        return ASSUMED_BYTES

    def digest(self, index: int) -> int:
        return 0  # by content a run recognizes moved files, and a data set may not take threads

    def read_bytes(self, index: int) -> bytes:
        return self.read(index).tobytes()

    def read_start(self, index: int) -> bytes:
        return b""

    def read(self, index: int) -> Image.Image:
        return to_image(get_item(self.dataset, index, self.name(index))[0], self.name(index))

    open = read


def open_torch_dataset(dataset: Any, reporter: Reporter) -> TorchDataset:
    """Open a data set of images and labels.

    Args:
        dataset: has a length, and items that begin with an image (Pillow's, an array [H,W] or
            [H,W,C], or a tensor [C,H,W], uint8 or 0..1) and a label (a number, or of several labels a
            vector of 0 and 1). Labels are taken from its attribute `targets` or `labels` where it has
            one, else every item is read once; names of classes from `classes`.
        reporter: shows that progress.

    Raises:
        ExtensionError: it has no length or no items of that kind.
    """
    title = type(dataset).__name__
    try:
        count = len(dataset)
    except TypeError as error:
        raise ExtensionError(
            f"The data set {title} has no length.",
            "A run needs a map-style data set, with __len__ and __getitem__.",
        ) from error
    labels = _find_labels(dataset)
    if labels is None or not _agrees(dataset, labels, title):
        indices = track(range(count), reporter, "read the labels", count)
        labels = [get_item(dataset, i, f"{title}[{i}]")[1] for i in indices]
    array = to_labels(labels, count, title)
    num_classes = array.shape[1] if array.ndim == 2 else int(array.max(initial=-1)) + 1
    names = _find_names(dataset)
    class_names = tuple(map(str, names if names is not None else range(num_classes)))
    if len(set(class_names)) < len(class_names):
        raise ExtensionError(f"Two classes of the data set {title} have one name.", "Name each.")
    if len(class_names) < num_classes or (array.ndim == 2 and len(class_names) > num_classes):
        raise ExtensionError(
            f"The data set {title} names {len(class_names)} classes, and its labels have {num_classes}.",
            "Its attribute `classes` has the name of each; labels are counted from 0.",
        )
    return TorchDataset(dataset, array, class_names, title)


def open_for_training(
    data: Any, *, seed: int, reporter: Reporter
) -> tuple[str, ImageDataset, ImageDataset]:
    """Return what a run calls a caller's data, and its training and validation images.

    Args:
        data: a data set, of which a fifth is held out by the hash of its places; or one of training
            and one of validation images.
        seed: of what is held out.
        reporter: receives what was held out.

    Raises:
        DataError: fewer than two classes, or other classes in the validation images.
        ExtensionError: see `open_torch_dataset`.
    """
    if isinstance(data, tuple | list):
        if len(data) != 2:
            raise ExtensionError(
                f"{len(data)} data sets were passed.", "Pass one, or (training, validation) images."
            )
        train, other = (open_torch_dataset(part, reporter) for part in data)
        if train.is_multilabel != other.is_multilabel:
            raise ExtensionError(
                "Images of one data set have one label each, and those of the other several.",
                "Give both labels of one kind.",
            )
        val = relabel(other, train.class_names)
        _require_both(train.title, train, val)
        return PREFIX + train.title, train, val
    dataset = open_torch_dataset(data, reporter)
    split = hold_out(dataset, VAL_FRACTION, seed)
    _require_both(dataset.title, split.train, split.val)
    reporter.note(
        f"{len(split.val.labels)} of {len(dataset.labels)} images of {dataset.title} are held out, "
        "chosen by their places in it; near duplicates were not looked for."
    )
    return PREFIX + dataset.title, split.train, split.val


def _require_both(title: str, train: ImageDataset, val: ImageDataset) -> None:
    if len(train.class_names) < 2 or not (len(train.labels) and len(val.labels)):
        raise DataError(
            f"{title} has {len(train.labels)} training and {len(val.labels)} validation images in "
            f"{len(train.class_names)} class{'es' if len(train.class_names) != 1 else ''}.",
            "Training needs at least two classes of at least two images.",
        )


def get_item(dataset: Any, index: int, name: str) -> Any:
    """Return an item, which begins with an image and a label.

    Raises:
        DataError: its file cannot be read.
        ExtensionError: the data set fails, or its item is something else.
    """
    try:
        item = dataset[index]
    except (DeitctlError, MemoryError):
        raise
    except (OSError, UnidentifiedImageError) as error:  # of this image alone
        raise DataError(f"{name} cannot be read: {error}") from error
    except Exception as error:
        raise ExtensionError.from_exception(name, error) from error
    if not isinstance(item, Sequence) or isinstance(item, str | bytes) or len(item) < 2:
        raise ExtensionError(
            f"{name} is a {type(item).__name__}.",
            "An item is an image and its label: (image, label).",
        )
    return item


def to_image(value: Any, name: str) -> Image.Image:
    """Return an item's image in RGB; raise `ExtensionError` if it is none."""
    if isinstance(value, Image.Image):
        if value.mode.startswith(("I", "F")):
            raise ExtensionError(
                f"{name} is an image of more than 8 bits (mode {value.mode}).",
                "Scale it to 8 bits in the data set: how is not known here.",
            )
        return convert_image(value, name)
    pixels = value
    if isinstance(value, torch.Tensor):
        if value.ndim == 3:
            value = value.permute(1, 2, 0)
        pixels = value.detach().cpu().numpy()
    if isinstance(pixels, np.ndarray) and pixels.dtype.kind == "f" and pixels.size:
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ExtensionError(
                f"{name} has values from {pixels.min():.3g} to {pixels.max():.3g}.",
                "Leave normalization out of the data set: the run normalizes by itself.",
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    is_image = (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.size
        and (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4)))
    )
    if not is_image:
        shape = f" {list(value.shape)}" if hasattr(value, "shape") else ""
        raise ExtensionError(
            f"{name} has a {type(value).__name__}{shape} as its image.",
            "An image is Pillow's, an array [H,W,3] or a tensor [3,H,W], of uint8 or 0..1.",
        )
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _find_labels(dataset: Any) -> Any:
    """Return the labels that a data set has in memory; None if it has none."""
    if isinstance(dataset, torch.utils.data.Subset):
        inner = _find_labels(dataset.dataset)
        return None if inner is None else np.asarray(inner)[np.asarray(dataset.indices)]
    return next((value for n in LABELS if (value := getattr(dataset, n, None)) is not None), None)


def _agrees(dataset: Any, labels: Any, title: str) -> bool:
    """Return whether some items have the labels of the attribute, which a `target_transform` changes."""
    count = min(len(labels), len(dataset))
    places = np.unique(np.linspace(0, count - 1, NUM_COMPARED).astype(int)) if count else ()
    for at in map(int, places):
        own = get_item(dataset, at, f"{title}[{at}]")[1]
        if not np.array_equal(np.asarray(own), np.asarray(labels[at])):
            return False
    return True


def _find_names(dataset: Any) -> Sequence[str] | None:
    if isinstance(dataset, torch.utils.data.Subset):
        return _find_names(dataset.dataset)
    names: Sequence[str] | None = getattr(dataset, "classes", None)
    return names


def to_labels(values: Any, count: int, title: str) -> Labels:
    """Return labels as int64 [N], or bool [N,K] where an image has several."""
    try:
        if isinstance(values, torch.Tensor):
            values = values.cpu().numpy()
        else:
            values = [v.tolist() if isinstance(v, torch.Tensor) else v for v in values]
        array: NDArray[Any] = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ExtensionError(
            f"The labels of the data set {title} are no numbers: {error}"
        ) from error
    if len(array) != count:
        raise ExtensionError(f"The data set {title} has {count} images and {len(array)} labels.")
    if not count:
        raise ExtensionError(f"The data set {title} is empty.")
    if array.ndim == 1 and array.dtype.kind in "iu":
        if array.min() < 0:
            raise ExtensionError(
                f"The data set {title} has the label {array.min()}.", "Classes are counted from 0."
            )
        return array.astype(np.int64)
    if array.ndim == 2 and array.dtype.kind in "iubf" and np.isin(array, (0, 1)).all():
        return array.astype(np.bool_)
    raise ExtensionError(
        f"The labels of the data set {title} are an array {list(array.shape)} of {array.dtype}.",
        "A label is the number of a class from 0, or of several labels a vector of 0 and 1.",
    )

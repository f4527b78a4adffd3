"""Opening a data set by its name: from the cache, else downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from deitctl.data.dataset import ImageDataset
from deitctl.data.named.install import find_archives, find_folder, install
from deitctl.data.named.names import TORCHVISION, TRAINVAL, NamedData, find_named
from deitctl.data.named.stored import FILE, read_stored
from deitctl.data.named.torchvision_classes import describe_class, list_downloads, load_class
from deitctl.data.subsets import JoinedDataset
from deitctl.errors import DataError
from deitctl.events import Reporter


def open_named(
    ref: str, reporter: Reporter, open_hub: Callable[[str], Mapping[str, ImageDataset]]
) -> Mapping[str, ImageDataset]:
    """Return the published parts of a data set, downloading it if it is not there.

    Args:
        ref: its name, or `torchvision:CLASS`; with `-trainval` its training and validation images are one part,
            as papers report results on `test`.
        reporter: receives progress.
        open_hub: opens the address of a data set of the hub.

    Raises:
        DataError: there is no such data set, or it cannot be had; the message says what to put where.
    """
    data = find_named(ref)
    if data is not None:
        parts = _open(data, reporter, open_hub)
    elif ref.startswith(TORCHVISION):
        parts = _open_class(ref, reporter)
    else:
        raise DataError(f"There is no data set {ref!r}.")
    if not ref.endswith(TRAINVAL):
        return parts
    return {"train": _join(parts["train"], parts["val"]), "test": parts["test"]}


def _open(
    data: NamedData, reporter: Reporter, open_hub: Callable[[str], Mapping[str, ImageDataset]]
) -> Mapping[str, ImageDataset]:
    folder = find_folder(data.name, reporter)
    is_here, archives = (folder / FILE).is_file(), find_archives(folder)
    if data.hub and not is_here and not (archives.is_dir() and any(archives.iterdir())):
        try:
            return open_hub(data.hub)
        except DataError as error:
            files = list_downloads(data)
            names = ", ".join(file.name for file in files)
            way_on = f"Or put {names} of {files[0].url} into {archives}."
            raise DataError(error.message, f"{error.hint} {way_on}".strip()) from error
    if not is_here:
        install(data, folder, reporter)
    return read_stored(folder / FILE, data.name)


def _open_class(ref: str, reporter: Reporter) -> dict[str, ImageDataset]:
    name = TORCHVISION + load_class(ref.removeprefix(TORCHVISION)).__name__
    folder = find_folder(name, reporter)
    if not (folder / FILE).is_file():
        install(describe_class(ref), folder, reporter)
    return read_stored(folder / FILE, name)


def _join(first: ImageDataset, second: ImageDataset) -> ImageDataset:
    """Return the images of two parts as one, their classes in the published order."""
    labels = np.concatenate([first.labels, second.labels])
    ends = np.cumsum([len(first.labels), len(second.labels)])
    return JoinedDataset((first, second), labels, first.class_names, ends)

"""What a run folder says about its data: which data it was, and which images it held out.

`split.csv` has a row `path,label,split` for every image of data that was split for the run.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deitctl.data.dataset import ImageDataset, Subset, number_labels
from deitctl.data.splits import HeldOut, list_relative_paths
from deitctl.errors import DataError
from deitctl.paths import write_bytes
from deitctl.settings import read_toml

SPLIT_FILE = "split.csv"
COLUMNS = ["path", "label", "split"]


@dataclass(frozen=True)
class SplitRows:
    """The rows of a split.csv, in order: first the training images, then the validation images."""

    paths: Sequence[str]
    """Below the data, see `splits.list_relative_paths`."""
    labels: Sequence[str]
    """Class names."""
    splits: Sequence[str]
    """`train` or `val`."""


@dataclass(frozen=True)
class RunData:
    """The data of a run."""

    folder: Path
    """Of the run."""
    ref: str
    """The data, as the run names it."""
    split_seed: int
    rows: SplitRows | None
    """None if the data has validation images of its own, or the run is of an older version."""


@dataclass(frozen=True)
class AppliedSplit:
    """A run's split of data that may have changed since."""

    train: Subset
    val: HeldOut
    num_new: int
    """Images that were not there when the run began; they are in neither part."""
    missing: tuple[str, ...]
    """Paths of the run's images that are gone."""


def read_run_data(folder: Path) -> RunData | None:
    """Return what a run folder says about its data; None if it is no run.

    Raises:
        ConfigError: run.toml is broken.
        DataError: split.csv is.
    """
    config_file = folder / "run.toml"
    if not config_file.is_file():
        return None
    config = read_toml(config_file)
    split_seed = config.get("split_seed", 0)
    return RunData(
        folder,
        str(config.get("data", "")),
        split_seed if isinstance(split_seed, int) else 0,
        _read_rows(folder / SPLIT_FILE),
    )


def write_split(folder: Path, train: ImageDataset, val: ImageDataset) -> None:
    """Write split.csv if the validation images were held out; raise `DiskError` if that fails.

    Data with validation images of its own says itself which they are, and may have millions.
    """
    if not isinstance(val, HeldOut):
        (folder / SPLIT_FILE).unlink(missing_ok=True)  # of a run that was killed at its start
        return
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for split, dataset in (("train", train), ("val", val)):
        paths = list_relative_paths(dataset)
        for path, label in zip(paths, dataset.labels.tolist(), strict=True):
            rows.writerow((path, dataset.class_names[label], split))
    write_bytes(folder / SPLIT_FILE, text.getvalue().encode("utf-8", "surrogateescape"))


def _read_rows(file: Path) -> SplitRows | None:
    if not file.is_file():
        return None
    try:
        with file.open(newline="", encoding="utf-8", errors="surrogateescape") as text:
            table = csv.reader(text)
            if next(table, []) != COLUMNS:
                raise ValueError(f"its first line is not {','.join(COLUMNS)}")
            rows = list(table)
        if any(len(row) != 3 or row[2] not in ("train", "val") for row in rows):
            raise ValueError("a row is not path,label and train or val")
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read: {error}.", "Restore it, or start a new run."
        ) from error
    return SplitRows(*([row[column] for row in rows] for column in range(3)))


def apply_split(dataset: ImageDataset, rows: SplitRows) -> AppliedSplit:
    """Split data as a run did: the same images, in the same order, under the same class numbers.

    Args:
        dataset: the run's data as it is now.
        rows: of the run.
    """
    index_of = _index_images(dataset)
    found: Mapping[str, list[int]] = {"train": [], "val": []}
    missing = []
    for path, label, split in zip(rows.paths, rows.labels, rows.splits, strict=True):
        if places := index_of.get((path, label)):
            found[split].append(places.pop(0))  # a table may list an image twice
        else:
            missing.append(path)
    train, val = (np.array(found[split], np.int64) for split in ("train", "val"))
    used = set(rows.labels)
    class_names = tuple(name for name in dataset.class_names if name in used)
    labels = number_labels(dataset, class_names)
    return AppliedSplit(
        Subset(dataset, train, labels[train], class_names),
        HeldOut(dataset, val, labels[val], class_names),
        len(labels) - len(train) - len(val),
        tuple(missing),
    )


def _index_images(dataset: ImageDataset) -> dict[tuple[str, str], list[int]]:
    """Return the indices of the images by path and class name."""
    index_of: dict[tuple[str, str], list[int]] = {}
    paths = list_relative_paths(dataset)
    for index, (path, label) in enumerate(zip(paths, dataset.labels.tolist(), strict=True)):
        index_of.setdefault((path, dataset.class_names[label]), []).append(index)
    return index_of

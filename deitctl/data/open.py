"""Opening a dataset by the user's reference, with its splits.

A folder, tar, pack, table or the built-in digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deitctl.data.dataset import ImageDataset, is_hidden
from deitctl.data.readers.digits import load_digits
from deitctl.data.readers.folder import open_folder
from deitctl.data.readers.pack import SUFFIX, open_pack
from deitctl.data.readers.table import open_table
from deitctl.data.readers.tar import open_tar
from deitctl.data.splits import TRAIN_NAMES, VAL_NAMES, find_splits, hold_out, relabel
from deitctl.errors import DataError
from deitctl.events import Reporter

BUILT_IN = "digits"
VAL_FRACTION = 0.2
"""Held out of a dataset without splits."""
KINDS = "DATA is a folder, a .tar, a .pack, a .csv or .parquet table, or 'digits'."


@dataclass(frozen=True)
class DatasetSplits:
    """A dataset as it is stored: with a training or validation split or both, or unsplit."""

    name: str
    train: ImageDataset | None
    val: ImageDataset | None
    unsplit: ImageDataset | None


def open_for_training(
    ref: str, *, seed: int, reporter: Reporter
) -> tuple[ImageDataset, ImageDataset]:
    """Return training and validation images with the same classes.

    Without splits a fifth of every class is held out.

    Args:
        ref: the user's name of the dataset; empty means `digits`.
        seed: of the images that are held out.
        reporter: receives what was held out.

    Raises:
        DataError: nothing is there, a split or a second class is missing, or the classes do not
            match.
    """
    data = open_dataset(ref, reporter)
    train: ImageDataset
    val: ImageDataset
    if data.unsplit is not None:
        # A function of the seed: a resumed run holds out the same images.
        train, val = hold_out(data.unsplit, VAL_FRACTION, seed)
        reporter.note(
            f"{data.name} has no validation set: "
            f"{len(val.labels)} of {len(data.unsplit.labels)} images are held out."
        )
    elif data.train is not None and data.val is not None:
        # By name: the validation split may lack a class, and be numbered otherwise.
        train, val = data.train, relabel(data.val, data.train.class_names)
    else:
        present, missing = ("train", "val") if data.train is not None else ("val", "train")
        raise DataError(
            f"{data.name} has a {present} split and no {missing} split.",
            "Training needs train/ and val/, each of class folders, "
            "or one folder of class folders. "
            f"`deitctl check {data.name}` lists what is there.",
        )
    classes = len(train.class_names)
    if classes < 2 or len(val.labels) == 0:
        raise DataError(
            f"{data.name} has {len(train.labels)} training and {len(val.labels)} validation images "
            f"in {classes} "
            f"class{'es' if classes != 1 else ''}.",
            "Training needs at least two classes of at least two images.",
        )
    return train, val


def open_for_evaluation(ref: str, reporter: Reporter) -> ImageDataset:
    """Return the images to evaluate on, see `open_eval_split`."""
    return open_eval_split(ref, reporter)[1]


def open_eval_split(ref: str, reporter: Reporter) -> tuple[str, ImageDataset]:
    """Return the split to evaluate on: `all` of unsplit data, else `val`, else `train`."""
    data = open_dataset(ref, reporter)
    for split, dataset in (("all", data.unsplit), ("val", data.val), ("train", data.train)):
        if dataset is not None and len(dataset.labels):
            return split, dataset
    raise DataError(f"{data.name} has no images to evaluate on.")


def open_dataset(ref: str, reporter: Reporter) -> DatasetSplits:
    """Open a folder, tar, pack, table or `digits`, the default.

    Raises:
        DataError: it is none of them, or empty.
    """
    name, splits = _open_splits(ref or BUILT_IN, reporter)
    for dataset in splits.values():
        for class_name in dataset.class_names:
            try:
                class_name.encode()
            except UnicodeEncodeError as error:  # config.json could not hold it
                raise DataError(
                    f"{name} has the class {class_name!r}, which is not UTF-8.",
                    "Rename the class.",
                ) from error
    return DatasetSplits(name, splits.get("train"), splits.get("val"), splits.get(""))


def _open_splits(ref: str, reporter: Reporter) -> tuple[str, Mapping[str, ImageDataset]]:
    if ref == BUILT_IN and not Path(ref).is_dir():
        train, val = load_digits()
        return BUILT_IN, {"train": train, "val": val}
    path = Path(ref).expanduser()
    if not path.exists():
        raise DataError(f"There is no dataset {ref!r}.", KINDS)
    if path.is_dir():
        return str(path), _open_split_folders(path, reporter)
    if not path.is_file():  # reading a pipe would block, reading a device never end
        raise DataError(
            f"{ref} is a pipe, a device or a socket, not a dataset.", "Write it to a file first."
        )
    if path.suffix == ".tar":
        return str(path), open_tar(path, reporter)
    if path.suffix == SUFFIX:
        return str(path), open_pack(path)
    if path.suffix in (".csv", ".parquet"):
        return str(path), open_table(path)
    raise DataError(f"{ref} is not a dataset.", KINDS)


def _open_split_folders(path: Path, reporter: Reporter) -> dict[str, ImageDataset]:
    names = (*TRAIN_NAMES, *VAL_NAMES)
    splits = find_splits(name for name in names if _has_class_folders(path / name))
    if not splits:
        return {"": open_folder(path, reporter)}
    return {split: open_folder(path / name, reporter) for split, name in splits.items()}


def _has_class_folders(path: Path) -> bool:
    """Whether a folder is a split, and not a class that happens to be called `train`."""
    return path.is_dir() and any(
        entry.is_dir() and not is_hidden(entry.name) for entry in path.iterdir()
    )

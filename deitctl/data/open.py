"""From what a user calls a data set to its training and validation images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deitctl.data.dataset import Source, digits, hold_out, is_hidden, relabel
from deitctl.data.readers.folder import scan_classes
from deitctl.data.readers.pack import SUFFIX, open_pack
from deitctl.data.readers.table import open_table
from deitctl.data.readers.tar import open_tar
from deitctl.data.splits import TRAIN_NAMES, VAL_NAMES, name_parts
from deitctl.errors import DataError
from deitctl.events import Reporter

BUILT_IN = "digits"
HELD_OUT = 0.2
KINDS = "DATA is a folder, a .tar, a .pack, a .csv or .parquet table, or 'digits'."


@dataclass(frozen=True)
class DataSet:
    """A data set as given: with splits, or as one whole."""

    name: str
    train: Source | None
    val: Source | None
    whole: Source | None


def open_for_training(ref: str, *, seed: int, reporter: Reporter) -> tuple[Source, Source]:
    """Return training and validation images with the same classes; without a validation set a fifth is held out.

    Raises:
        DataError: nothing there, nothing to learn from, or classes that do not match.
    """
    data = open_data(ref, reporter)
    if data.whole is not None:
        train, val = hold_out(data.whole, HELD_OUT, seed)
        reporter.note(
            f"{data.name} has no validation set: {len(val.labels)} of {len(data.whole.labels)} images are held out."
        )
        pair: tuple[Source, Source] = (train, val)
    elif data.train is not None and data.val is not None:
        pair = (data.train, relabel(data.val, data.train.class_names))
    else:
        present = "train" if data.train is not None else "val"
        raise DataError(
            f"{data.name} has a {present} part alone.",
            "Training needs train/ and val/, each of class folders, or one folder of class folders. "
            f"`deitctl check {data.name}` says what is there.",
        )
    classes = len(pair[0].class_names)
    if classes < 2 or len(pair[1].labels) == 0:
        raise DataError(
            f"{data.name} has {len(pair[0].labels)} training and {len(pair[1].labels)} validation images in {classes} "
            f"class{'es' if classes != 1 else ''}.",
            "Training needs two classes or more, with two images or more.",
        )
    return pair


def open_for_evaluation(ref: str, reporter: Reporter) -> Source:
    """Return the images to evaluate on: the validation part where there are parts, else everything."""
    data = open_data(ref, reporter)
    source = data.whole or data.val or data.train
    if source is None or len(source.labels) == 0:
        raise DataError(f"{data.name} has no images to evaluate on.")
    return source


def open_data(ref: str, reporter: Reporter) -> DataSet:
    """Open a folder, a tar, a pack, a table or `digits`; raise `DataError` if it is none of them or empty."""
    data = _open_any(ref or BUILT_IN, reporter)
    for part in (data.train, data.val, data.whole):
        if part is not None:
            _require_text(part.class_names, data.name)
    return data


def _require_text(names: Iterable[str], where: str) -> None:
    """Refuse a class name that config.json could not hold."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where} has the class {name!r}, which is not UTF-8.", "Rename it."
            ) from error


def _open_any(ref: str, reporter: Reporter) -> DataSet:
    if ref == BUILT_IN and not Path(ref).is_dir():
        train, val = digits()
        return DataSet(BUILT_IN, train, val, None)
    path = Path(ref).expanduser()
    if not path.exists():
        raise DataError(f"There is no data set {ref!r}.", KINDS)
    if path.is_dir():
        parts = _open_folder(path, reporter)
    elif not path.is_file():  # a pipe would be waited for, a device read for ever
        raise DataError(
            f"{ref} is a pipe, a device or a socket, not a data set.", "Write it to a file first."
        )
    elif path.suffix == ".tar":
        parts = open_tar(path, reporter)
    elif path.suffix == SUFFIX:
        parts = {**open_pack(path)}
    elif path.suffix in (".csv", ".parquet"):
        parts = open_table(path)
    else:
        raise DataError(f"{ref} is not a data set.", KINDS)
    return DataSet(str(path), parts.get("train"), parts.get("val"), parts.get(""))


def _open_folder(path: Path, reporter: Reporter) -> dict[str, Source]:
    parts = name_parts(name for name in (*TRAIN_NAMES, *VAL_NAMES) if _holds_folders(path / name))
    if not parts:
        return {"": scan_classes(path, reporter)}
    return {part: scan_classes(path / name, reporter) for part, name in parts.items()}


def _holds_folders(path: Path) -> bool:
    """Say whether a folder is a part of a data set, and not a class that happens to be called `train`."""
    return path.is_dir() and any(
        entry.is_dir() and not is_hidden(entry.name) for entry in path.iterdir()
    )

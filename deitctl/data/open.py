"""From what a user calls a data set to its training and validation pictures."""

from __future__ import annotations

import csv
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from deitctl.data.decode import EXTENSIONS
from deitctl.data.sources import (
    FileSource,
    Source,
    TarSource,
    digits,
    drop_empty_classes,
    hold_out,
    is_hidden,
    relabel,
)  # fmt: skip
from deitctl.errors import DataError
from deitctl.events import Reporter, Task
from deitctl.files import walk

BUILT_IN = "digits"
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "validation", "valid", "test")
COLUMNS = ("path", "label", "split")
HELD_OUT = 0.2


@dataclass(frozen=True)
class DataSet:
    """A data set as given: with splits, or as one whole."""

    name: str
    train: Source | None
    val: Source | None
    whole: Source | None


def open_for_training(ref: str, *, seed: int, reporter: Reporter) -> tuple[Source, Source]:
    """Return training and validation pictures with the same classes; without a validation set a fifth is held out.

    Raises:
        DataError: nothing there, nothing to learn from, or classes that do not match.
    """
    data = open_data(ref, reporter)
    if data.whole is not None:
        train, val = hold_out(data.whole, HELD_OUT, seed)
        reporter.note(
            f"{data.name} has no validation set: {len(val.labels)} of {len(data.whole.labels)} pictures are held out."
        )
        pair: tuple[Source, Source] = (train, val)
    elif data.train is not None and data.val is not None:
        pair = (data.train, relabel(data.val, data.train.class_names))
    else:
        present = "train" if data.train is not None else "val"
        raise DataError(
            f"{data.name} has a {present} part alone.",
            "Training needs train/ and val/, or one folder of class folders.",
        )
    classes = len(pair[0].class_names)
    if classes < 2 or len(pair[1].labels) == 0:
        raise DataError(
            f"{data.name} has {len(pair[0].labels)} training and {len(pair[1].labels)} validation pictures in {classes} "
            f"class{'es' if classes != 1 else ''}.",
            "Training needs two classes or more, with two pictures or more.",
        )
    return pair


def open_for_evaluation(ref: str, reporter: Reporter) -> Source:
    """Return the pictures to evaluate on: the validation part where there are parts, else everything."""
    data = open_data(ref, reporter)
    source = data.whole or data.val or data.train
    if source is None or len(source.labels) == 0:
        raise DataError(f"{data.name} has no pictures to evaluate on.")
    return source


def open_data(ref: str, reporter: Reporter) -> DataSet:
    """Open a folder, a tar, a table or `digits`; raise `DataError` if it is none of them or empty."""
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
            raise DataError(f"{where} has the class {name!r}, which is not UTF-8.", "Rename it.") from error


def _open_any(ref: str, reporter: Reporter) -> DataSet:
    if ref == BUILT_IN and not Path(ref).is_dir():
        train, val = digits()
        return DataSet(BUILT_IN, train, val, None)
    path = Path(ref).expanduser()
    if not path.exists():
        raise DataError(
            f"There is no data set {ref!r}.", "DATA is a folder, a .tar, a .csv or .parquet table, or 'digits'."
        )
    if path.is_dir():
        return _open_folder(path, reporter)
    if not path.is_file():  # a pipe would be waited for, a device read for ever
        raise DataError(f"{ref} is a pipe, a device or a socket, not a data set.", "Write it to a file first.")
    if path.suffix == ".tar":
        return _open_tar(path, reporter)
    if path.suffix in (".csv", ".parquet"):
        return _open_table(path)
    raise DataError(f"{ref} is not a data set.", "DATA is a folder, a .tar, a .csv or .parquet table, or 'digits'.")


def _open_folder(path: Path, reporter: Reporter) -> DataSet:
    parts = {name: path / name for name in (*TRAIN_NAMES, *VAL_NAMES) if _holds_folders(path / name)}
    if not parts:
        return DataSet(str(path), None, None, scan_classes(path, reporter))
    train, val = _parts(parts)
    return DataSet(
        str(path),
        scan_classes(parts[train], reporter) if train else None,
        scan_classes(parts[val], reporter) if val else None,
        None,
    )


def _parts(names: Iterable[str]) -> tuple[str | None, str | None]:
    """Return which of the names is the training part and which the validation part; `val` goes before `test`."""
    present = set(names)
    return next((n for n in TRAIN_NAMES if n in present), None), next((n for n in VAL_NAMES if n in present), None)


def _holds_folders(path: Path) -> bool:
    """Say whether a folder is a part of a data set, and not a class that happens to be called `train`."""
    return path.is_dir() and any(entry.is_dir() and not is_hidden(entry.name) for entry in path.iterdir())


def scan_classes(root: Path, reporter: Reporter) -> Source:
    """List a folder of class folders, classes in lexicographic order, pictures at any depth below them."""
    try:
        with os.scandir(root) as listing:
            entries = list(listing)
        folders = sorted(e.name for e in entries if os.path.isdir(e.path) and not is_hidden(e.name))
        loose = any(Path(e.name).suffix.lower() in EXTENSIONS for e in entries if os.path.isfile(e.path))
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}.") from error
    if not folders:
        what = "pictures but no class folders" if loose else "no class folders"
        raise DataError(f"{root} has {what}.", "Put each class's pictures into a folder of its name.")
    paths: list[str] = []
    labels: list[int] = []
    with reporter.task(f"scan {root.name}", None, "files") as task:
        for label, folder in enumerate(folders):
            found = sorted(_pictures(root / folder, task))
            paths += found
            labels += [label] * len(found)
    if not paths:
        known = " ".join(sorted(EXTENSIONS))
        raise DataError(f"{root} has {len(folders)} class folders and no pictures in them.", f"Looked for {known}.")
    return _without_empty(
        FileSource(tuple(paths), np.array(labels, dtype=np.int64), tuple(folders)), str(root), reporter
    )


def _pictures(folder: Path, task: Task) -> Iterator[str]:
    """Yield the pictures below a folder; links are followed, but no folder is entered twice."""
    above = os.stat(folder.parent)
    seen = {(above.st_dev, above.st_ino)}  # a link up would give this class the pictures of all others
    for current, folders, files in walk(str(folder), follow=True):
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [f for f in folders if not is_hidden(f)]
        for file in files:
            if os.path.splitext(file)[1].lower() in EXTENSIONS and not is_hidden(file):
                yield os.path.join(current, file)
        task.advance(len(files))


def _without_empty(source: FileSource | TarSource, where: str, reporter: Reporter) -> Source:
    source, empty = drop_empty_classes(source)
    if empty:
        names = ", ".join(repr(n) for n in empty[:5]) + (", ..." if len(empty) > 5 else "")
        reporter.warn(f"{where}: {len(empty)} class folder(s) without a picture are left out: {names}.")
    return source


def _open_tar(path: Path, reporter: Reporter) -> DataSet:
    members: list[tuple[PurePosixPath, int, int]] = []
    try:
        with reporter.task(f"scan {path.name}", None, "files") as task, tarfile.open(path, "r:") as archive:
            last = -1
            for member in archive:
                if member.offset <= last or member.size < 0:  # a negative size leads back, and round for ever
                    raise tarfile.ReadError("its members lie on each other")
                last = member.offset
                name = PurePosixPath(member.name.removeprefix("./").lstrip("/"))
                if (
                    member.isreg()
                    and not member.issparse()
                    and name.suffix.lower() in EXTENSIONS
                    and not any(map(is_hidden, name.parts))
                ):
                    members.append((name, member.offset_data, member.size))
                task.advance()
    except Exception as error:  # tarfile raises whatever it trips over: RecursionError, MemoryError, ValueError, ...
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is not a readable, uncompressed tar: {why}.", "Unpack a .tar.gz first.") from error
    while members and len({m[0].parts[0] for m in members}) == 1 and min(len(m[0].parts) for m in members) > 2:
        members = [(PurePosixPath(*n.parts[1:]), o, s) for n, o, s in members]  # one folder around everything
    if not members or min(len(m[0].parts) for m in members) < 2:
        raise DataError(f"{path} has no class folders with pictures in it.")
    below: dict[str, list[tuple[PurePosixPath, int, int]]] = {}
    for name, offset, size in members:
        below.setdefault(name.parts[0], []).append((PurePosixPath(*name.parts[1:]), offset, size))
    train, val = _parts(below)
    if train is None and val is None:
        return DataSet(str(path), None, None, _tar_part(path, members))
    return DataSet(
        str(path),
        _tar_part(path, below[train]) if train else None,
        _tar_part(path, below[val]) if val else None,
        None,
    )


def _tar_part(path: Path, members: list[tuple[PurePosixPath, int, int]]) -> TarSource:
    members = sorted(m for m in members if len(m[0].parts) > 1)  # a picture beside the class folders has no class
    names = tuple(sorted({m[0].parts[0] for m in members}))
    index = {n: i for i, n in enumerate(names)}
    labels = np.array([index[m[0].parts[0]] for m in members], dtype=np.int64)
    return TarSource(str(path), tuple((str(n), o, s) for n, o, s in members), labels, names)


def _open_table(path: Path) -> DataSet:
    rows = list(_read_table(path))
    if not rows:
        raise DataError(f"{path} has no rows.")
    splits = {split for _, _, split in rows}
    if splits == {""}:
        return DataSet(str(path), None, None, _table_part(path, rows))
    if unknown := sorted(splits.difference(TRAIN_NAMES, VAL_NAMES)):
        known = ", ".join((*TRAIN_NAMES, *VAL_NAMES))
        raise DataError(f"{path} has the split {unknown[0]!r}.", f"A split is one of {known}, in every row or in none.")
    train, val = _parts(splits)
    return DataSet(
        str(path),
        _table_part(path, [r for r in rows if r[2] == train]) if train else None,
        _table_part(path, [r for r in rows if r[2] == val]) if val else None,
        None,
    )


def _table_part(path: Path, rows: list[tuple[str, str, str]]) -> FileSource:
    names = tuple(sorted({label for _, label, _ in rows}))
    index = {n: i for i, n in enumerate(names)}
    return FileSource(
        tuple(os.path.join(path.parent, file) for file, _, _ in rows),
        np.array([index[label] for _, label, _ in rows], dtype=np.int64),
        names,
    )


def _read_table(path: Path) -> Iterable[tuple[str, str, str]]:
    """Yield path, label and split (may be empty) of every row."""
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = _read_csv(file)
        else:
            rows = _read_parquet(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    for number, row in enumerate(rows, start=2):
        if row.get("path") in (None, "") or row.get("label") in (None, ""):
            raise DataError(f"{path}, row {number} has no 'path' or no 'label'.", "The columns are path,label[,split].")
        yield str(row["path"]), str(row["label"]), str(row.get("split") or "")


def _read_csv(lines: Iterable[str]) -> list[dict[str, object]]:
    """Read the columns that are wanted: a million empty ones in every row would take the memory of a million rows."""
    table = csv.reader(lines)
    header = next(table, [])
    places = {name: header.index(name) for name in COLUMNS if name in header}
    return [{name: row[at] for name, at in places.items() if at < len(row)} for row in table if row]


def _read_parquet(path: Path) -> list[dict[str, object]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Parquet tables need pyarrow.", "pip install 'deitctl[parquet]'") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            wanted = [name for name in COLUMNS if name in file.schema_arrow.names]
            return file.read(wanted).to_pylist()  # type: ignore[no-any-return]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:120]
        raise DataError(f"{path} is not a readable parquet file: {why}.") from error

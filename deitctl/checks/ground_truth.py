"""Labels that come in a file of their own, as those of ImageNet's validation images do."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath

from deitctl.errors import DataError

DEVKIT_FILE = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT_IMAGE = "ILSVRC2012_val_{:08d}"
WORDNET_ID = re.compile(r"n\d{8}")


def read_ground_truth(path: Path) -> dict[str, str]:
    """Read the label of every image, by file name, or by file name without its extension.

    Args:
        path: the devkit's folder or its ground truth (meta.mat must lie beside it), Kaggle's LOC_val_solution.csv, or
            rows of `filename label` or `filename,label`.

    Raises:
        DataError: no such file, none of these forms, or the devkit's numbers without meta.mat, which says what they
            mean: their order is not that of the WordNet ids.
    """
    if path.is_dir():
        path = _in_devkit(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The ground truth {path} cannot be read: {getattr(error, 'strerror', error)}."
        ) from error
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise DataError(f"The ground truth {path} is empty.")
    if all(line.strip().isdecimal() for line in lines):
        meaning = _devkit_classes(path.parent / "meta.mat")
        return {
            DEVKIT_IMAGE.format(i): _meaning(meaning, int(n), path)
            for i, n in enumerate(lines, start=1)
        }
    if lines[0].replace(" ", "").lower() == "imageid,predictionstring":
        return _checked(
            ((r[0], r[1].split()[0]) for r in csv.reader(lines[1:]) if len(r) > 1 and r[1].strip()),
            path,
        )
    return _checked(
        map(
            _file_and_label,
            csv.reader(lines) if "," in lines[0] else (s.split(None, 1) for s in lines),
        ),
        path,
    )


def label_of(image: str, truth: Mapping[str, str]) -> str | None:
    """Look an image up by its file name, then without its extension."""
    name = PurePath(image)
    return truth.get(name.name) or truth.get(name.stem)


def _in_devkit(folder: Path) -> Path:
    for path in (folder / DEVKIT_FILE, folder / "data" / DEVKIT_FILE):
        if path.is_file():
            return path
    raise DataError(
        f"{folder} has no {DEVKIT_FILE}.", "Name ImageNet's devkit folder, or a file of labels."
    )


def _devkit_classes(path: Path) -> dict[int, str]:
    """Read what the devkit's numbers stand for: WordNet ids by ILSVRC2012_ID."""
    if not path.is_file():
        raise DataError(
            f"The ground truth is numbers, and {path} is not there to say what they stand for.",
            "Copy the devkit's meta.mat beside it; or use Kaggle's LOC_val_solution.csv.",
        )
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(
            "meta.mat needs scipy.", "pip install scipy; or use Kaggle's LOC_val_solution.csv."
        ) from error
    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        classes = {
            int(n): str(w) for n, w in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)
        }
    except Exception as error:  # whatever a damaged or foreign .mat file makes scipy raise
        raise DataError(f"{path} is not the devkit's meta.mat: {error}.") from error
    if not all(WORDNET_ID.fullmatch(w) for w in classes.values()):
        raise DataError(f"{path} is not the devkit's meta.mat: its classes are not WordNet ids.")
    return classes


def _meaning(classes: Mapping[int, str], number: int, path: Path) -> str:
    if number not in classes:
        raise DataError(f"{path} has the class {number}, which meta.mat does not know.")
    return classes[number]


def _file_and_label(row: list[str]) -> tuple[str, str]:
    return (row[0], row[1].strip()) if len(row) > 1 else ("", "")


def _checked(rows: Iterable[tuple[str, str]], path: Path) -> dict[str, str]:
    """Refuse what cannot become a folder of its name inside the data set."""
    truth: dict[str, str] = {}
    for file, label in rows:
        name = PurePath(file.strip()).name
        if not name or not label or label in (".", "..") or "/" in label or "\\" in label:
            raise DataError(
                f"{path} has a row without a file name and a label: {file!r}, {label!r}."
            )
        if truth.setdefault(name, label) != label:
            raise DataError(f"{path} gives {name} two labels, {truth[name]!r} and {label!r}.")
    return truth

"""Ground truth: labels in a file of their own, as those of ImageNet's validation images."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np

from deitctl.checks.issues import Issue, Remedy, make_remedies, report
from deitctl.checks.survey import Split
from deitctl.data.dataset import FileDataset
from deitctl.errors import DataError
from deitctl.paths import suggest_path

DEVKIT_FILE = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT_IMAGE = "ILSVRC2012_val_{:08d}"
WORDNET_ID = re.compile(r"n\d{8}")


def read_ground_truth(path: Path) -> dict[str, str]:
    """Read the label of every image, by file name, or by file name without its extension.

    Args:
        path: the devkit's folder or its ground truth (meta.mat must lie beside it), Kaggle's
            LOC_val_solution.csv, or rows of `filename label` or `filename,label`.

    Raises:
        DataError: no such file, none of these forms, or the devkit's numbers without meta.mat,
            which gives their WordNet ids: they are in another order.
    """
    if path.is_dir():
        path = _find_devkit_file(path)
    try:
        # spreadsheets begin a CSV with a byte-order mark
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The ground truth {path} cannot be read: {getattr(error, 'strerror', error)}.",
            suggest_path(path),
        ) from error
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise DataError(f"The ground truth {path} is empty.")
    # the devkit, one number for each image in order
    if all(line.strip().isdecimal() for line in lines):
        wordnet_ids = _read_devkit_classes(path.parent / "meta.mat")
        return {
            DEVKIT_IMAGE.format(i): _find_wordnet_id(wordnet_ids, int(n), path)
            for i, n in enumerate(lines, start=1)
        }
    if lines[0].replace(" ", "").lower() == "imageid,predictionstring":
        # a row is the label and boxes: n01440764 240 170 260 240
        kaggle = (r for r in csv.reader(lines[1:]) if len(r) > 1 and r[1].strip())
        return _validate(((row[0], row[1].split()[0]) for row in kaggle), path)
    rows = csv.reader(lines) if "," in lines[0] else (line.split(None, 1) for line in lines)
    return _validate(((r[0], r[1].strip()) if len(r) > 1 else ("", "") for r in rows), path)


def find_label(image: str, labels: Mapping[str, str]) -> str | None:
    """Look an image up by its file name, then without its extension."""
    name = PurePath(image)
    return labels.get(name.name) or labels.get(name.stem)


def _find_devkit_file(folder: Path) -> Path:
    for path in (folder / DEVKIT_FILE, folder / "data" / DEVKIT_FILE):
        if path.is_file():
            return path
    raise DataError(
        f"{folder} has no {DEVKIT_FILE}.", "Pass ImageNet's devkit folder, or a file of labels."
    )


def _read_devkit_classes(path: Path) -> dict[int, str]:
    """Read the WordNet ids of the devkit's numbers, ILSVRC2012_ID."""
    if not path.is_file():
        raise DataError(
            f"The ground truth is numbers, and {path}, which gives their classes, is missing.",
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


def _find_wordnet_id(wordnet_ids: Mapping[int, str], number: int, path: Path) -> str:
    if number not in wordnet_ids:
        raise DataError(f"{path} has the class {number}, which meta.mat lacks.")
    return wordnet_ids[number]


def _validate(rows: Iterable[tuple[str, str]], path: Path) -> dict[str, str]:
    """Refuse labels that cannot become a folder of that name inside the data set."""
    labels: dict[str, str] = {}
    for file, label in rows:
        name = PurePath(file.strip()).name
        if not name or not label or label in (".", "..") or "/" in label or "\\" in label:
            raise DataError(
                f"{path} has a row without a file name and a label: {file!r}, {label!r}."
            )
        if labels.setdefault(name, label) != label:
            raise DataError(f"{path} gives {name} two labels, {labels[name]!r} and {label!r}.")
    return labels


def label_flat_split(
    split: Split, labels: Mapping[str, str], class_names: set[str]
) -> tuple[Split, list[Issue]]:
    """Label images without class folders, and report how they would be sorted into some.

    Args:
        split: the images.
        labels: the ground truth, may be empty.
        class_names: of the other splits.

    Raises:
        DataError: a ground truth of other images, or of numbers where the classes are none.
    """
    paths = [split.dataset.name(i) for i in range(len(split.dataset.labels))]
    by_path = {path: label for path in paths if (label := find_label(path, labels))}
    if labels and not by_path:
        raise DataError(
            f"The ground truth names none of the images in {split.root}, such as {Path(paths[0]).name}."
        )
    # numbers may be of the devkit or of a framework, whose orders differ
    numbers = by_path and all(label.isdecimal() for label in by_path.values())
    if numbers and class_names and not class_names.issuperset(by_path.values()):
        raise DataError(
            f"The ground truth's labels are numbers such as {min(by_path.values())}, and the classes are not.",
            "Pass a ground truth with class names or WordNet ids.",
        )

    def move(path: str) -> Remedy:
        target = Path(split.root) / by_path[path] / Path(path).name
        return Remedy(path, "flat_split", "move", str(target))

    details = [f"(The ground truth labels {len(by_path)} of them.)"] if labels else []
    moves = make_remedies(by_path, move)
    issues = list(report("flat_split", len(paths), paths, details=details, remedies=moves))
    if not by_path:
        return split, issues
    unlabeled = [path for path in paths if path not in by_path]
    issues += report("not_in_ground_truth", len(unlabeled), unlabeled)
    names = tuple(sorted(set(by_path.values())))
    index = {name: i for i, name in enumerate(names)}
    numbered = np.array([index[label] for label in by_path.values()], dtype=np.int64)
    return replace(split, dataset=FileDataset(tuple(by_path), numbered, names)), issues

"""Opening a dataset by the user's reference, with its splits.

A folder, tar, pack, table or the built-in digits.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deitctl.data.dataset import ImageDataset, is_hidden, join
from deitctl.data.near_duplicates import MAX_BYTES, MAX_IMAGES, group_duplicates
from deitctl.data.readers.digits import load_digits
from deitctl.data.readers.folder import open_folder
from deitctl.data.readers.pack import SUFFIX, open_pack
from deitctl.data.readers.table import open_table
from deitctl.data.readers.tar import open_tar
from deitctl.data.run_data import SPLIT_FILE, AppliedSplit, RunData, apply_split
from deitctl.data.splits import SPLIT_NAMES, find_splits, hold_out, relabel
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.paths import shorten, suggest_path

BUILT_IN = "digits"
VAL_FRACTION = 0.2
"""Held out of a dataset without validation images."""
ALL = "all"
"""Name of the images of every split together."""
MIN_FOUND = 0.95
"""Of a run's images that must be found by name and class for data elsewhere to be the run's."""
KINDS = "DATA is a folder, a .tar, a .pack, a .csv or .parquet table, or 'digits'."


@dataclass(frozen=True)
class DatasetSplits:
    """A dataset as it is stored: with some of training, validation and test split, or unsplit."""

    name: str
    train: ImageDataset | None
    val: ImageDataset | None
    test: ImageDataset | None
    unsplit: ImageDataset | None

    def list_parts(self) -> dict[str, ImageDataset]:
        """Return the splits that have images by name; the empty name is that of unsplit data."""
        parts = {"train": self.train, "val": self.val, "test": self.test, "": self.unsplit}
        return {name: part for name, part in parts.items() if part is not None and len(part.labels)}


@dataclass(frozen=True)
class EvalData:
    """Images to score a model on."""

    name: str
    """Of the data, as the user names it."""
    split: str
    """train, val, test or all."""
    dataset: ImageDataset
    num_train_images: int
    """Images among them that the model was trained on; 0 if there is none, or none is known."""


def open_for_training(
    ref: str, *, seed: int, reporter: Reporter, run: RunData | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Return training and validation images with the same classes.

    Without validation images a fifth is held out, see `hold_out`.

    Args:
        ref: the user's name of the dataset; empty means `digits`.
        seed: of the images that are held out.
        reporter: receives what was held out.
        run: the run that is continued, which holds out what it held out when it began.

    Raises:
        DataError: nothing is there, a split or a second class is missing, the classes do not match,
            or images of the continued run are gone.
    """
    data = open_dataset(ref, reporter)
    parts = data.list_parts()
    train: ImageDataset
    val: ImageDataset
    whole = _find_whole(parts)
    if whole is not None and run is not None:
        train, val = _continue_split(data.name, whole, run, reporter)
    elif whole is not None:
        train, val = _split_whole(data.name, whole, seed, reporter)
    elif "train" in parts and len(parts) > 1:
        # By name: the validation split may lack a class, and be numbered otherwise.
        train = parts["train"]
        val = relabel(parts.get("val", parts.get("test", train)), train.class_names)
        _note_test(data.name, parts, reporter)
    else:
        raise DataError(
            f"{data.name} has a {' and a '.join(parts)} split and no train split."
            if parts
            else f"{data.name} has no images.",
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


def _find_whole(parts: Mapping[str, ImageDataset]) -> ImageDataset | None:
    """Return the images that a run splits: those of unsplit data, or of a `train` alone."""
    return next(iter(parts.values())) if set(parts) in ({""}, {"train"}) else None


def _split_whole(
    name: str, whole: ImageDataset, seed: int, reporter: Reporter
) -> tuple[ImageDataset, ImageDataset]:
    """Hold out a fifth, which resembles no training image as far as that can be had."""
    groups = group_duplicates(whole, reporter)
    split = hold_out(whole, VAL_FRACTION, seed, None if groups is None else groups.near)
    if groups is not None and split.num_moved > len(split.val.labels):
        # Images of a fixed camera, X-rays, scans: hashes are of what all of them share.
        split = hold_out(whole, VAL_FRACTION, seed, groups.exact)
        reporter.warn(
            f"So many images of {name} resemble another that only equal ones were kept together. "
            "If they are copies, frames of a video or shots of one scene, split them by source "
            "into train/ and val/: else accuracies are too high."
        )
    sentences = [
        f"{name} has no validation set: {len(split.val.labels)} of {len(whole.labels)} images are "
        "held out, chosen by name."
    ]
    if split.num_moved:
        sentences.append(
            f"Of that fifth, {split.num_moved} stayed in training because of a near duplicate there."
        )
    if groups is None:
        sentences.append(
            f"Duplicates were not looked for among more than {MAX_IMAGES:,} images or "
            f"{MAX_BYTES // 2**30} GiB."
        )
    reporter.note(" ".join(sentences))
    return split.train, split.val


def _note_test(name: str, parts: Mapping[str, ImageDataset], reporter: Reporter) -> None:
    if "val" not in parts:
        reporter.note(
            f"{name} has no val split: its test split is validated on, and chooses the best epoch."
        )
    elif "test" in parts:
        reporter.note(
            f"The test split of {name} ({len(parts['test'].labels):,} images) is left out of "
            f"training: `deitctl eval {shlex.quote(name)} --split test --model MODEL` scores it."
        )


def _continue_split(
    name: str, whole: ImageDataset, run: RunData, reporter: Reporter
) -> tuple[ImageDataset, ImageDataset]:
    if run.rows is None:
        raise DataError(
            f"{run.folder} has no {SPLIT_FILE}, so which images of {name} it holds out is not known.",
            "Restore that file, or start a new run.",
        )
    split = apply_split(whole, run.rows)
    if split.missing:
        raise DataError(
            f"{name} lacks images that {run.folder} began with: {split.missing[0]} and "
            f"{len(split.missing) - 1} more.",
            "Put them back, or start a new run.",
        )
    if split.num_new:
        reporter.note(
            f"Images of {name} that are new since {run.folder} began are left out: {split.num_new}."
        )
    return split.train, split.val


def open_for_evaluation(ref: str, reporter: Reporter) -> ImageDataset:
    """Return the images to evaluate on, see `open_eval_split`."""
    return open_eval_split(ref, reporter=reporter).dataset


def open_eval_split(
    ref: str, split: str = "", *, run: RunData | None = None, reporter: Reporter
) -> EvalData:
    """Return the images to evaluate on.

    Args:
        ref: the user's name of the dataset; empty means the run's, or `digits`.
        split: train, val, test or all. Empty: `val`, or what the run held out, or `test`; `all` of
            unsplit data that no run has split; else `train`.
        run: the run that the model is of. Of its own data, wherever that lies now, `val` is what
            the run held out.
        reporter: receives what is scored if it was not asked for, and a warning where training
            images are among it.

    Raises:
        DataError: no such data, or it lacks the split.
    """
    data = open_dataset(ref or (run.ref if run is not None else BUILT_IN), reporter)
    parts = data.list_parts()
    if not parts:
        raise DataError(f"{data.name} has no images to evaluate on.")
    everything = join(list(parts.values()))
    held_out = None if run is None else _find_held_out(data, run)
    if held_out is not None:
        parts = {"train": held_out.train, "val": held_out.val}
    parts = {name: part for name, part in parts.items() if name and len(part.labels)}
    choices = {**parts, ALL: everything}
    if split and split not in choices:
        raise DataError(f"{data.name} has no {split} split.", f"It has: {', '.join(choices)}.")
    chosen = split or next(name for name in ("val", "test", "train", ALL) if name in choices)
    dataset, num_train_images = choices[chosen], 0
    if run is not None and (held_out is not None or _is_place_of(run, data.name)):
        if held_out is not None and chosen == "val":
            _note_held_out(data.name, held_out, run, reporter)
        if chosen in ("train", ALL) and "train" in parts:
            num_train_images = len(parts["train"].labels)
            reporter.warn(
                f"{num_train_images:,} of these {len(dataset.labels):,} images are training images "
                f"of {run.folder}: accuracies on them say nothing about new images."
            )
    return EvalData(data.name, chosen, dataset, num_train_images)


def _find_held_out(data: DatasetSplits, run: RunData) -> AppliedSplit | None:
    """Return the run's split of data; None if it is other data or has validation images."""
    whole = _find_whole(data.list_parts())
    if whole is None or run.rows is None:
        return None
    split = apply_split(whole, run.rows)
    found = 1 - len(split.missing) / max(1, len(run.rows.paths))
    # By its images too: data is moved, packed and copied to other machines.
    return split if _is_place_of(run, data.name) or found >= MIN_FOUND else None


def _is_place_of(run: RunData, ref: str) -> bool:
    """Whether the run found its data where `ref` is."""
    return ref == run.ref or os.path.realpath(ref) == os.path.realpath(run.ref)


def _note_held_out(name: str, split: AppliedSplit, run: RunData, reporter: Reporter) -> None:
    num_images = len(split.train.labels) + len(split.val.labels) + split.num_new
    sentences = [
        f"Scoring the {len(split.val.labels):,} of {num_images:,} images of {name} that "
        f"{run.folder} held out."
    ]
    if split.num_new:
        sentences.append(f"Left out because they are new since: {split.num_new:,}.")
    if split.missing:
        sentences.append(f"Gone since: {len(split.missing):,}.")
    reporter.note(" ".join(sentences))


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
    return DatasetSplits(name, *(splits.get(part) for part in ("train", "val", "test", "")))


def _open_splits(ref: str, reporter: Reporter) -> tuple[str, Mapping[str, ImageDataset]]:
    if ref == BUILT_IN and not Path(ref).is_dir():
        train, val = load_digits()
        return BUILT_IN, {"train": train, "val": val}
    path = Path(ref).expanduser()
    if not path.exists():
        name = shorten(path)
        raise DataError(f"There is no dataset {name!r}.", suggest_path(name, BUILT_IN) or KINDS)
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
    names = [name for choices in SPLIT_NAMES.values() for name in choices]
    splits = find_splits(name for name in names if _has_class_folders(path / name))
    if not splits:
        return {"": open_folder(path, reporter)}
    return {split: open_folder(path / name, reporter) for split, name in splits.items()}


def _has_class_folders(path: Path) -> bool:
    """Whether a folder is a split, and not a class that happens to be called `train`."""
    return path.is_dir() and any(
        entry.is_dir() and not is_hidden(entry.name) for entry in path.iterdir()
    )

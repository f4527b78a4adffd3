"""Which images a model is scored on: of its run's data those that it was not trained on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deitctl.data.dataset import ImageDataset, select
from deitctl.data.open import ALL, BUILT_IN, MIN_FOUND, open_dataset, open_eval_split
from deitctl.data.run_data import SPLIT_FILE, RunData, apply_split, read_run_data
from deitctl.data.splits import list_relative_paths
from deitctl.errors import DataError
from deitctl.events import Reporter, SilentReporter

EXPORT = "export"
"""Folder of a run that `deitctl export` writes to."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ScoredImages:
    """Images that models are scored on."""

    data: str
    """Where they are from, as the user or the run names it."""
    split: str
    """train, val, test or all; of data that has none, `val` is what a run held out."""
    dataset: ImageDataset
    train_masks: Mapping[str, Mask] = field(default_factory=dict)
    """Of each model that is a run's, which of the images it was trained on, [N]."""

    def count_train_images(self, model: str, indices: Iterable[int]) -> int | None:
        """Return how many of some images a model was trained on; None if that is not known."""
        mask = self.train_masks.get(model)
        return None if mask is None else int(mask[list(indices)].sum())


def describe_images(count: int, data: str, split: str, num_train_images: int | None) -> str:
    """Return which images were scored, in words: `70 images of flowers (val, held out of training)`.

    Args:
        count: of images.
        data: where they are from.
        split: train, val, test or all.
        num_train_images: how many of them the model was trained on; None: not known.
    """
    facts = [split]
    if num_train_images is not None:
        facts.append(
            f"{num_train_images:,} of them trained on"
            if num_train_images
            else "held out of training"
        )
    return f"{count:,} image{'s' * (count != 1)} of {data} ({', '.join(facts)})"


def is_run(ref: str) -> bool:
    """Whether a name is that of a run folder."""
    return bool(ref) and (Path(ref).expanduser() / "run.toml").is_file()


def find_run(model: str) -> RunData | None:
    """Return the run that a model is of: a run folder, a file in it, or an export of it.

    Raises:
        ConfigError: its run.toml is broken.
        DataError: its split.csv is.
    """
    path = Path(model).expanduser()
    if not model or not path.exists():
        return None
    if path.is_dir() and (run := read_run_data(path)) is not None:
        return run
    parent = path.resolve().parent
    # An export lies in RUN/export/, and may be a folder; a folder beside a run's files is none.
    if parent.name == EXPORT:
        return read_run_data(parent.parent)
    return None if path.is_dir() else read_run_data(parent)


def choose_images(
    data: str, models: Sequence[str], split: str = "", *, reporter: Reporter
) -> ScoredImages:
    """Choose the images that models are scored on, and say which they are.

    Args:
        data: data, or a run folder, whose data it stands for; empty: the data of the first model
            that is a run's, else `digits`.
        models: as the user names them.
        split: train, val, test or all. Empty: images that no model was trained on: the split `val`
            of the data, or what the run held out; training images only where there are no others.
        reporter: receives what is scored, and a warning where training images are among it.

    Raises:
        ConfigError: the run.toml of a run is broken.
        DataError: no such data or split, or the data of a run is not where it was.
    """
    runs = {model: run for model in models if (run := find_run(model)) is not None}
    owner = read_run_data(Path(data).expanduser()) if data else next(iter(runs.values()), None)
    if owner is not None:
        require_data(owner)
        data = owner.ref
    elif data:
        owner = next((run for run in runs.values() if is_data_of(run, data)), None)
    if not data:
        data = BUILT_IN
        reporter.note(f"No data named: using the built-in '{BUILT_IN}'.")
    opened = open_eval_split(data, split, run=owner, reporter=reporter)
    if owner is not None and not _is_same_place(data, owner.ref):
        reporter.note(
            f"{data} has the images of {owner.folder}, which began with {owner.ref}: its "
            f"{SPLIT_FILE} names those that it held out."
        )
    masks = _find_masks(opened.dataset, data, opened.split, runs, reporter)
    images = ScoredImages(data, opened.split, opened.dataset, masks)
    if not split:
        images = _leave_out_train_images(images, reporter)
    for model, mask in images.train_masks.items():
        # Of the owner `open_eval_split` has warned.
        if mask.any() and (owner is None or runs[model].folder != owner.folder):
            reporter.warn(
                f"{mask.sum()} of these {len(mask)} images are training images of {model}: "
                "accuracies on them say nothing about new images."
            )
    return images


def _find_masks(
    dataset: ImageDataset,
    data: str,
    split: str,
    runs: Mapping[str, RunData],
    reporter: Reporter,
) -> dict[str, Mask]:
    """Return which images each model was trained on; a model of which it is not known has none."""
    masks = {}
    for model, run in runs.items():
        mask = find_train_images(dataset, data, split, run)
        if mask is not None:
            masks[model] = mask
        elif is_data_of(run, data):
            reporter.warn(
                f"{run.folder} has no {SPLIT_FILE}, which would say what it held out: images that "
                "it was trained on may be among these."
            )
    return masks


def _leave_out_train_images(images: ScoredImages, reporter: Reporter) -> ScoredImages:
    """Keep the images that no model was trained on; all of them where there are no such."""
    masks = images.train_masks
    if not masks:
        return images
    trained_on = np.any(list(masks.values()), axis=0)
    if not trained_on.any() or trained_on.all():
        return images
    reporter.note(
        f"{trained_on.sum()} of these {len(trained_on)} images are left out, because "
        f"{' or '.join(m for m in masks if masks[m].any())} was trained on them."
    )
    kept = np.flatnonzero(~trained_on)
    return ScoredImages(
        images.data,
        "val" if images.split == ALL else images.split,
        select(images.dataset, kept),
        {model: mask[kept] for model, mask in masks.items()},
    )


def require_data(run: RunData) -> None:
    """Raise `DataError` unless the data of a run is where it was."""
    ref = run.ref or BUILT_IN
    if ref != BUILT_IN and not Path(ref).expanduser().exists():
        raise DataError(
            f"{run.folder} was trained on {ref}, which is not there.",
            f"Say where it is now: deitctl eval DATA --model {shlex.quote(str(run.folder))}",
        )


def is_data_of(run: RunData, data: str) -> bool:
    """Whether data is a run's: it lies where the run has it, or has the images of its split.csv."""
    if _is_same_place(data, run.ref):
        return True
    if run.rows is None:
        return False
    parts = open_dataset(data, SilentReporter()).list_parts()
    if len(parts) != 1:
        return False
    missing = apply_split(next(iter(parts.values())), run.rows).missing
    return len(run.rows.paths) - len(missing) >= MIN_FOUND * len(run.rows.paths)


def find_train_images(dataset: ImageDataset, data: str, split: str, run: RunData) -> Mask | None:
    """Return which images of a dataset a run was trained on, [N].

    Args:
        dataset: the images.
        data: the data that they are from, as the user names it.
        split: which of its splits they are.
        run: the run.

    Returns:
        None if that is not known: of images that are nowhere near the run's, or if the run does not
        say which part of this data it was trained on.
    """
    is_own = is_data_of(run, data)
    if run.rows is not None and is_own:
        rows = zip(run.rows.paths, run.rows.labels, run.rows.splits, strict=True)
        trained_on = {(path, label) for path, label, part in rows if part == "train"}
        paths, labels = list_relative_paths(dataset), dataset.labels.tolist()
        keys = zip(paths, (dataset.class_names[label] for label in labels), strict=True)
        return np.fromiter((key in trained_on for key in keys), np.bool_, len(paths))
    train = open_train_images(run)
    if train is None:
        return None
    if is_own and split in ("val", "test"):
        return np.zeros(len(dataset.labels), np.bool_)  # the data itself says so
    mask = find_files(dataset, train)
    return mask if is_own or mask.any() else None


def find_files(dataset: ImageDataset, others: ImageDataset) -> Mask:
    """Return which images of a dataset are files that another one has too, [N]."""
    resolve = cache(os.path.realpath)  # of their few folders

    def resolve_folder(name: str) -> str:
        folder, file = os.path.split(os.path.expanduser(name))
        return os.path.join(resolve(folder), file)

    index_of: dict[str, list[int]] = {}
    for index in range(len(dataset.labels)):
        name = dataset.name(index)
        # A link to a file is resolved on this side alone: the other may have millions.
        for real_name in {resolve_folder(name), os.path.realpath(os.path.expanduser(name))}:
            index_of.setdefault(real_name, []).append(index)
    mask = np.zeros(len(dataset.labels), np.bool_)
    for index in range(len(others.labels)):
        mask[index_of.get(resolve_folder(others.name(index)), [])] = True
    return mask


def open_train_images(run: RunData) -> ImageDataset | None:
    """Return the images that a run was trained on; None if they are gone, or it does not say."""
    try:
        parts = open_dataset(run.ref, SilentReporter()).list_parts()
    except DataError:
        return None
    if run.rows is not None and len(parts) == 1:
        return apply_split(next(iter(parts.values())), run.rows).train
    return parts.get("train") if len(parts) > 1 else None


def _is_same_place(data: str, other: str) -> bool:
    real, real_other = (os.path.realpath(os.path.expanduser(d or BUILT_IN)) for d in (data, other))
    return real == real_other

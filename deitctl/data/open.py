"""Opening a dataset by the user's reference, with its splits, and the images of it to evaluate on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deitctl.config import TaskChoice
from deitctl.data.band_image import has_bands
from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.file_types import reading_arrays
from deitctl.data.labels import describe_labels
from deitctl.data.named.names import is_named
from deitctl.data.range_survey import settle_range
from deitctl.data.readers.read_options import AUTO, ReadOptions
from deitctl.data.readers.table import is_table
from deitctl.data.readers.tar_dataset import TarDataset
from deitctl.data.run_data import RunData
from deitctl.data.run_match import AppliedSplit, Mask, RunMatch, match_run
from deitctl.data.several_labels import settle_labels
from deitctl.data.sources import BUILT_IN, open_splits
from deitctl.data.splits import ALL
from deitctl.data.spot_check import require_images
from deitctl.data.subsets import join
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.models.model_config import ValueRange
from deitctl.settings import convert

FOLD = "fold"
"""What a run of `--folds` holds out of data that has a val split of its own."""


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

    def with_value_range(
        self, value_range: str | ValueRange, say: Callable[[str], None]
    ) -> DatasetSplits:
        """Return the same data, its images of more than 8 bits scaled by one range; see `settle_range`."""
        parts = self.list_parts()
        chosen = settle_range(list(parts.values()), value_range, say)
        scaled = {name: part.with_value_range(chosen) for name, part in parts.items()}
        return DatasetSplits(self.name, *(scaled.get(p) for p in ("train", "val", "test", "")))


@dataclass(frozen=True, eq=False)
class EvalData:
    """Images to score a model on."""

    name: str
    """Of the data, as the user names it."""
    split: str
    """train, val, test or all."""
    dataset: ImageDataset
    parts: tuple[str, ...]
    """The parts of the data that the images are of; the empty name is that of unsplit data."""
    indices: NDArray[np.int64] | None = None
    """Of the images in that part; None: they are all of it."""
    num_train_images: int | None = None
    """Images among them that the model was trained on; None: not known."""

    def find_train_images(self, match: RunMatch) -> Mask | None:
        """Return which of the images a run was trained on, [N]; None if that is not known."""
        if match.train_masks is None:
            return None
        mask = np.concatenate([match.train_masks[part] for part in self.parts])
        return mask if self.indices is None else mask[self.indices]


def open_for_evaluation(ref: str, reporter: Reporter) -> ImageDataset:
    """Return the images to evaluate on, see `open_eval_split`."""
    return open_eval_split(ref, reporter=reporter).dataset


def open_eval_split(
    ref: str,
    split: str = "",
    *,
    run: RunData | None = None,
    image_folder: str = "",
    reporter: Reporter,
) -> EvalData:
    """Return the images to evaluate on.

    Args:
        ref: the user's name of the dataset; empty means the run's, or `digits`.
        split: train, val, test or all. Empty: `val`, or what the run held out, or `test`; `all` of
            unsplit data that no run has split; else `train`.
        run: the run that the model is of. Of its own data, wherever that lies now, `val` is what
            the run held out.
        image_folder: that the paths of a table are below; empty: where the table leads.
        reporter: receives what is scored unless a split is named, and a warning where training
            images are among it.

    Raises:
        DataError: no such data, or it lacks the split.
    """
    if not ref and run is not None:
        ref, image_folder = run.ref, image_folder or run.image_folder
    data = open_dataset(ref or BUILT_IN, reporter, image_folder)
    match = None if run is None else match_run(data.name, data.list_parts(), run)
    return choose_eval_split(data, split, match, reporter)


def choose_eval_split(
    data: DatasetSplits, split: str, match: RunMatch | None, reporter: Reporter
) -> EvalData:
    """Return the images of opened data to evaluate on, see `open_eval_split`."""
    parts = data.list_parts()
    if not parts:
        raise DataError(f"{data.name} has no images to evaluate on.")
    choices = {
        name: EvalData(data.name, name, part, (name,)) for name, part in parts.items() if name
    }
    held_out = None if match is None else match.split
    if held_out is not None:
        part = ("",) if "" in parts else ("train",)
        for name, subset in (("train", held_out.train), ("val", held_out.val)):
            if name == "val" and "val" in parts:
                name = FOLD  # the data has a val split of its own, which stays that
            choices.pop(name, None)
            if len(subset.labels):
                choices[name] = EvalData(data.name, name, subset, part, subset.indices)
    choices[ALL] = EvalData(data.name, ALL, join(list(parts.values())), tuple(parts))
    if split and split not in choices:
        raise DataError(f"{data.name} has no {split} split.", f"It has: {', '.join(choices)}.")
    chosen = choices[
        split or next(name for name in (FOLD, "val", "test", "train", ALL) if name in choices)
    ]
    require_images(chosen.dataset, chosen.split.removeprefix(ALL), data.name, reporter)
    if match is None:
        return chosen
    mask = chosen.find_train_images(match)
    if mask is None and match.is_same_place and "train" in parts and chosen.split in ("train", ALL):
        mask = np.zeros(len(chosen.dataset.labels), np.bool_)
        mask[: len(parts["train"].labels)] = True  # the first part
    num_train_images = None if mask is None else int(mask.sum())
    if held_out is not None and chosen.split == (FOLD if "val" in parts else "val"):
        _note_held_out(data.name, held_out, match.run, reporter)
    if match.is_own and num_train_images and (split or chosen.split in ("train", ALL)):
        reporter.warn(
            f"{num_train_images:,} of these {len(chosen.dataset.labels):,} images are training "
            f"images of {match.run.folder}: accuracies on them say nothing about new images."
        )
    return replace(chosen, num_train_images=num_train_images)


def _note_held_out(name: str, split: AppliedSplit, run: RunData, reporter: Reporter) -> None:
    num_images = len(split.train.labels) + len(split.val.labels) + split.num_new
    sentences = [
        f"Scoring the {len(split.val.labels):,} of {num_images:,} images of {name} that "
        f"{run.folder} held out."
    ]
    if split.num_new and not run.uses_part:
        sentences.append(f"Left out because they are new since: {split.num_new:,}.")
    if split.missing:
        sentences.append(f"Gone since: {len(split.missing):,}.")
    reporter.note(" ".join(sentences))


def open_dataset(
    ref: str,
    reporter: Reporter,
    image_folder: str = "",
    *,
    task: str = AUTO,
    group_by: str = "",
    with_missing: bool = False,
    in_chans: int = 0,
) -> DatasetSplits:
    """Open a folder, tar, shards, table or `digits`, the default.

    Args:
        ref: the user's name of the dataset.
        reporter: receives what was decided, and what is passed over.
        image_folder: that the paths of a table are below; empty: its own folder.
        task: whether an image has one label or several; auto: as the data has them.
        group_by: column of a table that names the group of each image; others ignore it here.
        with_missing: whether a table's images that are not there stay in it, to be listed.
        in_chans: channels of the model; where they are not 1 or 3, images are read by their bands.

    Raises:
        DataError: it is none of them, or empty, or has no paths to be below `image_folder`.
        ConfigError: there is no such task.
    """
    options = ReadOptions(image_folder, convert(task, TaskChoice, "task"), group_by, with_missing)
    bands = in_chans if has_bands(in_chans) else 0
    with reading_arrays(bool(bands)):
        name, splits = open_splits(ref or BUILT_IN, reporter, options)
    for dataset in splits.values():
        for class_name in dataset.class_names:
            try:
                class_name.encode()
            except UnicodeEncodeError as error:  # config.json could not hold it
                raise DataError(
                    f"{name} has the class {class_name!r}, which is not UTF-8.",
                    "Rename the class.",
                ) from error
    is_tree = not (is_named(name) or is_table(expand_home(name))) and all(
        isinstance(part, FileDataset) or (isinstance(part, TarDataset) and part.is_tree)
        for part in splits.values()
    )
    splits = settle_labels(name, splits, options.task, reporter, is_tree=is_tree)
    if bands:
        splits = {part: dataset.with_bands(bands) for part, dataset in splits.items()}
    first = next(iter(splits.values()), None)
    if task == AUTO and isinstance(first, TarDataset) and first.is_multilabel:
        reporter.note(f"{name}: task multilabel, as {describe_labels(first.labels)}.")
    return DatasetSplits(name, *(splits.get(part) for part in ("train", "val", "test", "")))

"""Opening a dataset by the user's reference, with its splits.

A folder, tar, pack, table or the built-in digits.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deitctl.config import TaskChoice, TrainConfig
from deitctl.data.archives import make_refusal
from deitctl.data.band_image import has_bands
from deitctl.data.dataset import FileDataset, ImageDataset, describe_labels, join
from deitctl.data.file_types import reading_arrays
from deitctl.data.folds import FoldedData, split_folds
from deitctl.data.fraction import take_fraction
from deitctl.data.group_names import compare_groups
from deitctl.data.held_out import hold_out_fifth
from deitctl.data.layout import match_split, name_some
from deitctl.data.range_survey import settle_range
from deitctl.data.readers.digits import load_digits
from deitctl.data.readers.folder import open_folders
from deitctl.data.readers.pack import SUFFIX, PackDataset, open_pack
from deitctl.data.readers.parquet_table import open_shards, refuse_image_folder
from deitctl.data.readers.read_options import AUTO, ReadOptions
from deitctl.data.readers.shards import find_shards
from deitctl.data.readers.table import is_table, name_rivals, open_table
from deitctl.data.readers.tar import TarDataset, open_tar
from deitctl.data.readers.torch_dataset import PREFIX
from deitctl.data.readers.unlabeled import open_unlabeled
from deitctl.data.run_data import SPLIT_FILE, RunData
from deitctl.data.run_match import AppliedSplit, Mask, RunMatch, apply_split, match_run
from deitctl.data.several_labels import drop_unused, require_same_kind, settle_labels
from deitctl.data.splits import ALL, relabel
from deitctl.data.spot_check import require_images
from deitctl.data.unlabeled import (
    REST,
    add_unlabeled,
    leave_duplicates_out,
    require_other_data,
    take_rest,
)
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.models.model_config import ValueRange
from deitctl.paths import shorten, suggest_path
from deitctl.settings import convert

BUILT_IN = "digits"
FOLD = "fold"
"""What a run of `--folds` holds out of data that has a val split of its own."""
KINDS = (
    "DATA is a folder, a .tar, a .pack, a table (.csv, .tsv, .txt, .jsonl, .parquet), or 'digits'."
)


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


@dataclass(frozen=True)
class Source:
    """What names the images of a training, and says how they are read and split."""

    ref: str
    """The user's name of the data; empty means `digits`."""
    image_folder: str = ""
    """That the paths of a table are below; empty: its own folder."""
    value_range: str | ValueRange = "auto"
    """Of images of more than 8 bits, see `settle_range`."""
    task: TaskChoice = AUTO
    """Whether an image has one label or several; auto: as the data has them."""
    group_by: str = ""
    """What says which images belong on one side of a split; empty: nothing does."""
    split_seed: int = 0
    """Of the images that are held out."""
    folds: int = 0
    """Parts that the images are split into, each held out by a run of its own; 0: a fifth is held out."""
    fold: int = 0
    """Which of these parts is held out, from 1."""
    fraction: float = 1.0
    """Share of the training images that is used, see `take_fraction`."""
    unlabelled: str = ""
    """Training images without labels, see `open_unlabeled`; `rest`: those that the fraction leaves out."""
    in_chans: int = 0
    """Channels of the model; images are read as RGB for 1, 3 and 0, else by their bands."""

    @classmethod
    def of(cls, config: TrainConfig) -> Source:
        """Return the source of a run's images."""
        return cls(
            config.data,
            config.image_folder,
            config.value_range,
            config.task,
            config.group_by,
            config.split_seed,
            config.folds,
            config.fold,
            config.fraction,
            config.distill.unlabelled if config.distill else "",
            config.recipe.in_chans,
        )


def open_for_training(
    source: Source, *, reporter: Reporter, run: RunData | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Return training and validation images with the same classes.

    Without validation images a fifth is held out, see `hold_out`.

    Args:
        source: the data, and how it is read.
        reporter: receives what was held out.
        run: the run that is continued, which holds out what it held out when it began.

    Raises:
        DataError: nothing is there, a split or a second class is missing, the classes do not match,
            or images of the continued run are gone.
    """
    _require_rest(source)
    data = _open_to_train(source, reporter)
    parts = data.list_parts()
    train: ImageDataset
    val: ImageDataset
    unsplit = _find_unsplit(parts)
    if run is not None and run.rows is not None and run.rows.is_held_out:
        unsplit = parts.get("", parts.get("train"))  # whatever was put beside it since
    goes_on = unsplit is not None and run is not None
    if unsplit is not None and run is not None:
        train, val = _continue_split(data.name, unsplit, run, reporter)
    elif source.folds and parts.keys() & {"", "train"}:
        train, val = _split_folds(data, source, reporter).split(source.fold or 1)
    elif unsplit is not None:
        train, val = hold_out_fifth(
            data.name, unsplit, source.split_seed, reporter, source.group_by
        )
    elif "train" in parts and len(parts) > 1:
        # By name: the validation split may lack a class, and be numbered otherwise.
        train = parts["train"]
        val = relabel(parts.get("val", parts.get("test", train)), train.class_names)
        require_same_kind(data.name, train, val, source.task)
        _note_test(data.name, parts, reporter)
        if source.group_by:
            compare_groups(data.name, train, val, source.group_by, reporter)
    else:
        raise DataError(
            f"{data.name} has a {' and a '.join(parts)} split and no train split."
            if parts
            else f"{data.name} has no images.",
            "Training needs train/ and val/, each of class folders, "
            "or one folder of class folders. "
            f"`deitctl check {data.name}` lists what is there.",
        )
    _require_classes(data.name, source, train, val)
    all_train = train
    if not goes_on and source.fraction != 1:  # a run that goes on lists the images that it uses
        train = take_fraction(train, source.fraction, source.split_seed)
        reporter.note(
            f"{data.name}: {len(train.labels):,} of {len(all_train.labels):,} training images "
            f"{'have labels' if source.unlabelled == REST else 'are used'}, fraction {source.fraction:g} of "
            f"every class{'; the teacher alone labels the others' if source.unlabelled == REST else ''}."
        )
    if source.unlabelled == REST and goes_on and unsplit is not None:
        return add_unlabeled(train, take_rest(unsplit, train, val)), val
    if source.unlabelled == REST:
        return add_unlabeled(train, take_rest(all_train, train)), val
    if source.unlabelled:
        compared = (train, val)
        if source.folds and parts.keys() & {"", "train"}:  # as `open_folds`: each is validated on
            folded = parts[""] if "" in parts else parts["train"]
            compared = (folded, folded)
        train = add_unlabeled(train, _open_unlabeled(source, data.name, *compared, reporter))
    return train, val


def _require_rest(source: Source) -> None:
    if source.unlabelled == REST and source.fraction == 1:
        raise DataError(
            f"--unlabelled {REST} is the training images that --fraction leaves out, and it leaves out none.",
            "Add --fraction 0.1 for example, or name a folder.",
        )


def _open_unlabeled(
    source: Source, name: str, train: ImageDataset, val: ImageDataset, reporter: Reporter
) -> ImageDataset:
    """Return the images without labels of a source, none of which is a training or validation image."""
    ref = source.unlabelled
    require_other_data(ref, name)

    def open_labeled(ref: str) -> ImageDataset:
        data = open_dataset(ref, reporter, in_chans=source.in_chans)
        return join(list(data.list_parts().values()))

    with reading_arrays(has_bands(source.in_chans)):
        images = open_unlabeled(ref, open_labeled, reporter)
    images = leave_duplicates_out(images, train, val, ref, reporter)
    require_images(images, "unlabelled", ref, reporter)
    reporter.note(
        f"{len(train.labels):,} training images of {name} have labels, {len(images.labels):,} of {ref} have "
        "none: the teacher alone labels these. Copies of training or validation images are left out "
        "where their files are equal; copies that were encoded anew stay."
    )
    return images


def open_folds(source: Source, *, reporter: Reporter) -> FoldedData:
    """Return the images of all folds of a source; raise `DataError` as `open_for_training`."""
    _require_rest(source)
    data = _open_to_train(source, reporter)
    if not data.list_parts().keys() & {"", "train"}:
        open_for_training(replace(source, folds=0), reporter=reporter)  # says what is missing
    folded = _split_folds(data, source, reporter)
    _require_classes(data.name, source, *folded.split(1))
    if source.fraction != 1:
        reporter.note(
            f"{data.name}: of the training images of each fold, fraction {source.fraction:g} of every "
            "class is used."
        )
    folded = replace(folded, fraction=source.fraction, seed=source.split_seed)
    if source.unlabelled == REST:
        return replace(folded, uses_rest=True)
    if not source.unlabelled:
        return folded
    images = folded.images  # each is validated on
    return replace(folded, unlabeled=_open_unlabeled(source, folded.name, images, images, reporter))


def _require_classes(name: str, source: Source, train: ImageDataset, val: ImageDataset) -> None:
    """Raise `DataError` without a second class, or without validation images."""
    classes = len(train.class_names)
    if classes >= 2 and len(val.labels):
        return
    path = expand_home(source.ref)
    rivals = name_rivals(path) if classes < 2 and is_table(path) else ""
    raise DataError(
        f"{name} has {len(train.labels)} training and {len(val.labels)} validation images in {classes} "
        f"class{'es' if classes != 1 else ''}.",
        rivals or "Training needs at least two classes of at least two images.",
    )


def _open_to_train(source: Source, reporter: Reporter) -> DatasetSplits:
    data = open_dataset(
        source.ref,
        reporter,
        source.image_folder,
        task=source.task,
        group_by=source.group_by,
        in_chans=source.in_chans,
    ).with_value_range(source.value_range, reporter.note)
    for name, part in data.list_parts().items():
        if name != "test":
            require_images(part, name, data.name, reporter)
    return _leave_unused_out(data, reporter)


def _leave_unused_out(data: DatasetSplits, reporter: Reporter) -> DatasetSplits:
    """Return data whose training images have none of the classes that nothing can be learned of."""
    part = data.train if data.unsplit is None else data.unsplit
    if part is None or not len(part.labels):
        return data
    part, unused = drop_unused(part)
    if not unused:
        return data
    reporter.note(f"{data.name}: no training image has {name_some(map(repr, unused))}, left out.")
    return replace(data, train=part) if data.unsplit is None else replace(data, unsplit=part)


def _split_folds(data: DatasetSplits, source: Source, reporter: Reporter) -> FoldedData:
    """Divide the training images into folds; those of other parts are in none."""
    parts = data.list_parts()
    others = [name for name in ("val", "test") if name in parts]
    if others:
        sizes = " and ".join(f"{name} ({len(parts[name].labels):,} images)" for name in others)
        reporter.note(
            f"The folds of {data.name} are of its training images alone, without {sizes}: "
            f"`deitctl eval {shlex.quote(data.name)} --split {others[0]} --model RUN` scores them."
        )
    return split_folds(
        data.name,
        parts[""] if "" in parts else parts["train"],
        source.folds,
        seed=source.split_seed,
        group_by=source.group_by,
        reporter=reporter,
    )


def _find_unsplit(parts: Mapping[str, ImageDataset]) -> ImageDataset | None:
    """Return the images that a run splits: those of unsplit data, or of a `train` alone."""
    return next(iter(parts.values())) if set(parts) in ({""}, {"train"}) else None


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
    name: str, unsplit: ImageDataset, run: RunData, reporter: Reporter
) -> tuple[ImageDataset, ImageDataset]:
    if run.rows is None:
        raise DataError(
            f"{run.folder} has no {SPLIT_FILE}, so which images of {name} it holds out is not known.",
            "Restore that file, or start a new run.",
        )
    split = apply_split(unsplit, run, name)
    for paths, change in (
        (split.missing, "lacks images that {} began with, or has others in their place"),
        (split.relabeled, "has images with other labels than when {} began"),
    ):
        if paths:
            raise DataError(
                f"{name} {change.format(run.folder)}: {paths[0]} and {len(paths) - 1} more.",
                "Put them back, or start a new run.",
            )
    if split.num_new and not run.uses_part:
        reporter.note(
            f"Images of {name} that are new since {run.folder} began are left out: {split.num_new}."
        )
    return split.train, split.val


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
    """Open a folder, tar, pack, table or `digits`, the default.

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
        name, splits = _open_splits(ref or BUILT_IN, reporter, options)
    for dataset in splits.values():
        for class_name in dataset.class_names:
            try:
                class_name.encode()
            except UnicodeEncodeError as error:  # config.json could not hold it
                raise DataError(
                    f"{name} has the class {class_name!r}, which is not UTF-8.",
                    "Rename the class.",
                ) from error
    is_tree = not is_table(expand_home(name)) and all(
        isinstance(part, FileDataset | TarDataset) for part in splits.values()
    )
    splits = settle_labels(name, splits, options.task, reporter, is_tree=is_tree)
    if bands:
        splits = {part: dataset.with_bands(bands) for part, dataset in splits.items()}
    first = next(iter(splits.values()), None)
    if task == AUTO and isinstance(first, PackDataset) and first.is_multilabel:
        reporter.note(f"{name}: task multilabel, as {describe_labels(first.labels)}.")
    return DatasetSplits(name, *(splits.get(part) for part in ("train", "val", "test", "")))


def _open_splits(
    ref: str, reporter: Reporter, options: ReadOptions
) -> tuple[str, Mapping[str, ImageDataset]]:
    if ref.startswith(PREFIX):
        raise DataError(
            f"The data of this run is {ref.removeprefix(PREFIX)}, a data set of a program's.",
            "That program passes it again: deitctl.train(data, resume=RUN).",
        )
    path = expand_home(ref)
    if options.image_folder and not is_table(path):
        refuse_image_folder(path)
    if ref == BUILT_IN and not Path(ref).is_dir():
        train, val = load_digits()
        return BUILT_IN, {"train": train, "val": val}
    if not path.exists():
        name = shorten(path)
        raise DataError(f"There is no dataset {name!r}.", suggest_path(name, BUILT_IN) or KINDS)
    if path.is_dir():
        return str(path), _open_folder(path, reporter, options)
    if not path.is_file():  # reading a pipe would block, reading a device never end
        raise DataError(
            f"{ref} is a pipe, a device or a socket, not a dataset.", "Write it to a file first."
        )
    if path.suffix.lower() == ".tar":
        return str(path), open_tar(path, reporter)
    if path.suffix == SUFFIX:
        return str(path), open_pack(path)
    if is_table(path):
        return str(path), open_table(path, reporter, options)
    raise make_refusal(path, KINDS)


def _open_folder(
    path: Path, reporter: Reporter, options: ReadOptions
) -> Mapping[str, ImageDataset]:
    """Open a folder of Parquet files, else of images."""
    if shards := find_shards(path):
        return open_shards(path, shards, reporter, options)
    try:
        return open_folders(path, reporter)
    except DataError as error:
        tables = _find_tables(path)
        if not tables:
            raise
        one = len(tables) == 1
        raise DataError(
            error.message,
            f"If {name_some(str(table.relative_to(path)) for table in tables)} "
            f"{'says' if one else 'say'} which class each image has, DATA is {tables[0]}"
            f"{'' if one else ', or a table of all of them with a column split'}; --images FOLDER "
            "names the folder of its images where that is another.",
        ) from error


def _find_tables(folder: Path) -> list[Path]:
    """Return the tables in a folder, and the hub's in its parts; that of training images first."""
    tables = [file for file in folder.glob("*.*") if file.is_file() and is_table(file)]
    # not the names of all files: those may be a million images
    parts = [part for part in folder.iterdir() if match_split(part.name)]
    hub = [part / f"metadata{suffix}" for part in parts for suffix in (".csv", ".jsonl")]
    tables += [file for file in hub if file.is_file()]
    order = {"train": 0, None: 1, "val": 2, "test": 3}

    def make_key(table: Path) -> tuple[bool, int, Path]:
        name = table.stem if table.parent == folder else table.parent.name
        return table.suffix.lower() == ".txt", order[match_split(name)], table

    return sorted(tables, key=make_key)

"""Training and validation images of a run: opened, split, and what is left out of them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace

from deitctl.config import TaskChoice, TrainConfig
from deitctl.data.band_image import has_bands
from deitctl.data.dataset import ImageDataset
from deitctl.data.extra import (
    add_extra,
    choose_extra,
    describe_extra,
    require_other_source,
    settle_weights,
)
from deitctl.data.file_types import reading_arrays
from deitctl.data.folds import FoldedData, split_folds
from deitctl.data.fraction import take_fraction
from deitctl.data.group_names import compare_groups
from deitctl.data.held_out import hold_out_fifth
from deitctl.data.layout import name_some
from deitctl.data.open import DatasetSplits, open_dataset
from deitctl.data.open_once import open_once
from deitctl.data.readers.read_options import AUTO
from deitctl.data.readers.table import is_table, name_rivals
from deitctl.data.readers.unlabeled import open_unlabeled
from deitctl.data.run_data import SPLIT_FILE, RunData
from deitctl.data.run_match import apply_split
from deitctl.data.several_labels import drop_unused, require_same_kind
from deitctl.data.splits import relabel
from deitctl.data.spot_check import require_images
from deitctl.data.stores.store_settings import reading_stores
from deitctl.data.subsets import join
from deitctl.data.unlabeled import (
    REST,
    add_unlabeled,
    leave_duplicates_out,
    require_other_data,
    take_rest,
)
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.models.model_config import ValueRange


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
    extra_data: tuple[str, ...] = ()
    """Other sources of training images, see `choose_extra`."""
    extra_weight: tuple[float, ...] = ()
    """How many times the images of each come in an epoch; empty: once."""
    cache_dir: str = ""
    """Folder of the cache, see `reading_stores`."""
    cache_size: str = ""
    """Of the cache, see `reading_stores`."""
    has_teacher: bool = False
    """Whether the images are fingerprinted, as targets of theirs are cached."""

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
            extra_data=config.extra_data,
            extra_weight=config.extra_weight,
            cache_dir=config.cache_dir,
            cache_size=config.cache_size,
            has_teacher=config.distill is not None,
        )


def open_for_training(
    source: Source,
    *,
    reporter: Reporter,
    run: RunData | None = None,
    world: World = SINGLE_PROCESS,
) -> tuple[ImageDataset, ImageDataset]:
    """Return training and validation images with the same classes; collective.

    Without validation images a fifth is held out, see `hold_out`.

    Args:
        source: the data, and how it is read.
        reporter: receives what was held out.
        run: the run that is continued, which holds out what it held out when it began.
        world: the processes that train together, of which the main one opens the data.

    Raises:
        DataError: nothing is there, a split or a second class is missing, the classes do not match,
            or images of the continued run are gone.
    """
    return open_once(lambda: _open_for_training(source, reporter, run), world, list)


def _open_for_training(
    source: Source, reporter: Reporter, run: RunData | None
) -> tuple[ImageDataset, ImageDataset]:
    _require_rest(source)
    data = _open_to_train(source, reporter)
    parts = data.list_parts()
    unsplit = _find_unsplit(parts)
    if run is not None and run.rows is not None and run.rows.is_held_out:
        unsplit = parts.get("", parts.get("train"))  # whatever was put beside it since
    if unsplit is not None and run is not None:
        train, val = _continue_split(data.name, unsplit, run, reporter)
        _require_classes(data.name, source, train, val)
        # All that the run does not use: its rows list what its fraction was.
        rest = take_rest(unsplit, train, val) if source.unlabelled == REST else None
    else:
        all_train, val = _split(data, unsplit, source, reporter)
        _require_classes(data.name, source, all_train, val)
        train = _take_fraction(data.name, all_train, source, reporter)
        rest = take_rest(all_train, train) if source.unlabelled == REST else None
    return _add_others(data, source, train, val, rest, reporter), val


def _split(
    data: DatasetSplits, unsplit: ImageDataset | None, source: Source, reporter: Reporter
) -> tuple[ImageDataset, ImageDataset]:
    """Return the training and validation images of a run that begins; raise `DataError` where there are none."""
    parts = data.list_parts()
    if source.folds and parts.keys() & {"", "train"}:
        return _split_folds(data, source, reporter).split(source.fold or 1)
    if unsplit is not None:
        return hold_out_fifth(data.name, unsplit, source.split_seed, reporter, source.group_by)
    if "train" not in parts or len(parts) == 1:
        raise DataError(
            f"{data.name} has a {' and a '.join(parts)} split and no train split."
            if parts
            else f"{data.name} has no images.",
            "Training needs train/ and val/, each of class folders, "
            "or one folder of class folders. "
            f"`deitctl check {data.name}` lists what is there.",
        )
    # By name: the validation split may lack a class, and be numbered otherwise.
    train = parts["train"]
    val = relabel(parts.get("val", parts.get("test", train)), train.class_names)
    require_same_kind(data.name, train, val, source.task)
    _note_test(data.name, parts, reporter)
    if source.group_by:
        compare_groups(data.name, train, val, source.group_by, reporter)
    return train, val


def _take_fraction(
    name: str, all_train: ImageDataset, source: Source, reporter: Reporter
) -> ImageDataset:
    """Return the fraction of the training images that has labels, of all a source's."""
    if source.fraction == 1:
        return all_train
    train = take_fraction(all_train, source.fraction, source.split_seed)
    reporter.note(
        f"{name}: {len(train.labels):,} of {len(all_train.labels):,} training images "
        f"{'have labels' if source.unlabelled == REST else 'are used'}, fraction {source.fraction:g} of "
        f"every class{'; the teacher alone labels the others' if source.unlabelled == REST else ''}."
    )
    return train


def _add_others(
    data: DatasetSplits,
    source: Source,
    train: ImageDataset,
    val: ImageDataset,
    rest: ImageDataset | None,
    reporter: Reporter,
) -> ImageDataset:
    """Return the training images with those of other sources, then those without labels.

    Args:
        data: that both were taken of.
        source: names the others.
        train: training images.
        val: validation images.
        rest: the training images without labels, if they are what a fraction leaves out.
        reporter: receives what was added.
    """
    compared, parts = (train, val), data.list_parts()
    if source.folds and parts.keys() & {"", "train"}:  # as `open_folds`: each is validated on
        folded = parts[""] if "" in parts else parts["train"]
        compared = (folded, folded)
    extra = _open_extra(source, data.name, train, compared[1], reporter)
    all_labeled = add_extra(train, extra, source.extra_weight)
    if rest is not None:
        return add_unlabeled(all_labeled, rest)
    if not source.unlabelled:
        return all_labeled
    labeled = add_extra(compared[0], extra, ())
    validated = labeled if compared[0] is compared[1] else val
    return add_unlabeled(
        all_labeled, _open_unlabeled(source, data.name, labeled, validated, reporter)
    )


def _open_extra(
    source: Source, name: str, train: ImageDataset, val: ImageDataset, reporter: Reporter
) -> tuple[ImageDataset, ...]:
    """Return the training images of each source beside the data, none of which is a validation image."""
    extra = []
    weights = source.extra_weight or (1.0,) * len(source.extra_data)
    for ref in source.extra_data:
        require_other_source(ref, name)
        with reading_stores(source.cache_dir, source.cache_size, reporter):
            data = open_dataset(ref, reporter, task=source.task, in_chans=source.in_chans)
        images = choose_extra(data, ref, train, val, reporter)
        require_images(images, "train", ref, reporter)
        extra.append(images)
    settled = settle_weights(extra, weights)
    for ref, images, weight in zip(source.extra_data, extra, settled, strict=True):
        reporter.note(describe_extra(images, ref, weight))
    return tuple(extra)


def _require_rest(source: Source) -> None:
    if source.unlabelled == REST and source.fraction == 1:
        raise DataError(
            f"--unlabelled {REST} is the training images that --fraction leaves out, and it leaves out none.",
            "Add --fraction 0.1 for example, or name a folder.",
        )


def _open_unlabeled(
    source: Source, name: str, train: ImageDataset, val: ImageDataset, reporter: Reporter
) -> ImageDataset:
    """Return the images without labels of a source, none of which is a training or validation image.

    Args:
        source: of the run.
        name: of its data.
        train: the images with labels, those of other sources too.
        val: the validation images; `train` itself where each of its images is validated on.
        reporter: receives what is left out.
    """
    ref = source.unlabelled
    require_other_data(ref, name)

    def open_labeled(ref: str) -> ImageDataset:
        with reading_stores(source.cache_dir, source.cache_size, reporter):
            data = open_dataset(ref, reporter, in_chans=source.in_chans)
        return join(list(data.list_parts().values()))

    with reading_arrays(has_bands(source.in_chans)):
        images = open_unlabeled(ref, open_labeled, reporter)
    images = leave_duplicates_out(images, train, val, ref, reporter)
    require_images(images, "unlabelled", ref, reporter)
    reporter.note(
        f"{len(train.labels):,} training images of {' and '.join((name, *source.extra_data))} have labels, "
        f"{len(images.labels):,} of {ref} have "
        "none: the teacher alone labels these. Copies of training or validation images are left out "
        "where their files are equal; copies that were encoded anew stay."
    )
    return images


def open_folds(source: Source, *, reporter: Reporter, world: World = SINGLE_PROCESS) -> FoldedData:
    """Return the images of all folds of a source; collective, raises as `open_for_training`."""
    return open_once(lambda: _open_folds(source, reporter), world, FoldedData.list_datasets)


def _open_folds(source: Source, reporter: Reporter) -> FoldedData:
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
    if source.extra_data:
        extra = _open_extra(source, folded.name, folded.images, folded.images, reporter)
        folded = replace(folded, extra=extra, extra_weight=source.extra_weight)
    if source.unlabelled == REST:
        return replace(folded, uses_rest=True)
    if not source.unlabelled:
        return folded
    images = add_extra(folded.images, folded.extra, ())  # each is validated on
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
    with reading_stores(source.cache_dir, source.cache_size, reporter):
        data = open_dataset(
            source.ref,
            reporter,
            source.image_folder,
            task=source.task,
            group_by=source.group_by,
            in_chans=source.in_chans,
        )
    data = data.with_value_range(source.value_range, reporter.note)
    for name, part in data.list_parts().items():
        if name != "test":
            if source.has_teacher:
                part.expect_fingerprints()
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

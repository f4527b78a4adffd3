"""Which images a model is scored on: of its run's data those that it was not trained on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from deitctl.data.band_image import describe_channels, has_bands
from deitctl.data.dataset import ImageDataset
from deitctl.data.open import DatasetSplits, EvalData, choose_eval_split, open_dataset
from deitctl.data.readers.read_options import AUTO
from deitctl.data.run_data import SPLIT_FILE, RunData, read_run_data
from deitctl.data.run_match import Mask, RunMatch, is_place_of, match_run
from deitctl.data.sources import BUILT_IN, is_there
from deitctl.data.splits import ALL
from deitctl.data.subsets import join, select
from deitctl.errors import ConfigError, DataError, ModelError
from deitctl.events import Reporter, SilentReporter
from deitctl.home import expand_home
from deitctl.inference.onnx_classifier import SUFFIX, load_onnx_classifier
from deitctl.models.checkpoint_io import CONFIG, load_model_config, suggest_run

EXPORT = "export"
"""Folder of a run that `deitctl export` writes to."""


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
    return bool(ref) and (expand_home(ref) / "run.toml").is_file()


def find_run(model: str) -> RunData | None:
    """Return the run that a model is of: a run folder, a file in it, or an export of it.

    Raises:
        ConfigError: its run.toml is broken.
        DataError: its split.csv is.
    """
    path = expand_home(model)
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
    data: str,
    models: Sequence[str],
    split: str = "",
    *,
    image_folder: str = "",
    task: str = AUTO,
    in_chans: int = 0,
    reporter: Reporter,
) -> ScoredImages:
    """Choose the images that models are scored on, and say which they are.

    Args:
        data: data, or a run folder, whose data it stands for; empty: the data of the first model
            that is a run's, else `digits`.
        models: as the user names them.
        split: train, val, test or all. Empty: images that no model was trained on: the split `val`
            of the data, or what the run held out; training images only where there are no others.
        image_folder: that the paths of a table are below; empty: where the table leads, of a run's
            table where the run read them.
        task: whether images have several labels; auto: as a run read the data, else as it has them.
        in_chans: channels of the models, see `open_dataset`.
        reporter: receives what is scored, and a warning where training images are among it.

    Raises:
        ConfigError: the run.toml of a run is broken.
        DataError: no such data or split, or the data of a run is not where it was.
    """
    runs = {model: run for model in models if (run := find_run(model)) is not None}
    owner = read_run_data(expand_home(data)) if data else next(iter(runs.values()), None)
    if owner is None and data and (way_on := suggest_run(expand_home(data))):
        raise DataError(f"{data} is neither a run nor data.", way_on)
    if owner is not None:
        require_data(owner)
        data = owner.ref
    if not data:
        data = BUILT_IN
        reporter.note(f"No data named: using the built-in '{BUILT_IN}'.")
    owners = [run for run in (owner, *runs.values()) if run is not None]
    image_folder = image_folder or find_image_folder(data, owners)
    task = find_task(data, owners) if task == AUTO else task
    splits = open_dataset(data, reporter, image_folder, task=task, in_chans=in_chans)
    parts = splits.list_parts()
    matches = {model: match_run(splits.name, parts, run) for model, run in runs.items()}
    match = next((match for match in matches.values() if match.is_own), None)
    if owner is not None and (match is None or match.run != owner):
        match = match_run(splits.name, parts, owner)
    opened = choose_eval_split(splits, split, match, reporter)
    if match is not None and not match.is_same_place:
        reporter.note(
            f"{data} has the images of {match.run.folder}, which began with {match.run.ref}: its "
            f"{SPLIT_FILE} names those that it was trained on."
        )
    masks = _find_masks(opened, splits, matches, reporter)
    images = ScoredImages(data, opened.split, opened.dataset, masks)
    if not split:
        images = _leave_out_train_images(images, reporter)
    for model, mask in images.train_masks.items():
        # Of the owner `choose_eval_split` has warned.
        if mask.any() and (match is None or runs[model].folder != match.run.folder):
            reporter.warn(
                f"{mask.sum()} of these {len(mask)} images are training images of {model}: "
                "accuracies on them say nothing about new images."
            )
    return images


def find_image_folder(data: str, runs: Iterable[RunData]) -> str:
    """Return where a run read the images of a table, empty for data that is no run's."""
    return next((run.image_folder for run in runs if is_place_of(run, data)), "")


def find_in_chans(models: Iterable[str]) -> int:
    """Return the channels of models that take bands, by their files; 0 where all take gray or RGB.

    Raises:
        ConfigError: some take bands and others do not, or others of them.
    """
    counts = {model: _read_in_chans(model) for model in models}
    kinds = {count if has_bands(count) else 0 for count in counts.values()}
    if len(kinds) > 1:
        named = ", ".join(f"{model} {describe_channels(n or 3)}" for model, n in counts.items())
        raise ConfigError(
            f"These models do not take the same images: {named}.", "Evaluate them one by one."
        )
    return next(iter(kinds), 0)


def _read_in_chans(model: str) -> int:
    """Return a model's channels as the files of it say that are quickly read; 0 for others."""
    path = expand_home(model)
    if model.lower().endswith(SUFFIX) and path.is_file():
        try:
            exported = load_onnx_classifier(
                model,
                weights="",
                head="auto",
                img_size=0,
                device="auto",
                precision="auto",
                allow_resizing=True,
            )
        except ModelError:  # which loading it says again
            return 0
        return exported.model_config.preprocessing.in_chans
    folders = (path, path.parent) if path.exists() else ()
    if any((config := folder / CONFIG).is_file() for folder in folders):
        with suppress(ModelError):
            return load_model_config(config.parent).preprocessing.in_chans
    return 0


def find_task(data: str, runs: Iterable[RunData]) -> str:
    """Return whether a run read images of some data with several labels; auto for data that is no run's."""
    return next((run.task for run in runs if is_place_of(run, data)), AUTO)


def _find_masks(
    opened: EvalData, data: DatasetSplits, matches: Mapping[str, RunMatch], reporter: Reporter
) -> dict[str, Mask]:
    """Return which images each model was trained on; a model of which it is not known has none."""
    masks = {}
    has_own_val = opened.split in ("val", "test") and opened.split in data.list_parts()
    for model, match in matches.items():
        mask = find_train_images(opened, match)
        if mask is not None:
            masks[model] = mask
        elif match.run.rows is None and not has_own_val:
            reporter.warn(
                f"{match.run.folder} has no {SPLIT_FILE}, which would say what it was trained on: "
                "such images may be among these."
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
    others = np.flatnonzero(~trained_on)
    return ScoredImages(
        images.data,
        "val" if images.split == ALL else images.split,
        select(images.dataset, others),
        {model: mask[others] for model, mask in masks.items()},
    )


def require_data(run: RunData) -> None:
    """Raise `DataError` unless the data of a run is where it was."""
    ref = run.ref or BUILT_IN
    if not is_there(ref):
        raise DataError(
            f"{run.folder} was trained on {ref}, which is not there.",
            f"Say where it is now: deitctl eval DATA --model {shlex.quote(str(run.folder))}",
        )


def find_train_images(images: EvalData, match: RunMatch) -> Mask | None:
    """Return which of some images a run was trained on, [N].

    Args:
        images: chosen of the data that was matched.
        match: of the run and that data.

    Returns:
        None if that is not known: of images that are nowhere near the run's, or if the run does not
        say which of its data it was trained on.
    """
    mask = images.find_train_images(match)
    if match.is_own and mask is not None:
        return mask
    if match.is_own and not {"", "train"} & {*images.parts}:
        return None  # files of the data's own val and test are none of its train
    # A table that lists the run's files, links to them.
    train = open_train_images(match.run)
    if train is None:
        return mask
    files = find_files(images.dataset, train)
    if mask is None:
        return files if files.any() else None
    return mask | files


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
        data = open_dataset(
            run.ref,
            SilentReporter(),
            run.image_folder,
            task=run.task,
            in_chans=find_in_chans([str(run.folder)]),
        )
    except DataError:
        return None
    parts = data.list_parts()
    match = match_run(data.name, parts, run)
    if match.split is not None:
        return match.split.train
    if match.train_masks is None:
        return parts.get("train") if len(parts) > 1 else None
    masks = np.concatenate([match.train_masks[name] for name in parts])
    return select(join(list(parts.values())), np.flatnonzero(masks))

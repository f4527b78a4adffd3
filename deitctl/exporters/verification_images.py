"""The images that an export is verified on, and the model's own outputs for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deitctl.data.band_image import has_bands
from deitctl.data.batch_transforms import normalize
from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.eval_transform import Pixels, eval_transform
from deitctl.data.file_types import get_extensions, reading_arrays
from deitctl.data.find_layout import find_layout
from deitctl.data.open import choose_eval_split, open_dataset
from deitctl.data.range_survey import scale_for
from deitctl.data.run_match import match_run
from deitctl.data.sources import BUILT_IN, is_image_folder
from deitctl.data.splits import ALL
from deitctl.data.subsets import select
from deitctl.data.trees import FolderTree
from deitctl.errors import ConfigError, DataError, ExportError
from deitctl.evaluation.images import (
    ScoredImages,
    choose_images,
    find_files,
    find_image_folder,
    find_in_chans,
    find_run,
    find_task,
    find_train_images,
    open_train_images,
    require_data,
)
from deitctl.events import Reporter, SilentReporter
from deitctl.home import expand_home
from deitctl.inference.folder_scan import FolderScan
from deitctl.inference.inputs import expand
from deitctl.models.heads import forward_heads, fuse_heads, to_probs
from deitctl.models.model_config import ModelConfig, Preprocessing

Outputs = NDArray[np.float32]
BATCH_SIZE = 16
NUM_CALIBRATION = 128
"""Images that int8-static is calibrated on."""


class Images(NamedTuple):
    """Images as an exported network takes them, their names and their indices in the dataset."""

    pixels: Pixels
    """uint8 [N,S,S,3]"""
    names: tuple[str, ...]
    indices: tuple[int, ...] = ()


def open_images(model: str, data: str, reporter: Reporter, image_folder: str = "") -> ScoredImages:
    """Open the images to verify an export on.

    Args:
        model: the model; of a run, images that it was not trained on.
        data: data, a run, a folder of images or an image; empty: the run's, else `digits`.
        reporter: notes where the run's images cannot be opened, or are training images.
        image_folder: that the paths of a table are below.

    Raises:
        DataError: no such images.
    """
    run, in_chans = find_run(model), find_in_chans([model])
    if data and (loose := _find_loose_images(data, in_chans)) is not None:
        train = open_train_images(run) if run is not None else None
        mask = find_files(loose, train) if train is not None else np.zeros(0, np.bool_)
        return ScoredImages(data, ALL, loose, {model: mask} if mask.any() else {})
    if not data:
        try:
            if run is not None:
                return choose_images("", [model], in_chans=in_chans, reporter=reporter)
        except DataError as error:
            # A run that was moved to another machine can still be exported; what it was verified on
            # is then stated.
            reporter.note(
                f"Verifying on {BUILT_IN}: the run's own data cannot be opened: {error.message}"
            )
    if not data and has_bands(in_chans):
        raise DataError(
            f"{model} takes images of {in_chans} bands, and there are none to verify it on.",
            "Name some with --verify-data.",
        )
    return choose_images(
        data or BUILT_IN,
        [model],
        image_folder=image_folder,
        in_chans=in_chans,
        reporter=reporter,
    )


def open_calibration_images(
    model: str, data: str, verified: Images, reporter: Reporter, image_folder: str = ""
) -> ImageDataset:
    """Open images to calibrate on, none of which the export is verified on.

    A run is calibrated on images that it was trained on: ranges that fit the images of the
    verification would hide that they do not fit others.

    Args:
        model: the model.
        data: as for `open_images`; empty: the run's.
        verified: the images of the verification.
        reporter: notes which images they are.
        image_folder: that the paths of a table are below; empty: of the run's where it found them.

    Raises:
        ConfigError: neither a run nor images, or none but those of the verification.
        DataError: no such images, or those of a run are gone.
    """
    run, in_chans = find_run(model), find_in_chans([model])
    if data and (loose := _find_loose_images(data, in_chans)) is not None:
        dataset, split = loose, ""
    elif data:
        owners = [] if run is None else [run]
        folder = image_folder or find_image_folder(data, owners)
        task = find_task(data, owners)
        splits = open_dataset(data, SilentReporter(), folder, task=task, in_chans=in_chans)
        opened = choose_eval_split(splits, ALL, None, SilentReporter())
        dataset, split = opened.dataset, ""
        if run is not None:
            trained_on = find_train_images(opened, match_run(data, splits.list_parts(), run))
            if trained_on is not None and trained_on.any():
                dataset, split = select(dataset, np.flatnonzero(trained_on)), "training "
    elif run is not None:
        require_data(run)
        train = open_train_images(run)
        if train is None:
            raise DataError(
                f"{run.folder} does not say which images it was trained on.",
                "Name some that it is not verified on: --calibration-data IMAGES.",
            )
        dataset, data, split = train, run.ref, "training "
    else:
        raise ConfigError(
            "int8-static is calibrated on images like those that it will classify.",
            "Name some that it is not verified on: --calibration-data IMAGES.",
        )
    # By real paths: two tables, a link and a folder, may spell the same file differently.
    calibrated = [os.path.realpath(dataset.name(i)) for i in range(len(dataset.labels))]
    files = {os.path.realpath(name) for name in verified.names}
    others = [index for index, file in enumerate(calibrated) if file not in files]
    if not others:
        raise ConfigError(
            f"int8-static would be calibrated on the images of {data} that it is verified on.",
            "Name others: --calibration-data IMAGES.",
        )
    left_out = len(dataset.labels) - len(others)
    note = f", without {left_out} that it is verified on" if left_out else ""
    count = min(len(others), NUM_CALIBRATION)
    reporter.note(f"Calibrating on {count} {split}images of {data or BUILT_IN}{note}.")
    return select(dataset, others)


def _find_loose_images(data: str, in_chans: int) -> ImageDataset | None:
    """Return the images of a folder without class folders, or one image; None if it is neither."""
    path, bands = expand_home(data), in_chans if has_bands(in_chans) else 0
    if path.is_dir() and not is_image_folder(path):
        return None
    with reading_arrays(bool(bands)):
        names = _list_loose(path, data, FolderScan(reads_arrays=bool(bands)))
    if names is None:
        return None
    loose = FileDataset(names, np.zeros(len(names), dtype=np.int64), ("",))
    return loose.with_bands(bands)


def _list_loose(path: Path, data: str, scan: FolderScan) -> tuple[str, ...] | None:
    tree = FolderTree(path)
    without_classes = path.is_dir() and not (
        tree.list("").folders and find_layout(tree, data).parts
    )
    if not without_classes and path.suffix.lower() not in get_extensions():
        return None
    return tuple(str(name) for name in expand([str(path)], scan=scan))


def read_images(dataset: ImageDataset, preprocessing: Preprocessing, num_images: int) -> Images:
    """Read images spread evenly over a dataset, or all; unreadable ones are replaced by others.

    Raises:
        ExportError: none can be read.
    """
    dataset = scale_for(dataset, preprocessing.value_range)
    total = len(dataset.labels)
    spread: Sequence[int] = range(total)
    if num_images < total:
        # Spread, because data is often sorted by class: the first 64 images would be of one or two.
        spread = [i * total // num_images for i in range(num_images)]
    others = sorted(set(range(total)).difference(spread))
    views = list(islice(_read_views(dataset, [*spread, *others], preprocessing), num_images))
    if not views:
        raise ExportError(
            f"None of {total} images to verify on can be read.", "Name others with --verify-data."
        )
    indices, pixels = zip(*views, strict=True)
    return Images(
        np.ascontiguousarray(np.stack(pixels).transpose(0, 2, 3, 1)),
        tuple(dataset.name(index) for index in indices),
        indices,
    )


def _read_views(
    dataset: ImageDataset, indices: list[int], preprocessing: Preprocessing
) -> Iterator[tuple[int, Pixels]]:
    for index in indices:
        try:
            yield index, eval_transform(dataset.read(index), preprocessing)
        except DataError:
            continue


@torch.inference_mode()
def compute_reference(
    model: nn.Module, model_config: ModelConfig, head: str, pixels: Pixels
) -> Outputs:
    """Return the outputs of the model in eval mode on the CPU: logits and probabilities, [2,N,K].

    By the path of `predict`, not of the exported network, so that a mistake in that shows.

    Args:
        model: the model.
        model_config: its config.
        head: the rule by which the heads are fused.
        pixels: images, uint8 [N,S,S,3].
    """
    outputs = []
    for batch in torch.split(torch.from_numpy(pixels).permute(0, 3, 1, 2), BATCH_SIZE):
        heads = forward_heads(model, normalize(batch, model_config.preprocessing))
        logits = fuse_heads(heads, head, model_config.task).float()
        probs = to_probs(logits / model_config.temperature(head), model_config.task)
        outputs.append(torch.stack([logits, probs]))
    return torch.cat(outputs, dim=1).numpy()

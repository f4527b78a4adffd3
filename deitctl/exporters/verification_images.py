"""The images that an export is verified on, and the model's own outputs for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deitctl.data.batch_transforms import normalize
from deitctl.data.dataset import FileDataset, ImageDataset, is_hidden
from deitctl.data.decode import EXTENSIONS
from deitctl.data.eval_transform import Pixels, eval_transform
from deitctl.data.open import BUILT_IN, open_for_evaluation
from deitctl.errors import DataError, ExportError
from deitctl.events import Reporter
from deitctl.inference.inputs import expand
from deitctl.models.heads import forward_heads, fuse_heads
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.settings import read_toml

Outputs = NDArray[np.float32]
BATCH_SIZE = 16


class Images(NamedTuple):
    """Images as an exported network takes them, their names and their indices in the dataset."""

    pixels: Pixels
    """uint8 [N,S,S,3]"""
    names: tuple[str, ...]
    indices: tuple[int, ...] = ()


def open_images(model: str, data: str, reporter: Reporter) -> ImageDataset:
    """Open the images to verify an export on.

    Args:
        model: the model; of a run, its own data is opened, the `val` split if it has one, unless
            `data` names others.
        data: data, a folder of images or an image; empty: the run's, else `digits`.
        reporter: notes where the run's images cannot be opened.

    Raises:
        DataError: no such images.
    """
    if data:
        path = Path(data).expanduser()
        without_classes = path.is_dir() and not any(
            entry.is_dir() and not is_hidden(entry.name) for entry in path.iterdir()
        )
        if without_classes or path.suffix.lower() in EXTENSIONS:
            names = tuple(str(name) for name in expand([str(path)]))
            return FileDataset(names, np.zeros(len(names), dtype=np.int64), ("",))
        return open_for_evaluation(data, reporter)
    run_file = Path(model).expanduser() / "run.toml"
    if run_file.is_file():
        try:
            return open_for_evaluation(str(read_toml(run_file).get("data", BUILT_IN)), reporter)
        except DataError as error:
            # A run that was moved to another machine can still be exported; what it was verified on
            # is then stated.
            reporter.note(
                f"Verifying on {BUILT_IN}: the run's own data cannot be opened: {error.message}"
            )
    return open_for_evaluation(BUILT_IN, reporter)


def read_images(dataset: ImageDataset, preprocessing: Preprocessing, num_images: int) -> Images:
    """Read images spread evenly over a dataset, or all; unreadable ones are replaced by others.

    Raises:
        ExportError: none can be read.
    """
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
        logits = fuse_heads(heads, head).float()
        probabilities = (logits / model_config.temperature(head)).softmax(dim=1)
        outputs.append(torch.stack([logits, probabilities]))
    return torch.cat(outputs, dim=1).numpy()

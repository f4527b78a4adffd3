"""What was taken from a file of weights, in one line."""

from __future__ import annotations

from pathlib import Path

from deitctl.events import Reporter
from deitctl.models.model_config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from deitctl.models.state_dicts import Checkpoint


def say_what_was_taken(
    path: Path,
    name: str,
    preprocessing: Preprocessing | None,
    checkpoint: Checkpoint,
    reporter: Reporter,
    *,
    is_bare: bool = False,
) -> None:
    """Say once what a file is taken for.

    Args:
        path: the file.
        name: of the architecture.
        preprocessing: that its folder or its architecture states; None for ImageNet's, assumed.
        checkpoint: what was read.
        reporter: receives a note. None is given of a model folder where nothing was decided.
        is_bare: whether the file has no config beside it.
    """
    if preprocessing is not None and not is_bare and not checkpoint.notes:
        return
    parts = [name, describe_normalization(preprocessing or Preprocessing()), *checkpoint.notes]
    reporter.note(f"{path}: {', '.join(parts)}.")


def describe_normalization(preprocessing: Preprocessing) -> str:
    """Return mean and standard deviation in words."""
    mean, std = preprocessing.mean, preprocessing.std
    if (mean, std) == (IMAGENET_MEAN, IMAGENET_STD):
        return "ImageNet mean and std"

    def shorten(values: tuple[float, ...]) -> str:
        same = len(set(values)) == 1
        return f"{values[0]:g}" if same else "/".join(f"{v:.3g}" for v in values)

    return f"mean {shorten(mean)} and std {shorten(std)}"

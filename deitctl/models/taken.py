"""What was taken from a file of weights, in one line."""

from __future__ import annotations

from pathlib import Path

from deitctl.events import Reporter
from deitctl.models import timm_models
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
    is_imagenet: bool = False,
) -> None:
    """Say once what a file is taken for.

    Args:
        path: the file.
        name: of the architecture.
        preprocessing: that its folder or its architecture states; None for ImageNet's, assumed.
        checkpoint: what was read.
        reporter: receives a note. None is given of a model folder where nothing was decided.
        is_bare: whether the file has no config beside it.
        is_imagenet: whether a bare file of another network than a DeiT gets ImageNet's class names.
    """
    if preprocessing is not None and not is_bare and not checkpoint.notes:
        return
    if preprocessing is None:
        _warn_of_other_images(path, name, checkpoint.architecture, reporter)
        head = checkpoint.state.get("head.weight")
        is_imagenet = is_imagenet or (head is not None and len(head) == 1000)
    parts = [name, describe_normalization(preprocessing or Preprocessing())]
    parts += ["1000 classes taken as ImageNet-1k"] * is_imagenet + [*checkpoint.notes]
    reporter.note(f"{path}: {', '.join(parts)}.")


def _warn_of_other_images(path: Path, name: str, stored: str, reporter: Reporter) -> None:
    """Warn where the file names a ViT whose images timm normalizes in another way."""
    if not stored.startswith("vit_") or not timm_models.is_timm_model(stored):
        return
    normalization = describe_normalization(timm_models.read_preprocessing(stored))
    if normalization != describe_normalization(Preprocessing()):
        reporter.warn(
            f"{path} was trained as {stored}, which timm gives {normalization}, not {name}'s. "
            f"--model {stored} --weights {path} takes those."
        )


def describe_normalization(preprocessing: Preprocessing) -> str:
    """Return mean and standard deviation in words."""
    mean, std = preprocessing.mean, preprocessing.std
    if (mean, std) == (IMAGENET_MEAN, IMAGENET_STD):
        return "ImageNet mean and std"

    def shorten(values: tuple[float, ...]) -> str:
        same = len(set(values)) == 1
        return f"{values[0]:g}" if same else "/".join(f"{v:.3g}" for v in values)

    return f"mean {shorten(mean)} and std {shorten(std)}"

"""What was taken from a file of weights, in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deitctl.events import Reporter
from deitctl.models import timm_models
from deitctl.models.model_config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, fit_channels
from deitctl.models.state_dicts import Checkpoint
from deitctl.models.stored_classes import NO_CLASSES, StoredClasses


def say_what_was_taken(
    path: Path,
    name: str,
    preprocessing: Preprocessing | None,
    checkpoint: Checkpoint,
    reporter: Reporter,
    *,
    is_bare: bool = False,
    is_imagenet: bool = False,
    classes: StoredClasses = NO_CLASSES,
) -> None:
    """Say once what a file is taken for.

    Args:
        path: the file.
        name: of the architecture.
        preprocessing: that its folder or its architecture states; None for ImageNet's, assumed.
        checkpoint: what was read.
        reporter: receives a note. None is given of a model folder where nothing was decided.
        is_bare: whether the file has no config beside it.
        is_imagenet: whether a file that names no classes gets ImageNet's names, as a bare one of a
            DeiT does where it has a thousand.
        classes: names that the file states.
    """
    if preprocessing is not None and not (is_bare or checkpoint.notes or classes.clause):
        return
    is_bare = is_bare or preprocessing is None
    if preprocessing is None:
        if "mean" not in checkpoint.preprocessing:
            _warn_of_other_images(path, name, checkpoint.architecture, reporter)
        head = checkpoint.state.get("head.weight")
        is_imagenet = is_imagenet or (head is not None and len(head) == 1000)
    preprocessing = preprocessing or Preprocessing()
    if is_bare:
        preprocessing = complete_preprocessing(preprocessing, checkpoint)
    parts = [name, describe_normalization(preprocessing)]
    if is_bare and (stated := _describe_stated(checkpoint.preprocessing)):
        parts.append(stated)
    parts += ["1000 classes taken as ImageNet-1k"] * (is_imagenet and not classes.clause)
    parts += [*([classes.clause] if classes.clause else []), *checkpoint.notes]
    reporter.note(f"{path}: {', '.join(parts)}.")


def complete_preprocessing(preprocessing: Preprocessing, checkpoint: Checkpoint) -> Preprocessing:
    """Return the preprocessing of a bare file's model with what the file states; the size is kept."""
    stated = {k: v for k, v in checkpoint.preprocessing.items() if k != "img_size"}
    for name in stated.keys() & {"mean", "std"}:
        stated[name] = fit_channels(stated[name], preprocessing.in_chans)
    return replace(preprocessing, **stated)


def _describe_stated(stated: Mapping[str, Any]) -> str:
    """Return what a file states of its crop, in words; empty for nothing."""
    words = [f"crop {stated['crop_pct']:g}"] if "crop_pct" in stated else []
    words += [stated[key] for key in ("crop_mode", "interpolation") if key in stated]
    return f"{' '.join(words)} as it was trained" if words else ""


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

"""Networks without a classifier, teachers of features: timm's DINOv2, SigLIP and so on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from deitctl.errors import ModelError
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.models import catalog, convert, timm_models
from deitctl.models.build import build_model
from deitctl.models.checkpoint_io import load_model_config
from deitctl.models.factory import LoadedModel
from deitctl.models.outline import fetch_outline, read_outline
from deitctl.models.own_shape import read_architecture
from deitctl.models.sources import choose_weights_file, has_weights, resolve_folder
from deitctl.models.vit import VisionTransformer
from deitctl.sizes import ImageSize

NO_CLASS = ("no class",)
"""Of the head that a network is built with, and which is taken off or left at zero."""


def lacks_classifier(ref: str, weights: str, reporter: Reporter) -> bool:
    """Return whether a model's weights have no classifier head; what is to be downloaded stays there.

    Args:
        ref: see `load_model`, and so is `weights`.
        weights: empty for those of `ref`.
        reporter: shows downloads of a config.
    """
    start = weights or (ref if has_weights(ref) else "")
    if not start:
        return catalog.find(ref) is None and timm_models.is_published_headless(ref)
    folder = resolve_folder(start, reporter, download_weights=False)
    model_config = load_model_config(folder) if folder else None
    if model_config is not None and model_config.num_classes == 0:
        return True
    outline = fetch_outline(start, folder) if folder else None
    path = choose_weights_file(start, folder) if folder else expand_home(start)
    state = (outline or read_outline(path)).state
    name = model_config.architecture if model_config else ref
    is_deit = read_architecture(model_config) if model_config else catalog.find(ref)
    if is_deit or (start == ref and folder is None):  # a file alone is a DeiT's
        return convert.count_classes(convert.normalize_names(state)) is None
    return timm_models.is_timm_model(name) and timm_models.count_classes(state, name) is None


def load_backbone(
    ref: str,
    *,
    weights: str = "",
    img_size: ImageSize = 0,
    download: bool = True,
    reporter: Reporter,
) -> LoadedModel:
    """Load a network for its features, in eval mode; arguments as `load_model`.

    Its config has no classes. Of a timm model no head is left, of a DeiT one that is zero.

    Raises:
        ModelError: no such model, or weights that do not fit.
        WeightsNotFound: published weights that are neither local nor downloadable.
    """
    start = weights or (ref if has_weights(ref) else "")
    loaded = build_model(
        ref,
        class_names=NO_CLASS,
        img_size=img_size,
        drop_path_rate=0.0,
        pretrained=not start,
        weights=weights,
        distilled=None,
        download=download,
        reporter=reporter,
    )
    remove_head(loaded)
    folder = resolve_folder(start, reporter, download_weights=False) if start else None
    preprocessing = loaded.model_config.preprocessing
    if folder is not None:  # with its crop, which a training does not take over
        preprocessing = replace(
            load_model_config(folder).preprocessing, img_size=preprocessing.img_size
        )
    model_config = replace(
        loaded.model_config, num_classes=0, class_names=None, preprocessing=preprocessing
    )
    return replace(loaded, model=loaded.model.eval(), model_config=model_config, changes=())


@torch.no_grad()
def remove_head(loaded: LoadedModel) -> None:
    """Take a model's classifier off, in place."""
    model: Any = loaded.model
    if isinstance(model, VisionTransformer):
        for head in (model.head, model.head_dist):
            if head is not None:  # equal weights, equal fingerprint
                head.weight.zero_()
                head.bias.zero_()
        return
    try:
        model.reset_classifier(0)
    except (AttributeError, TypeError) as error:
        raise ModelError(
            f"timm cannot take the classifier off {loaded.model_config.architecture}."
        ) from error

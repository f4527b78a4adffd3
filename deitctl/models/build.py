"""Models to train: initialized, or from weights that are changed to fit the data and the input size."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from deitctl.errors import WeightsNotFound
from deitctl.events import Reporter, SilentReporter
from deitctl.models import catalog, convert, timm_models
from deitctl.models.catalog import Architecture, load_imagenet_classes
from deitctl.models.checkpoint_io import (
    find_weights_file,
    load_model_config,
    read_checkpoint,
    require_finite,
)
from deitctl.models.factory import LoadedModel, find_architecture
from deitctl.models.model_config import ModelConfig, require_count
from deitctl.models.sources import has_weights, resolve_folder
from deitctl.models.state_dicts import Checkpoint
from deitctl.models.taken import say_what_was_taken
from deitctl.models.vit import VisionTransformer
from deitctl.models.weights import fetch_weights, find_local_weights, find_weights
from deitctl.names import find_names


def build_model(
    ref: str,
    *,
    class_names: Sequence[str],
    descriptions: Sequence[str] | None = None,
    img_size: int,
    drop_path_rate: float,
    pretrained: bool,
    weights: str,
    distilled: bool | None,
    start_classes: Sequence[str] = (),
    download: bool = True,
    reporter: Reporter,
) -> LoadedModel:
    """Build a classifier to train.

    Args:
        ref: see `load_model`; a folder or file starts from its weights.
        class_names: the data's classes, in the order of the logits.
        descriptions: their names for people.
        img_size: input size in pixels; 0 for the model's own.
        drop_path_rate: stochastic depth rate of the last block.
        pretrained: start from published weights if `weights` is empty.
        weights: weights file or model folder to start from.
        distilled: whether a DeiT has a distillation token; None for the variant that `ref` names.
        start_classes: names of the weights' classes, in the order of their logits; empty for those
            that come with the weights, if any do.
        download: False: weights that would be downloaded are left random.
        reporter: shows downloads, and is warned where plain weights stand for distilled ones.

    Raises:
        ModelError: no such model, or weights that do not fit.
        WeightsNotFound: published weights that are neither local nor downloadable.
    """
    arch = find_architecture(ref, reporter)
    ref, weights = os.path.expanduser(ref), os.path.expanduser(weights)
    start = weights or (ref if has_weights(ref) else "")
    if arch is not None:
        if distilled is not None:
            arch = catalog.get_distilled(arch) if distilled else catalog.get_plain(arch)
        source = None
        if start or pretrained:
            source = _read_start(start, arch, start_classes, bool(distilled), download, reporter)
        loaded = _build_deit(arch, start, source, class_names, img_size, drop_path_rate)
        if start and source is not None and source.checkpoint is not None:
            folder = resolve_folder(start, SilentReporter())
            preprocessing = load_model_config(folder).preprocessing if folder else None
            path = Path(source.name)
            say_what_was_taken(path, arch.alias, preprocessing, source.checkpoint, reporter)
    else:
        loaded = _build_timm(
            ref, start, len(class_names), img_size, drop_path_rate, pretrained, download, reporter
        )
    model_config = replace(
        loaded.model_config,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        descriptions=None if descriptions is None else tuple(descriptions),
    )
    return replace(loaded, model_config=model_config)


def has_class_rows(
    ref: str,
    weights: str,
    class_names: Sequence[str],
    reporter: Reporter,
    *,
    start_classes: Sequence[str] = (),
) -> bool:
    """Return whether `build_model` takes the classes' rows of the head from the weights.

    A file without class names and of as many classes counts: its rows are taken to be in this order.
    """
    if (arch := find_architecture(ref, reporter)) is None:
        return False  # the heads of timm's models are always new
    start = weights or (ref if has_weights(ref) else "")
    if not start:
        return set(class_names) <= set(load_imagenet_classes()[0])
    source = _read_start(start, arch, start_classes, False, True, reporter)
    if source.class_names is None:
        return convert.count_classes(source.state) == len(class_names)
    return None not in find_names(class_names, source.class_names)


@dataclass(frozen=True)
class _Start:
    """Weights that a training starts from."""

    state: Mapping[str, Tensor]
    """Meta tensors for weights that are to be downloaded."""
    class_names: tuple[str, ...] | None
    """Of its head's rows; None if they are not known."""
    name: str
    """The file, or the published weights that are to be downloaded."""
    checkpoint: Checkpoint | None = None
    """What was read; None for what is to be downloaded."""


def _build_deit(
    arch: Architecture,
    start: str,
    source: _Start | None,
    class_names: Sequence[str],
    img_size: int,
    drop_path_rate: float,
) -> LoadedModel:
    size = img_size or arch.img_size

    def build() -> VisionTransformer:
        return VisionTransformer(
            convert.resize_architecture(arch, size),
            num_classes=len(class_names),
            img_size=size,
            drop_path_rate=drop_path_rate,
        )

    model = build()
    changes: list[str] = []
    has_new_head = False
    if source is not None:
        state, changes = _choose_head_rows(source, class_names)
        has_new_head = convert.count_classes(state) != len(class_names)
        target = model
        if any(value.is_meta for value in state.values()):  # matched, and nothing is loaded
            with torch.device("meta"):
                target = build()
        changes += convert.load_adapted(target, state, start or arch.hub_id)
    folder = resolve_folder(start, SilentReporter()) if start else None
    model_config = _keep_normalization(arch.to_model_config(), folder)
    return LoadedModel(
        model,
        model_config.at_size(size),
        tuple(changes),
        has_new_head,
        weights=source.name if source else "",
        entry=source.checkpoint.entry if source and source.checkpoint else "",
    )


def _choose_head_rows(
    source: _Start, class_names: Sequence[str]
) -> tuple[Mapping[str, Tensor], list[str]]:
    """Return weights whose head has the data's classes in their order, or no head; and the changes.

    Fine-tuning to classes that the weights know keeps their rows of the head instead of a new one.
    """
    state, names, count = source.state, source.class_names, len(class_names)
    if names is None:
        if convert.count_classes(state) != count:
            return state, []
        examples = ", ".join([*class_names[:3], *(["..."] if count > 3 else [])])
        return state, [
            f"the head's rows are taken to be in the order of the data's classes ({examples}), because "
            f"{Path(source.name).name} names none; --classes FILE names them"
        ]
    rows = [row for row in find_names(class_names, names) if row is not None]
    if len(set(rows)) != count:
        # Equal class counts would load otherwise, and each class would start as another one.
        return convert.drop_heads(state), []
    rows_note = f"the head keeps the weights' rows of the data's {count} classes"
    changes = [] if rows == list(range(len(names))) else [rows_note]
    return convert.take_head_rows(state, rows), changes


def _read_start(
    start: str,
    arch: Architecture,
    class_names: Sequence[str],
    distilled: bool,
    download: bool,
    reporter: Reporter,
) -> _Start:
    """Read what a training starts from: a file, a folder, or the published weights of `arch`."""
    if start:
        folder = resolve_folder(start, reporter)
        path: Path | None = find_weights_file(folder) if folder else Path(start)
    else:
        folder, (arch, path) = None, _find_published(arch, distilled, download, reporter)
    if path is None:
        with torch.device("meta"):
            published = VisionTransformer(arch, num_classes=1000, img_size=arch.img_size)
        return _Start(published.state_dict(), load_imagenet_classes()[0], arch.full_name)
    checkpoint = read_checkpoint(path)
    state = convert.normalize_names(checkpoint.state)
    require_finite(state, str(path))
    names = load_model_config(folder).class_names if folder else None
    count = convert.count_classes(state)
    if class_names:
        require_count(class_names, count, str(path))
        names = tuple(class_names)
    if names is None and count == 1000:
        names = load_imagenet_classes()[0]
    return _Start(state, names, str(path), checkpoint)


def _find_published(
    arch: Architecture, distilled: bool, download: bool, reporter: Reporter
) -> tuple[Architecture, Path | None]:
    """Return the architecture and file of published weights; no file where they are to be downloaded.

    A student with a distillation token takes the plain weights that are there if the distilled ones
    cannot be had: the token starts as a copy of the class token.
    """
    try:
        if not download:
            return arch, find_weights(arch)
        return arch, fetch_weights(arch, reporter)
    except WeightsNotFound as error:
        plain, with_token = catalog.get_plain(arch), catalog.get_distilled(arch)
        if with_token != arch and (path := find_local_weights(with_token)) is not None:
            hint = f"The distilled ones are here: --weights {path} takes them without their token."
            raise WeightsNotFound(error.message, f"{error.hint} {hint}") from error
        path = find_local_weights(plain) if distilled and plain != arch else None
        if path is None:
            raise
        reporter.warn(f"{error.message} The student starts from the plain weights {path}.")
        return plain, path


def _build_timm(
    ref: str,
    start: str,
    num_classes: int,
    img_size: int,
    drop_path_rate: float,
    pretrained: bool,
    download: bool,
    reporter: Reporter,
) -> LoadedModel:
    start_folder = resolve_folder(start, reporter) if start else None
    ref_folder = resolve_folder(ref, reporter)
    ref_config = load_model_config(ref_folder) if ref_folder else None
    name = ref_config.architecture if ref_config else ref
    model_args = dict(ref_config.model_args) if ref_config else {}
    model_args.pop("img_size", None)
    if not img_size:
        img_size = (
            ref_config.preprocessing.img_size if ref_config else timm_models.get_native_size(name)
        )
    if pretrained and not start:
        name = timm_models.add_tag(name)
        with reporter.task(f"load {name}", None, "bytes"):
            model, _ = timm_models.load_published(
                name,
                num_classes=num_classes,
                img_size=img_size,
                drop_path_rate=drop_path_rate,
                download=download,
            )
    else:
        model = timm_models.create_model(
            name,
            num_classes=num_classes,
            img_size=img_size,
            drop_path_rate=drop_path_rate,
            model_args=model_args,
        )
    checkpoint, weights = None, name if pretrained else ""
    if start:
        path = find_weights_file(start_folder) if start_folder else Path(start)
        checkpoint, weights = read_checkpoint(path), str(path)
        timm_models.load_weights(model, checkpoint.state, weights, new_head=True)
        preprocessing = load_model_config(start_folder).preprocessing if start_folder else None
        say_what_was_taken(path, name, preprocessing, checkpoint, reporter)
    model_config = replace(
        timm_models.read_model_config(model, name, num_classes), model_args=model_args
    )
    model_config = _keep_normalization(model_config, start_folder or ref_folder)
    has_new_head = (bool(start) or pretrained) and timm_models.has_zero_heads(model)
    return LoadedModel(
        model,
        model_config.at_size(img_size),
        (f"the head is new: {num_classes} classes",) if has_new_head else (),
        has_new_head,
        weights=weights,
        entry=checkpoint.entry if checkpoint else "",
    )


def _keep_normalization(model_config: ModelConfig, folder: Path | None) -> ModelConfig:
    """Return the config with the normalization that a folder's weights were trained with."""
    if folder is None:
        return model_config
    source = load_model_config(folder).preprocessing
    preprocessing = replace(
        model_config.preprocessing,
        mean=source.mean,
        std=source.std,
        interpolation=source.interpolation,
    )
    return replace(model_config, preprocessing=preprocessing)

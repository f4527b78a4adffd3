"""Models to train: initialized, or from weights that are changed to fit the data and the input size."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deitctl.errors import WeightsNotFound
from deitctl.events import Reporter
from deitctl.models import catalog, convert, timm_models
from deitctl.models.catalog import Architecture, load_imagenet_classes
from deitctl.models.checkpoint_io import (
    load_model_config,
    read_checkpoint,
    require_finite,
)
from deitctl.models.factory import LoadedModel, find_architecture
from deitctl.models.model_config import (
    ModelConfig,
    describe_replaced_names,
    fit_channels,
    require_count,
)
from deitctl.models.outline import fetch_outline, read_outline
from deitctl.models.own_shape import read_architecture, require_model_args, reshape
from deitctl.models.sources import choose_weights_file, get_repo_id, has_weights, resolve_folder
from deitctl.models.state_dicts import Checkpoint
from deitctl.models.stored_classes import StoredClasses, choose_class_names
from deitctl.models.taken import complete_preprocessing, say_what_was_taken
from deitctl.models.tasks import CLASSIFICATION
from deitctl.models.vit import VisionTransformer
from deitctl.models.weights import fetch_weights, find_local_weights, find_weights
from deitctl.names import find_names
from deitctl.sizes import ImageSize


def build_model(
    ref: str,
    *,
    class_names: Sequence[str],
    descriptions: Sequence[str] | None = None,
    img_size: ImageSize,
    drop_path_rate: float,
    pretrained: bool,
    weights: str,
    distilled: bool | None,
    model_args: Mapping[str, Any] | None = None,
    in_chans: int = 0,
    start_classes: Sequence[str] = (),
    dpr_constant: bool = False,
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
        model_args: a shape of its own, by timm's names: `patch_size`, `depth` and so on.
        in_chans: channels of its images; 0: the model's own, 3 of one named by architecture.
        start_classes: names of the weights' classes, in the order of their logits; empty for those
            that come with the weights, if any do.
        dpr_constant: a DeiT, or a ViT of timm's, drops branches of every block at `drop_path_rate`.
        download: False: weights that would be downloaded are left random; their shapes are matched.
        reporter: shows downloads, and is warned where plain weights stand for distilled ones.

    Raises:
        ModelError: no such model, or weights that do not fit.
        ConfigError: `model_args` that the model does not have.
        WeightsNotFound: published weights that are neither local nor downloadable.
    """
    arch = find_architecture(ref, reporter)
    model_args = dict(model_args or {})
    require_model_args(model_args, arch)
    if in_chans:
        model_args["in_chans"] = in_chans
    ref, weights = os.path.expanduser(ref), os.path.expanduser(weights)
    start = weights or (ref if has_weights(ref) else "")
    source = _open_start(start, reporter, download=download) if start else None
    if arch is not None:
        if distilled is not None:
            arch = catalog.get_distilled(arch) if distilled else catalog.get_plain(arch)
        if pretrained and source is None:
            source = _open_published(arch, bool(distilled), download, reporter)
        arch = reshape(arch, model_args)
        loaded = _build_deit(
            arch, source, start_classes, class_names, img_size, drop_path_rate, dpr_constant
        )
    else:
        loaded = _build_timm(
            ref,
            source,
            len(class_names),
            img_size=img_size,
            drop_path_rate=drop_path_rate,
            pretrained=pretrained,
            model_args=model_args,
            download=download,
            reporter=reporter,
        )
        if (
            dpr_constant
            and drop_path_rate
            and not timm_models.drop_alike(loaded.model, drop_path_rate)
        ):
            reporter.warn(
                f"dpr_constant is for ViTs: {ref} keeps its own rates of stochastic depth."
            )
    if start and source is not None:
        folder = source.folder
        say_what_was_taken(
            Path(source.name),
            arch.alias if arch else loaded.model_config.architecture,
            load_model_config(folder).preprocessing if folder else None,
            source.checkpoint,
            reporter,
            classes=_find_classes(source) if arch else StoredClasses(),
        )
    model_config = replace(
        loaded.model_config,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        descriptions=None if descriptions is None else tuple(descriptions),
        task=_read_task(source),
    )
    return replace(loaded, model_config=model_config)


def has_class_rows(
    ref: str,
    weights: str,
    class_names: Sequence[str],
    reporter: Reporter,
    *,
    start_classes: Sequence[str] = (),
    task: str = CLASSIFICATION,
) -> bool:
    """Return whether a training of the task keeps the classes' rows of the head of the weights.

    A file without class names and of as many classes counts: its rows are taken to be in this order.
    Of weights that would be downloaded, nothing but their shapes is.
    """
    if find_architecture(ref, reporter) is None:
        return False  # the heads of timm's models are always new
    start = weights or (ref if has_weights(ref) else "")
    if not start:
        names = start_classes or load_imagenet_classes()[0]
        return task == CLASSIFICATION and None not in find_names(class_names, names)
    source = _open_start(start, reporter, download=False, has_values=False)
    if _read_task(source) != task:
        return False
    rows = _name_rows(source, start_classes)
    if rows.class_names is None:
        return convert.count_classes(rows.state) == len(class_names)
    return None not in find_names(class_names, rows.class_names)


@dataclass(frozen=True)
class _Source:
    """Weights that a training starts from."""

    checkpoint: Checkpoint
    """Meta tensors for weights that are to be downloaded."""
    name: str
    """The file, or the published weights or the repository that are to be downloaded."""
    folder: Path | None = None
    """The model folder that they are in, if they are in one."""
    arch: Architecture | None = None
    """The DeiT that they are of, where it is known before they are read."""


@dataclass(frozen=True)
class _Rows:
    """A DeiT's weights, and what the rows of its head are."""

    state: Mapping[str, Tensor]
    class_names: tuple[str, ...] | None
    """None if they are not known."""
    replacement: str
    """Says that they are not the weights' own; empty if they are."""


def _open_start(
    start: str, reporter: Reporter, *, download: bool, has_values: bool = True
) -> _Source:
    """Read a file, or the weights of a folder or a repository; without `has_values` their outline."""
    folder = resolve_folder(start, reporter, download_weights=download)
    if folder is not None and (outline := fetch_outline(start, folder)) is not None:
        return _Source(outline, get_repo_id(start), folder, _read_folder_arch(folder))
    path = choose_weights_file(start, folder) if folder else Path(start)
    checkpoint = read_checkpoint(path) if has_values else read_outline(path)
    return _Source(checkpoint, str(path), folder, _read_folder_arch(folder))


def _read_folder_arch(folder: Path | None) -> Architecture | None:
    return read_architecture(load_model_config(folder)) if folder else None


def _read_task(source: _Source | None) -> str:
    """Return the task of weights as their folder states it; of others it is one label an image."""
    return load_model_config(source.folder).task if source and source.folder else CLASSIFICATION


def _open_published(
    arch: Architecture, distilled: bool, download: bool, reporter: Reporter
) -> _Source:
    """Read the published weights of an architecture, or the outline of those to be downloaded."""
    arch, path = _find_published(arch, distilled, download, reporter)
    if path is not None:
        return _Source(read_checkpoint(path), str(path), arch=arch)
    with torch.device("meta"):
        published = VisionTransformer(arch, num_classes=1000, img_size=arch.img_size)
    return _Source(Checkpoint(published.state_dict()), arch.full_name, arch=arch)


def _name_rows(source: _Source, start_classes: Sequence[str]) -> _Rows:
    """Return the weights with the names of their head's rows: the named ones, else their own."""
    state = convert.normalize_names(source.checkpoint.state)
    require_finite(state, source.name)
    count = convert.count_classes(state)
    own = load_model_config(source.folder).class_names if source.folder else None
    classes = _find_classes(source)
    own = own or classes.names
    if own is None and count == 1000 and not classes.clause:
        own = load_imagenet_classes()[0]
    if not start_classes:
        return _Rows(state, own, "")
    require_count(start_classes, count, source.name)
    replacement = describe_replaced_names(own, start_classes, source.name)
    return _Rows(state, tuple(start_classes), replacement)


def _find_classes(source: _Source) -> StoredClasses:
    """Return the class names that a file states, which those of its folder go before."""
    if source.folder and load_model_config(source.folder).class_names is not None:
        return StoredClasses()
    count = convert.count_classes(source.checkpoint.state)
    return choose_class_names(source.checkpoint.class_lists, count)


def _build_deit(
    arch: Architecture,
    source: _Source | None,
    start_classes: Sequence[str],
    class_names: Sequence[str],
    img_size: ImageSize,
    drop_path_rate: float,
    dpr_constant: bool,
) -> LoadedModel:
    size = img_size or arch.img_size

    def build() -> VisionTransformer:
        return VisionTransformer(
            convert.resize_architecture(arch, size),
            num_classes=len(class_names),
            img_size=size,
            drop_path_rate=drop_path_rate,
            dpr_constant=dpr_constant,
        )

    model, model_config = build(), arch.to_model_config()
    if source is None:
        return LoadedModel(model, model_config.at_size(size))
    rows = _name_rows(source, start_classes)
    state, changes = _choose_head_rows(rows, source.name, class_names)
    target = model
    if any(value.is_meta for value in state.values()):  # matched, and nothing is loaded
        with torch.device("meta"):
            target = build()
    changes += convert.load_adapted(
        target, state, source.name, source=source.arch, img_size=source.checkpoint.img_size
    )
    return LoadedModel(
        model,
        _keep_normalization(model_config, source.folder, source.checkpoint).at_size(size),
        (*([rows.replacement] if rows.replacement else []), *changes),
        has_new_head=convert.count_classes(state) != len(class_names),
        weights=source.name,
        entry=source.checkpoint.entry,
    )


def _choose_head_rows(
    rows: _Rows, where: str, class_names: Sequence[str]
) -> tuple[Mapping[str, Tensor], list[str]]:
    """Return weights whose head has the data's classes in their order, or no head; and the changes.

    Fine-tuning to classes that the weights know keeps their rows of the head instead of a new one.
    """
    state, names, count = rows.state, rows.class_names, len(class_names)
    if names is None:
        if convert.count_classes(state) != count:
            return state, []
        examples = ", ".join([*class_names[:3], *(["..."] if count > 3 else [])])
        return state, [
            f"the head's rows are taken to be in the order of the data's classes ({examples}), because "
            f"{Path(where).name} names none; --classes FILE names them"
        ]
    places = [place for place in find_names(class_names, names) if place is not None]
    if len(set(places)) != count:
        # Equal class counts would load otherwise, and each class would start as another one.
        return convert.drop_heads(state), []
    is_same = places == list(range(len(names)))
    note = f"the head keeps the weights' rows of the data's {count} classes"
    return convert.take_head_rows(state, places), [] if is_same else [note]


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
    source: _Source | None,
    num_classes: int,
    *,
    img_size: ImageSize,
    drop_path_rate: float,
    pretrained: bool,
    model_args: Mapping[str, Any],
    download: bool,
    reporter: Reporter,
) -> LoadedModel:
    ref_folder = resolve_folder(ref, reporter, download_weights=False)
    ref_config = load_model_config(ref_folder) if ref_folder else None
    name = ref_config.architecture if ref_config else ref
    model_args = {**(ref_config.model_args if ref_config else {}), **model_args}
    model_args.pop("img_size", None)
    if not img_size:
        img_size = (
            ref_config.preprocessing.img_size if ref_config else timm_models.get_native_size(name)
        )
    if pretrained and source is None:
        name = timm_models.add_tag(name)
        with reporter.task(f"load {name}", None, "bytes"):
            model, _ = timm_models.load_published(
                name,
                num_classes=num_classes,
                img_size=img_size,
                drop_path_rate=drop_path_rate,
                model_args=model_args,
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
    changes: list[str] = []
    if source is not None:
        folder_config = load_model_config(source.folder) if source.folder else None
        stated = folder_config.preprocessing.img_size if folder_config else 0
        changes = timm_models.load_weights(
            model,
            source.checkpoint.state,
            source.name,
            new_head=True,
            img_size=source.checkpoint.img_size or stated,
        )
    model_config = replace(
        timm_models.read_model_config(model, name, num_classes), model_args=model_args
    ).with_channels(int(model_args.get("in_chans", 3)))
    folder = source.folder if source and source.folder else ref_folder
    model_config = _keep_normalization(model_config, folder, source.checkpoint if source else None)
    has_new_head = (source is not None or pretrained) and timm_models.has_zero_heads(model)
    return LoadedModel(
        model,
        model_config.at_size(img_size),
        (*changes, *([f"the head is new: {num_classes} classes"] if has_new_head else [])),
        has_new_head,
        weights=source.name if source else (name if pretrained else ""),
        entry=source.checkpoint.entry if source else "",
    )


def _keep_normalization(
    model_config: ModelConfig, folder: Path | None, checkpoint: Checkpoint | None
) -> ModelConfig:
    """Return the config with the normalization of a folder's weights, or with what a file states."""
    if folder is None:
        if checkpoint is None:
            return model_config
        stated = complete_preprocessing(model_config.preprocessing, checkpoint)
        return replace(model_config, preprocessing=stated)
    source = load_model_config(folder).preprocessing
    channels = model_config.preprocessing.in_chans
    preprocessing = replace(
        model_config.preprocessing,
        mean=fit_channels(source.mean, channels),
        std=fit_channels(source.std, channels),
        interpolation=source.interpolation,
    )
    return replace(model_config, preprocessing=preprocessing)

"""Load and build classifiers: from aliases, timm names, hub repositories, folders, files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from deitctl.config import MAX_SIZE
from deitctl.errors import ModelError, WeightsNotFound
from deitctl.events import Reporter, SilentReporter
from deitctl.home import expand_home
from deitctl.models import catalog, convert, timm_models
from deitctl.models.catalog import Architecture, load_imagenet_classes
from deitctl.models.checkpoint_io import (
    find_weights_file,
    load_model_config,
    read_checkpoint,
    require_finite,
)
from deitctl.models.model_config import ModelConfig, Preprocessing, require_count
from deitctl.models.sources import has_weights, is_weights_file, require_timm_name, resolve_folder
from deitctl.models.state_dicts import Checkpoint
from deitctl.models.taken import say_what_was_taken
from deitctl.models.vit import VisionTransformer
from deitctl.models.weights import fetch_weights, find_local_weights, find_weights


@dataclass(frozen=True)
class LoadedModel:
    """A classifier with its config, and how its weights were changed to fit, as sentences."""

    model: nn.Module
    model_config: ModelConfig
    changes: tuple[str, ...] = ()
    has_new_head: bool = False
    """Whether the backbone has weights and the heads, of other classes, have not."""
    weights: str = ""
    """Of a model to train: the file that it starts from, or the published weights by timm's name."""


@torch.inference_mode(False)  # explanations need gradients, which inference tensors cannot have
def load_model(
    ref: str, *, weights: str = "", img_size: int = 0, download: bool = True, reporter: Reporter
) -> LoadedModel:
    """Load a trained classifier in eval mode.

    Args:
        ref: an alias or timm name, `hf-hub:owner/name`, a model folder, or a weights file.
        weights: a weights file or model folder, for a `ref` that is a name.
        img_size: input size in pixels if not the weights' own; position embeddings are resized.
        download: False: for published weights that would be downloaded, a model without them.
        reporter: shows downloads.

    Raises:
        ModelError: no such model, or weights that do not fit.
        WeightsNotFound: published weights that are neither local nor downloadable.
    """
    if not 0 <= img_size <= MAX_SIZE:
        raise ModelError(
            f"img_size = {img_size}: a model's input has 1 to {MAX_SIZE} pixels a side."
        )
    ref, weights = os.path.expanduser(ref), os.path.expanduser(weights)
    if weights:
        return _load_named(ref, weights, img_size, reporter)
    if (folder := resolve_folder(ref, reporter)) is not None:
        return _load_folder(folder, img_size, reporter)
    if is_weights_file(ref):
        return _load_deit_file(Path(ref), None, img_size, reporter)
    arch = catalog.find(ref)
    if arch is not None:
        if not download and find_weights(arch) is None:
            return _describe_published(arch, img_size)
        return _load_deit_file(fetch_weights(arch, reporter), arch, img_size)
    require_timm_name(ref)
    if (name := timm_models.add_tag(ref)) != ref:
        reporter.note(f"{ref} means timm's weights {name}.")
    with reporter.task(f"load {name}", None, "bytes"):
        model, model_config = timm_models.load_published(name, img_size=img_size, download=download)
    return LoadedModel(model.eval(), model_config)


def _load_named(ref: str, weights: str, img_size: int, reporter: Reporter) -> LoadedModel:
    """Load weights whose architecture is named beside them."""
    if has_weights(ref):
        raise ModelError(
            f"{ref} has weights of its own.", "Leave --weights out, or name an architecture."
        )
    arch = catalog.find(ref)
    if arch is None:
        require_timm_name(ref)
    folder = resolve_folder(weights, reporter)
    if folder is None and arch is None:
        return _load_timm_file(ref, Path(weights), img_size, reporter)
    if folder is None:
        return _load_deit_file(Path(weights), arch, img_size, reporter)
    loaded = _load_folder(folder, img_size, reporter)
    name = loaded.model_config.architecture
    is_same = _is_same_deit(catalog.find(name), arch) if arch else name == ref.partition(".")[0]
    # Both were named by the user: a contradiction is refused, not resolved.
    if not is_same:
        own = catalog.find(name)
        raise ModelError(
            f"{weights} holds {name}, not {arch.alias if arch else ref}.",
            f"Use --model {own.alias if own else name}.",
        )
    return loaded


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


def find_architecture(ref: str, reporter: Reporter) -> Architecture | None:
    """Return the DeiT that `ref` means, None for a timm model; raise `ModelError` for neither."""
    if (folder := resolve_folder(ref, reporter)) is not None:
        return catalog.find(load_model_config(folder).architecture)
    if is_weights_file(ref):
        checkpoint = read_checkpoint(expand_home(ref))
        shapes = {k: tuple(v.shape) for k, v in convert.normalize_names(checkpoint.state).items()}
        return convert.infer_architecture(shapes, ref, checkpoint.architecture)
    arch = catalog.find(ref)
    if arch is None:
        require_timm_name(ref)
    return arch


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
    return set(class_names) <= set(source.class_names)


def _is_same_deit(a: Architecture | None, b: Architecture) -> bool:
    return a is not None and convert.has_same_backbone(a, b) and a.distilled == b.distilled


def _load_folder(folder: Path, img_size: int, reporter: Reporter) -> LoadedModel:
    model_config = load_model_config(folder)
    arch = catalog.find(model_config.architecture)
    if arch is None:
        model, model_config = timm_models.load_folder(folder, img_size)
        return LoadedModel(model.eval(), model_config)
    loaded = _load_deit_file(
        find_weights_file(folder),
        arch,
        img_size or model_config.preprocessing.img_size,
        reporter,
        model_config.preprocessing,
    )
    inferred = loaded.model_config
    if model_config.class_names is None:  # ImageNet's, for a thousand classes
        model_config = replace(
            model_config, class_names=inferred.class_names, descriptions=inferred.descriptions
        )
    if len(model_config.class_names or ()) not in (0, inferred.num_classes):
        raise ModelError(
            f"{folder} names {model_config.num_classes} classes, "
            f"its weights have {inferred.num_classes}."
        )
    model_config = replace(
        model_config,
        head=inferred.head if model_config.head == "auto" else model_config.head,
        # The weights decide: config.json may be of another version of them.
        num_classes=inferred.num_classes,
    )
    return replace(loaded, model_config=model_config.at_size(inferred.preprocessing.img_size))


def _load_deit_file(
    path: Path,
    arch: Architecture | None,
    img_size: int,
    reporter: Reporter | None = None,
    preprocessing: Preprocessing | None = None,
) -> LoadedModel:
    """Load a DeiT's file: that of a folder with its preprocessing, or one without.

    What was taken is said to `reporter`; None for published weights.
    """
    checkpoint = read_checkpoint(path)
    state, lacks_head = convert.complete_heads(convert.normalize_names(checkpoint.state))
    require_finite(state, str(path))
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    inferred = convert.infer_architecture(shapes, str(path), checkpoint.architecture)
    if arch is not None and not _is_same_deit(inferred, arch):
        raise ModelError(
            f"{path} holds {inferred.alias}, not {arch.alias}.", f"Use --model {inferred.alias}."
        )
    arch = arch or inferred
    num_classes = convert.count_classes(state)
    if num_classes is None:
        raise ModelError(
            f"{path} has no classifier head ({inferred.alias}"
            f"{''.join(f', {note}' for note in checkpoint.notes)}).",
            f"Fine-tune it first: deitctl train DATA --model {inferred.alias} --weights FILE.",
        )
    size = img_size or convert.infer_img_size(state, arch)
    # Drawing weights that are replaced at once takes longer than reading them.
    with torch.device("meta"):
        model = VisionTransformer(
            convert.resize_architecture(arch, size), num_classes=num_classes, img_size=size
        )
    changes = convert.load_adapted(model, state, str(path))
    model_config = arch.to_model_config().at_size(size)
    if lacks_head:
        model_config = replace(model_config, head="cls")
    if num_classes != 1000:
        model_config = replace(
            model_config, num_classes=num_classes, class_names=None, descriptions=None
        )
    if reporter is not None:
        say_what_was_taken(path, inferred.alias, preprocessing, checkpoint, reporter)
    return LoadedModel(model.eval(), model_config, tuple(changes))


def _describe_published(arch: Architecture, img_size: int) -> LoadedModel:
    """Return a DeiT as its published weights make it, without them: its tensors have no memory."""
    size = img_size or arch.img_size
    with torch.device("meta"):
        model = VisionTransformer(
            convert.resize_architecture(arch, size), num_classes=1000, img_size=size
        )
    return LoadedModel(model.eval(), arch.to_model_config().at_size(size))


def _load_timm_file(name: str, path: Path, img_size: int, reporter: Reporter) -> LoadedModel:
    checkpoint = read_checkpoint(path)
    num_classes = timm_models.count_classes(checkpoint.state, name)
    model = timm_models.create_model(name, num_classes=num_classes, img_size=img_size)
    model_config = timm_models.read_model_config(model, name, num_classes)
    timm_models.load_weights(model, checkpoint.state, str(path), new_head=False)
    say_what_was_taken(path, name, model_config.preprocessing, checkpoint, reporter, is_bare=True)
    return LoadedModel(model.eval(), model_config.at_size(img_size) if img_size else model_config)


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
        if any(value.is_meta for value in state.values()):  # matched like any other, and nothing is loaded
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
            f"{source.name} does not name its {count} classes: the rows of its head are taken to be in "
            f"the order of the data's, {examples}; --classes FILE names them"
        ]
    row_of = {name: row for row, name in enumerate(names)}
    if not all(name in row_of for name in class_names):
        # Equal class counts would load otherwise, and each class would start as another one.
        return convert.drop_heads(state), []
    rows = [row_of[name] for name in class_names]
    kept = f"the head keeps the weights' rows of the data's {count} classes"
    changes = [] if rows == list(range(len(names))) else [kept]
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
    path = None
    if start:
        path = find_weights_file(start_folder) if start_folder else Path(start)
        checkpoint = read_checkpoint(path)
        timm_models.load_weights(model, checkpoint.state, str(path), new_head=True)
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
        weights=str(path) if path else name if pretrained else "",
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

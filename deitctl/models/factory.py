"""Load and build classifiers: from aliases, timm names, hub repositories, folders, files."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from deitctl.config import MAX_SIZE
from deitctl.errors import ModelError
from deitctl.events import Reporter
from deitctl.home import expand_home
from deitctl.models import catalog, convert, timm_models
from deitctl.models.catalog import Architecture
from deitctl.models.checkpoint_io import (
    load_model_config,
    read_checkpoint,
    require_finite,
)
from deitctl.models.model_config import ModelConfig
from deitctl.models.outline import fetch_outline, read_outline
from deitctl.models.own_shape import read_architecture
from deitctl.models.sources import (
    choose_weights_file,
    has_weights,
    is_weights_file,
    require_timm_name,
    resolve_folder,
)
from deitctl.models.state_dicts import Checkpoint
from deitctl.models.stored_classes import StoredClasses, choose_class_names
from deitctl.models.taken import complete_preprocessing, say_what_was_taken
from deitctl.models.transformers_folder import describe_guess
from deitctl.models.vit import VisionTransformer
from deitctl.models.weights import fetch_weights, find_weights
from deitctl.sizes import ImageSize, format_size, long_side, short_side


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
    entry: str = ""
    """The dictionary of that file that was taken where there was a choice, `model_ema` for example."""


@torch.inference_mode(False)  # explanations need gradients, which inference tensors cannot have
def load_model(
    ref: str,
    *,
    weights: str = "",
    img_size: ImageSize = 0,
    download: bool = True,
    reporter: Reporter,
) -> LoadedModel:
    """Load a trained classifier in eval mode.

    Args:
        ref: an alias or timm name, `hf-hub:owner/name`, a model folder, or a weights file.
        weights: a weights file or model folder, for a `ref` that is a name.
        img_size: input size in pixels if not the weights' own; position embeddings are resized.
        download: False: for weights that would be downloaded, a model without values.
        reporter: shows downloads.

    Raises:
        ModelError: no such model, or weights that do not fit.
        WeightsNotFound: published weights that are neither local nor downloadable.
    """
    if not 0 <= short_side(img_size) <= long_side(img_size) <= MAX_SIZE:
        raise ModelError(
            f"img_size = {format_size(img_size)}: a model's input has 1 to {MAX_SIZE} pixels a side."
        )
    ref, weights = os.path.expanduser(ref), os.path.expanduser(weights)
    if weights:
        return _load_named(ref, weights, img_size, download, reporter)
    if (folder := resolve_folder(ref, reporter, download_weights=download)) is not None:
        return _load_folder(ref, folder, img_size, reporter)
    if is_weights_file(ref):
        return _load_deit(Path(ref), read_checkpoint(Path(ref)), None, img_size, reporter)
    arch = catalog.find(ref)
    if arch is not None:
        if not download and find_weights(arch) is None:
            return _describe_published(arch, img_size)
        path = fetch_weights(arch, reporter)
        return _load_deit(path, read_checkpoint(path), arch, img_size)
    require_timm_name(ref)
    if (name := timm_models.add_tag(ref)) != ref:
        reporter.note(f"{ref} means timm's weights {name}.")
    with reporter.task(f"load {name}", None, "bytes"):
        model, model_config = timm_models.load_published(name, img_size=img_size, download=download)
    return LoadedModel(model.eval(), model_config)


def _load_named(
    ref: str, weights: str, img_size: ImageSize, download: bool, reporter: Reporter
) -> LoadedModel:
    """Load weights whose architecture is named beside them."""
    if has_weights(ref):
        raise ModelError(
            f"{ref} has weights of its own.", "Leave --weights out, or name an architecture."
        )
    arch = catalog.find(ref)
    if arch is None:
        require_timm_name(ref)
    folder = resolve_folder(weights, reporter, download_weights=download)
    if folder is None and arch is None:
        return _load_timm_file(ref, Path(weights), img_size, reporter)
    if folder is None:
        path = Path(weights)
        return _load_deit(path, read_checkpoint(path), arch, img_size, reporter)
    loaded = _load_folder(weights, folder, img_size, reporter)
    name = loaded.model_config.architecture
    own = read_architecture(loaded.model_config)
    is_same = _is_same_deit(own, arch) if arch else name == ref.partition(".")[0]
    # Both were named by the user: a contradiction is refused, not resolved.
    if not is_same:
        own = catalog.find(name)
        raise ModelError(
            f"{weights} holds {name}, not {arch.alias if arch else ref}.",
            f"Use --model {own.alias if own else name}.",
        )
    return loaded


def find_architecture(ref: str, reporter: Reporter) -> Architecture | None:
    """Return the DeiT that `ref` means, None for a timm model; raise `ModelError` for neither."""
    if (folder := resolve_folder(ref, reporter, download_weights=False)) is not None:
        return read_architecture(load_model_config(folder))
    if is_weights_file(ref):
        checkpoint = read_outline(expand_home(ref))
        shapes = {k: tuple(v.shape) for k, v in convert.normalize_names(checkpoint.state).items()}
        stored, size = checkpoint.architecture, checkpoint.img_size
        return convert.infer_architecture(shapes, ref, stored, img_size=size)
    arch = catalog.find(ref)
    if arch is None:
        require_timm_name(ref)
    return arch


def _is_same_deit(a: Architecture | None, b: Architecture) -> bool:
    return a is not None and convert.has_same_backbone(a, b) and a.distilled == b.distilled


def _load_folder(ref: str, folder: Path, img_size: ImageSize, reporter: Reporter) -> LoadedModel:
    model_config = load_model_config(folder)
    if not model_config.num_classes:
        raise ModelError(
            f"{ref} has no classifier head.",
            f"Fine-tune it first: deitctl train DATA --model {ref}",
        )
    outline = fetch_outline(ref, folder)
    if sentence := describe_guess(folder, model_config.preprocessing):
        reporter.warn(sentence)
    path = choose_weights_file(ref, folder)
    checkpoint = outline or read_checkpoint(path)
    arch = read_architecture(model_config)
    if arch is None:
        has_names = model_config.class_names is not None
        model, model_config = timm_models.load_folder(folder, path, checkpoint.state, img_size)
        say_what_was_taken(
            path,
            model_config.architecture,
            model_config.preprocessing,
            checkpoint,
            reporter,
            is_imagenet=not has_names and model_config.class_names is not None,
        )
        return LoadedModel(model.eval(), model_config)
    size = img_size or model_config.preprocessing.img_size
    loaded = _load_deit(path, checkpoint, arch, size, reporter, model_config)
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
    if any(len(t) != inferred.num_classes for t in model_config.thresholds.values()):
        raise ModelError(
            f"{folder} has thresholds of {model_config.num_classes} classes, "
            f"its weights have {inferred.num_classes}.",
            "Leave deitctl.thresholds out of its config.json.",
        )
    # A distilled DeiT whose file has the class head alone cannot do what its config says.
    by_weights = model_config.head == "auto" or (arch.distilled and inferred.head == "cls")
    model_config = replace(
        model_config,
        head=inferred.head if by_weights else model_config.head,
        # The weights decide: config.json may be of another version of them.
        num_classes=inferred.num_classes,
    )
    return replace(loaded, model_config=model_config.at_size(inferred.preprocessing.img_size))


def _load_deit(
    path: Path,
    checkpoint: Checkpoint,
    arch: Architecture | None,
    img_size: ImageSize,
    reporter: Reporter | None = None,
    folder_config: ModelConfig | None = None,
) -> LoadedModel:
    """Make a DeiT of what was read of a file: that of a folder with its config, or one without.

    What was taken is reported; None for published weights.
    """
    state, lacks_head = convert.complete_heads(convert.normalize_names(checkpoint.state))
    require_finite(state, str(path))
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    inferred = convert.infer_architecture(
        shapes,
        str(path),
        checkpoint.architecture,
        own=[arch] if arch else [],
        img_size=checkpoint.img_size,
    )
    if arch is not None and not _is_same_deit(inferred, arch):
        raise ModelError(
            f"{path} holds {inferred.alias}, not {arch.alias}.", f"Use --model {inferred.alias}."
        )
    arch = replace(arch, img_size=inferred.img_size) if arch else inferred
    num_classes = convert.count_classes(state)
    if num_classes is None and (beside := checkpoint.classifier_beside):
        raise ModelError(
            f"{path} has no classifier head in its network, but {beside} beside it: what that reads, "
            "the class token or other features, is not stated.",
            "If it reads the class token after the norm, save it as the network's head.weight and "
            f"head.bias. Or fine-tune: deitctl train DATA --model {inferred.alias} --weights FILE.",
        )
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
    changes = convert.load_adapted(model, state, str(path), source=inferred)
    model_config = arch.to_model_config().at_size(size)
    if lacks_head:  # transformers' DeiTForImageClassification
        model_config = replace(model_config, head="cls")
        note = "without a distillation head: the class head classifies"
        checkpoint = replace(checkpoint, notes=(*checkpoint.notes, note))
    if num_classes != 1000:
        model_config = replace(
            model_config, num_classes=num_classes, class_names=None, descriptions=None
        )
    classes = StoredClasses()
    if folder_config is None or folder_config.class_names is None:
        classes = choose_class_names(checkpoint.class_lists, num_classes)
    model_config = _name_classes(model_config, classes)
    if folder_config is None:
        preprocessing = complete_preprocessing(model_config.preprocessing, checkpoint)
        model_config = replace(model_config, preprocessing=preprocessing)
    if reporter is not None:
        say_what_was_taken(
            path,
            inferred.alias,
            folder_config.preprocessing if folder_config else None,
            checkpoint,
            reporter,
            is_imagenet=num_classes == 1000
            and (folder_config is None or folder_config.class_names is None),
            classes=classes,
        )
    return LoadedModel(model.eval(), model_config, tuple(changes))


def _name_classes(model_config: ModelConfig, classes: StoredClasses) -> ModelConfig:
    if not classes.clause:
        return model_config
    return replace(model_config, class_names=classes.names, descriptions=classes.descriptions)


def _describe_published(arch: Architecture, img_size: ImageSize) -> LoadedModel:
    """Return a DeiT as its published weights make it, without them: its tensors have no memory."""
    size = img_size or arch.img_size
    with torch.device("meta"):
        model = VisionTransformer(
            convert.resize_architecture(arch, size), num_classes=1000, img_size=size
        )
    return LoadedModel(model.eval(), arch.to_model_config().at_size(size))


def _load_timm_file(name: str, path: Path, img_size: ImageSize, reporter: Reporter) -> LoadedModel:
    checkpoint = read_checkpoint(path)
    num_classes = timm_models.count_classes(checkpoint.state, name)
    if num_classes is None:
        raise ModelError(
            f"{path} has no classifier head of {name}.",
            f"Fine-tune it first: deitctl train DATA --model {name} --weights FILE.",
        )
    img_size = img_size or checkpoint.img_size
    model = timm_models.create_model(name, num_classes=num_classes, img_size=img_size)
    model_config = timm_models.read_model_config(model, name, num_classes)
    changes = timm_models.load_weights(
        model, checkpoint.state, str(path), new_head=False, img_size=checkpoint.img_size
    )
    classes = choose_class_names(checkpoint.class_lists, num_classes)
    say_what_was_taken(
        path,
        name,
        model_config.preprocessing,
        checkpoint,
        reporter,
        is_bare=True,
        is_imagenet=model_config.class_names is not None,
        classes=classes,
    )
    model_config = _name_classes(model_config, classes)
    preprocessing = complete_preprocessing(model_config.preprocessing, checkpoint)
    model_config = replace(model_config, preprocessing=preprocessing)
    model_config = model_config.at_size(img_size) if img_size else model_config
    return LoadedModel(model.eval(), model_config, tuple(changes))

"""From what a user calls a model to a model: aliases, timm names, hub names, folders, files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from deitctl.errors import ModelError, WeightsNotFound
from deitctl.events import Reporter
from deitctl.models import catalog, convert, timm_models
from deitctl.models.catalog import Architecture, load_imagenet_classes
from deitctl.models.checkpoint_io import (
    CONFIG,
    WEIGHTS,
    load_model_config,
    load_tensors,
    require_finite,
)
from deitctl.models.model_config import MAX_SIZE, ModelConfig
from deitctl.models.vit import VisionTransformer
from deitctl.models.weights import download, fetch_weights

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
HUB_PREFIX = "hf-hub:"


@dataclass(frozen=True)
class LoadedModel:
    """A classifier in eval mode, its card, and what was done to the weights on the way."""

    model: nn.Module
    model_config: ModelConfig
    changes: tuple[str, ...] = ()


@torch.inference_mode(False)  # weights made in the caller's inference mode could not be explained
def load_model(
    ref: str, *, weights: str = "", img_size: int = 0, reporter: Reporter
) -> LoadedModel:
    """Load a trained classifier for evaluation, prediction, export or teaching.

    Args:
        ref: an alias or timm name, `hf-hub:owner/name`, a model folder, or a weights file.
        weights: file with the weights, or a model folder, for a `ref` that is a name.
        img_size: another input size than the weights', in pixels; position embeddings are resized.
        reporter: where a download is shown.

    Raises:
        ModelError: no such model, or weights that do not fit.
        WeightsNotFound: published weights that are neither here nor to be had.
    """
    if not 0 <= img_size <= MAX_SIZE:
        raise ModelError(
            f"img_size = {img_size}: a model's input has 1 to {MAX_SIZE} pixels a side."
        )
    ref, weights = os.path.expanduser(ref), os.path.expanduser(weights)
    folder = _folder(ref, reporter)
    if folder is not None:
        return _load_folder(folder, img_size)
    if Path(ref).suffix in WEIGHT_SUFFIXES:
        return _load_file(Path(ref), None, img_size)
    arch = catalog.find(ref)
    if arch is not None:
        if weights and Path(weights).is_dir():
            return _checked(_load_folder(Path(weights), img_size), arch)
        return _load_file(
            Path(weights) if weights else fetch_weights(arch, reporter), arch, img_size
        )
    _require_timm(ref)
    if not weights:
        with reporter.task(f"load {ref}", None, "bytes"):
            model, model_config = timm_models.load_published(ref, img_size=img_size)
        return LoadedModel(model.eval(), model_config)
    if Path(weights).is_dir():
        return _load_folder(Path(weights), img_size)
    return _load_timm_file(ref, Path(weights), img_size)


def is_model_folder(ref: str) -> bool:
    """Say whether a reference means a folder here; a bare name does only if a model is in the folder."""
    path = Path(ref).expanduser()
    return path.is_dir() and ("/" in ref or (path / CONFIG).is_file())


def _folder(ref: str, reporter: Reporter) -> Path | None:
    """Return the model folder that `ref` means, fetching it from the hub if need be, or None if it means no folder."""
    if ref.startswith(HUB_PREFIX):
        repo_id = ref.removeprefix(HUB_PREFIX)
        try:
            config = download(repo_id, CONFIG, reporter)
        except WeightsNotFound as error:
            raise WeightsNotFound(
                f"{ref} cannot be loaded: {error.message}.",
                f"It takes a repository with {CONFIG} and {WEIGHTS}, as `deitctl push` of a run makes it. An exported file "
                f"in one is fetched first: hf download {repo_id} FILE.onnx; then --model FILE.onnx.",
            ) from error
        download(repo_id, WEIGHTS, reporter)
        return config.parent
    path = Path(ref).expanduser()
    if is_model_folder(ref):
        return path
    looks_like_path = "/" in ref or "\\" in ref or path.suffix in WEIGHT_SUFFIXES
    if looks_like_path and not path.exists():
        raise ModelError(f"There is no model file or folder {ref!r}.")
    if path.is_file() and path.name == WEIGHTS and (path.parent / CONFIG).is_file():
        return path.parent
    return None


def list_weight_files(ref: str, weights: str = "") -> list[Path]:
    """Return the files that a model named by a file or folder consists of; none for a published name."""
    start = Path(os.path.expanduser(weights or ref))
    if start.is_dir() and (weights or is_model_folder(ref)):
        return [
            file for n in (CONFIG, WEIGHTS, "pytorch_model.bin") if (file := start / n).is_file()
        ]
    return [start] if start.is_file() else []


def fetch_model_files(ref: str, reporter: Reporter) -> list[Path]:
    """Return the files of a model that is named, fetching them if need be; none if they cannot be had."""
    try:
        if (folder := _folder(ref, reporter)) is not None:
            return list_weight_files(str(folder), str(folder))
        arch = catalog.find(ref)
        return (
            [fetch_weights(arch, reporter)]
            if arch is not None
            else [timm_models.fetch(ref, reporter)]
        )
    except ModelError:  # said when it is loaded, should it have to be
        return []


def _require_timm(name: str) -> None:
    if name.lower().endswith(".onnx"):
        raise ModelError(
            f"{name} is an ONNX file, with which `deitctl predict` and `eval` alone can answer.",
            "Name its weights.",
        )
    if name.lower().endswith(
        ".pt2"
    ):  # torch.export.load falls back to unpickling anything, and evaluates expressions
        raise ModelError(
            f"{name} is a program that could do anything when torch loads it.",
            "Name its weights, or an ONNX file: deitctl export MODEL --to onnx.",
        )
    if Path(name).is_file():
        kinds = ", ".join(WEIGHT_SUFFIXES)
        raise ModelError(
            f"{name} is a file and no model.",
            f"Weights end in {kinds}; a model can be a folder too.",
        )
    if not timm_models.is_timm_model(name):
        hint = (
            timm_models.suggest_model(name)
            or "`deitctl models` lists the DeiT family; timm's names work too."
        )
        raise ModelError(f"There is no model {name!r}.", hint)


def _load_folder(folder: Path, img_size: int) -> LoadedModel:
    model_config = load_model_config(folder)
    arch = catalog.find(model_config.architecture)
    if arch is None:
        model, model_config = timm_models.load_folder(folder, img_size)
        return LoadedModel(model.eval(), model_config)
    file = next(
        (folder / n for n in (WEIGHTS, "pytorch_model.bin") if (folder / n).is_file()),
        folder / WEIGHTS,
    )
    loaded = _load_file(file, arch, img_size or model_config.preprocessing.img_size)
    known = (
        model_config
        if model_config.class_names is not None
        else replace(
            model_config,
            class_names=loaded.model_config.class_names,
            descriptions=loaded.model_config.descriptions,
        )
    )
    if len(known.class_names or ()) not in (0, loaded.model_config.num_classes):
        raise ModelError(
            f"{folder} names {model_config.num_classes} classes, its weights have {loaded.model_config.num_classes}."
        )
    head = loaded.model_config.head if known.head == "auto" else known.head
    known = replace(known, head=head, num_classes=loaded.model_config.num_classes)
    return replace(loaded, model_config=known.at_size(loaded.model_config.preprocessing.img_size))


def _load_file(path: Path, arch: Architecture | None, img_size: int) -> LoadedModel:
    state = convert.normalize_names(load_tensors(path))
    require_finite(state, str(path))
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    found = convert.infer_architecture(shapes, str(path))
    if arch is not None and (convert.body_shape(found), found.distilled) != (
        convert.body_shape(arch),
        arch.distilled,
    ):
        raise ModelError(
            f"{path} holds {found.alias}, not {arch.alias}.", f"Use --model {found.alias}."
        )
    arch = arch or found
    num_classes = convert.count_classes(state)
    if num_classes is None:
        raise ModelError(
            f"{path} has no classifier head.",
            "Fine-tune it first: deitctl train DATA --weights FILE.",
        )
    size = img_size or convert.infer_img_size(state, arch)
    with torch.device(
        "meta"
    ):  # to draw weights that are replaced at once takes longer than to read them
        model = VisionTransformer(
            convert.resize_architecture(arch, size), num_classes=num_classes, img_size=size
        )
    changes = convert.load_into(model, state, str(path))
    model_config = arch.to_model_config().at_size(size)
    if num_classes != 1000:
        model_config = replace(
            model_config, num_classes=num_classes, class_names=None, descriptions=None
        )
    return LoadedModel(model.eval(), model_config, tuple(changes))


def _load_timm_file(name: str, path: Path, img_size: int) -> LoadedModel:
    state = load_tensors(path)
    classes = timm_models.count_classes(state, name)
    model = timm_models.create_model(name, num_classes=classes, img_size=img_size)
    model_config = timm_models.read_model_config(model, name, classes)
    timm_models.load_weights(model, state, str(path), new_head=False)
    return LoadedModel(model.eval(), model_config.at_size(img_size) if img_size else model_config)


def _checked(loaded: LoadedModel, arch: Architecture) -> LoadedModel:
    found = catalog.find(loaded.model_config.architecture)
    if found is None or (convert.body_shape(found), found.distilled) != (
        convert.body_shape(arch),
        arch.distilled,
    ):
        raise ModelError(f"The folder holds {loaded.model_config.architecture}, not {arch.alias}.")
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
    reporter: Reporter,
) -> LoadedModel:
    """Build a classifier to train: `ref` and `weights` as in `load_model`.

    Args:
        ref: what to train; a folder or a file starts from its weights.
        class_names: the data's classes, in the order of the logits.
        descriptions: their names for people.
        img_size: side of the input in pixels; 0 for the model's own.
        drop_path_rate: stochastic depth of the last block.
        pretrained: start from published weights where `weights` names none.
        weights: file or folder to start from.
        distilled: whether a DeiT has a distillation token; None for what the name says.
        reporter: where a download is shown.
    """
    arch = find_architecture(ref, reporter)
    ref, weights = os.path.expanduser(ref), os.path.expanduser(weights)
    start = weights or (ref if _folder(ref, reporter) or Path(ref).is_file() else "")
    if arch is None:
        return _build_timm(
            ref, start, class_names, descriptions, img_size, drop_path_rate, pretrained, reporter
        )
    if distilled is not None:
        arch = catalog.get_distilled(arch) if distilled else catalog.get_plain(arch)
    size = img_size or arch.img_size
    model = VisionTransformer(
        convert.resize_architecture(arch, size),
        num_classes=len(class_names),
        img_size=size,
        drop_path_rate=drop_path_rate,
    )
    changes: list[str] = []
    if start or pretrained:
        state, known = _starting_weights(start, arch, reporter)
        rows = match_head_rows(class_names, known)
        if rows is not None:
            state = convert.take_head_rows(state, rows)
            if len(rows) != len(known or ()):
                changes.append(
                    f"the head keeps the weights' rows of the data's {len(rows)} classes"
                )
        elif known is not None:
            state = convert.without_head(state)
        changes += convert.load_into(model, state, start or arch.hub_id)
    model_config = replace(
        _normalized_as(arch.to_model_config(), _folder(start, reporter) if start else None),
        num_classes=len(class_names),
        class_names=tuple(class_names),
        descriptions=tuple(descriptions) if descriptions is not None else None,
    )
    return LoadedModel(model, model_config.at_size(size), tuple(changes))


def find_architecture(ref: str, reporter: Reporter) -> Architecture | None:
    """Return the DeiT that a reference means, None for a model of timm's; raise `ModelError` if it means nothing."""
    folder = _folder(ref, reporter)
    if folder is not None:
        return catalog.find(load_model_config(folder).architecture)
    if Path(ref).suffix in WEIGHT_SUFFIXES:
        state = convert.normalize_names(load_tensors(Path(ref)))
        return convert.infer_architecture({k: tuple(v.shape) for k, v in state.items()}, ref)
    arch = catalog.find(ref)
    if arch is None:
        _require_timm(ref)
    return arch


def _starting_weights(
    start: str, arch: Architecture, reporter: Reporter
) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Return a state dict to start from and the names of its classes, if known."""
    folder = _folder(start, reporter) if start else None
    path = folder / WEIGHTS if folder else Path(start) if start else fetch_weights(arch, reporter)
    state = convert.normalize_names(load_tensors(path))
    require_finite(state, str(path))
    names = load_model_config(folder).class_names if folder else None
    if names is None and convert.count_classes(state) == 1000:
        names = load_imagenet_classes()[0]
    return state, names


def match_head_rows(wanted: Sequence[str], known: Sequence[str] | None) -> list[int] | None:
    """Return where each wanted class stands among the known ones, or None unless all are there."""
    index = {name: i for i, name in enumerate(known or ())}
    return [index[n] for n in wanted] if all(n in index for n in wanted) else None


def _build_timm(
    ref: str,
    start: str,
    class_names: Sequence[str],
    descriptions: Sequence[str] | None,
    img_size: int,
    drop_path_rate: float,
    pretrained: bool,
    reporter: Reporter,
) -> LoadedModel:
    folder = _folder(start, reporter) if start else None
    own_folder = _folder(ref, reporter)
    name = load_model_config(own_folder).architecture if own_folder else ref
    args = (
        {k: v for k, v in load_model_config(own_folder).model_args.items() if k != "img_size"}
        if own_folder
        else {}
    )
    size = img_size or (
        load_model_config(own_folder).preprocessing.img_size
        if own_folder
        else timm_models.get_native_size(name)
    )
    classes = len(class_names)
    if pretrained and not start:
        with reporter.task(f"load {name}", None, "bytes"):
            model, _ = timm_models.load_published(
                name, num_classes=classes, img_size=size, drop_path_rate=drop_path_rate
            )
    else:
        model = timm_models.create_model(
            name, num_classes=classes, img_size=size, drop_path_rate=drop_path_rate, model_args=args
        )
    if start:
        file = folder / WEIGHTS if folder else Path(start)
        timm_models.load_weights(model, load_tensors(file), str(file), new_head=True)
    model_config = replace(
        _normalized_as(timm_models.read_model_config(model, name, classes), folder or own_folder),
        class_names=tuple(class_names),
        model_args=args,
        descriptions=tuple(descriptions) if descriptions is not None else None,
    )
    return LoadedModel(model, model_config.at_size(size))


def _normalized_as(model_config: ModelConfig, folder: Path | None) -> ModelConfig:
    """Return the card with the normalization of a folder's weights: features mean nothing under another one."""
    if folder is None:
        return model_config
    own = load_model_config(folder).preprocessing
    return replace(
        model_config,
        preprocessing=replace(
            model_config.preprocessing, mean=own.mean, std=own.std, interpolation=own.interpolation
        ),
    )

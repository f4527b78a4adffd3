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
    CONFIG,
    WEIGHTS,
    find_weights_file,
    load_model_config,
    load_tensors,
    require_finite,
)
from deitctl.models.model_config import ModelConfig
from deitctl.models.vit import VisionTransformer
from deitctl.models.weights import download as download_file
from deitctl.models.weights import fetch_weights, find_local_weights, find_weights
from deitctl.paths import suggest_path

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
HUB_PREFIX = "hf-hub:"


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
    if (folder := _resolve_folder(ref, reporter)) is not None:
        return _load_folder(folder, img_size)
    if Path(ref).suffix in WEIGHT_SUFFIXES:
        return _load_deit_file(Path(ref), None, img_size)
    arch = catalog.find(ref)
    if arch is not None:
        if weights and Path(weights).is_dir():
            loaded = _load_folder(Path(weights), img_size)
            name = loaded.model_config.architecture
            # Both were named by the user: a contradiction is refused, not resolved.
            if not _is_same_deit(catalog.find(name), arch):
                raise ModelError(f"The folder holds {name}, not {arch.alias}.")
            return loaded
        if not weights and not download and find_weights(arch) is None:
            return _describe_published(arch, img_size)
        path = Path(weights) if weights else fetch_weights(arch, reporter)
        return _load_deit_file(path, arch, img_size)
    _require_timm_name(ref)
    if not weights:
        if (name := timm_models.add_tag(ref)) != ref:
            reporter.note(f"{ref} means timm's weights {name}.")
        with reporter.task(f"load {name}", None, "bytes"):
            model, model_config = timm_models.load_published(
                name, img_size=img_size, download=download
            )
        return LoadedModel(model.eval(), model_config)
    if Path(weights).is_dir():
        return _load_folder(Path(weights), img_size)
    return _load_timm_file(ref, Path(weights), img_size)


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
    start = weights or (ref if _resolve_folder(ref, reporter) or Path(ref).is_file() else "")
    if arch is not None:
        if distilled is not None:
            arch = catalog.get_distilled(arch) if distilled else catalog.get_plain(arch)
        source = None
        if start or pretrained:
            source = _read_start(start, arch, start_classes, bool(distilled), download, reporter)
        loaded = _build_deit(arch, start, source, class_names, img_size, drop_path_rate)
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
    if (folder := _resolve_folder(ref, reporter)) is not None:
        return catalog.find(load_model_config(folder).architecture)
    if Path(ref).suffix in WEIGHT_SUFFIXES:
        state = convert.normalize_names(load_tensors(Path(ref)))
        return convert.infer_architecture({k: tuple(v.shape) for k, v in state.items()}, ref)
    arch = catalog.find(ref)
    if arch is None:
        _require_timm_name(ref)
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
    start = weights or (ref if list_weight_files(ref) or ref.startswith(HUB_PREFIX) else "")
    if not start:
        return set(class_names) <= set(load_imagenet_classes()[0])
    source = _read_start(start, arch, start_classes, False, True, reporter)
    if source.class_names is None:
        return convert.count_classes(source.state) == len(class_names)
    return set(class_names) <= set(source.class_names)


def name_weights(ref: str, weights: str = "") -> str:
    """Return timm's name of the published weights that a name means, `architecture.tag`.

    What loads no published weights (`weights`, a file, a folder, a hub repository) is returned as
    it is, and so is an unknown name.
    """
    if weights or ref.startswith(HUB_PREFIX) or list_weight_files(ref):
        return ref
    if (arch := catalog.find(ref)) is not None:
        return arch.full_name
    return timm_models.add_tag(ref)


def needs_download(ref: str) -> bool:
    """Return whether the published weights of a name are not here, and the hub has them.

    Raises:
        WeightsNotFound: they are neither here nor there.
    """
    if ref.startswith(HUB_PREFIX):
        return False
    if (arch := catalog.find(ref)) is not None:
        return find_weights(arch) is None
    return timm_models.needs_download(ref)


def is_model_folder(ref: str) -> bool:
    """Return whether `ref` is a local folder; a bare name only if the folder holds a model."""
    path = expand_home(ref)
    # A folder that happens to be called deit_tiny must not hide the architecture.
    return path.is_dir() and ("/" in ref or (path / CONFIG).is_file())


def list_weight_files(ref: str, weights: str = "") -> list[Path]:
    """Return the files of a model that is a local file or folder; none for a published name."""
    start = Path(os.path.expanduser(weights or ref))
    if start.is_dir() and (weights or is_model_folder(ref)):
        names = (CONFIG, WEIGHTS, "pytorch_model.bin")
        return [start / name for name in names if (start / name).is_file()]
    return [start] if start.is_file() else []


def fetch_model_files(ref: str, reporter: Reporter) -> list[Path]:
    """Return the files of a published model, downloading them if need be; none if that fails."""
    try:
        if (folder := _resolve_folder(ref, reporter)) is not None:
            return list_weight_files(str(folder), str(folder))
        arch = catalog.find(ref)
        path = timm_models.fetch(ref, reporter) if arch is None else fetch_weights(arch, reporter)
        return [path]
    except ModelError:  # loading the model raises it again, if it comes to that
        return []


def _resolve_folder(ref: str, reporter: Reporter) -> Path | None:
    """Return the model folder of `ref`, downloaded from the hub if need be; None without one."""
    if ref.startswith(HUB_PREFIX):
        repo_id = ref.removeprefix(HUB_PREFIX)
        try:
            config = download_file(repo_id, CONFIG, reporter)
        except WeightsNotFound as error:
            raise WeightsNotFound(
                f"{ref} cannot be loaded: {error.message}.",
                f"It takes a repository with {CONFIG} and {WEIGHTS}, as `deitctl push` makes it. "
                f"Download an exported file first: hf download {repo_id} FILE.onnx; "
                "then --model FILE.onnx.",
            ) from error
        download_file(repo_id, WEIGHTS, reporter)
        return config.parent
    path = expand_home(ref)
    if is_model_folder(ref):
        return path
    is_path = "/" in ref or "\\" in ref or path.suffix in WEIGHT_SUFFIXES
    if is_path and not path.exists():
        raise ModelError(f"There is no model file or folder {ref!r}.", suggest_path(ref))
    # The file of a model folder stands for the folder: alone it has no class names and no
    # preprocessing.
    if path.is_file() and path.name == WEIGHTS and (path.parent / CONFIG).is_file():
        return path.parent
    return None


def _require_timm_name(name: str) -> None:
    if name.lower().endswith(".onnx"):
        raise ModelError(
            f"{name} is an ONNX file, which only `deitctl predict` and `eval` can run.",
            "Name its weights.",
        )
    if name.lower().endswith(".pt2"):
        # torch.export.load falls back to unpickling, and evaluates expressions
        raise ModelError(
            f"{name} is a program that could run any code when torch loads it.",
            "Name its weights, or an ONNX file: deitctl export MODEL --to onnx.",
        )
    if Path(name).is_file():
        raise ModelError(
            f"{name} is a file and no model.",
            f"Weights end in {', '.join(WEIGHT_SUFFIXES)}; a model can be a folder too.",
        )
    if not timm_models.is_timm_model(name):
        raise ModelError(
            f"There is no model {name!r}.",
            timm_models.suggest_model(name)
            or "`deitctl models` lists the DeiT family; timm's names work too.",
        )


def _is_same_deit(a: Architecture | None, b: Architecture) -> bool:
    return a is not None and convert.has_same_backbone(a, b) and a.distilled == b.distilled


def _load_folder(folder: Path, img_size: int) -> LoadedModel:
    model_config = load_model_config(folder)
    arch = catalog.find(model_config.architecture)
    if arch is None:
        model, model_config = timm_models.load_folder(folder, img_size)
        return LoadedModel(model.eval(), model_config)
    loaded = _load_deit_file(
        find_weights_file(folder), arch, img_size or model_config.preprocessing.img_size
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


def _load_deit_file(path: Path, arch: Architecture | None, img_size: int) -> LoadedModel:
    state = convert.normalize_names(load_tensors(path))
    require_finite(state, str(path))
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    inferred = convert.infer_architecture(shapes, str(path))
    if arch is not None and not _is_same_deit(inferred, arch):
        raise ModelError(
            f"{path} holds {inferred.alias}, not {arch.alias}.", f"Use --model {inferred.alias}."
        )
    arch = arch or inferred
    num_classes = convert.count_classes(state)
    if num_classes is None:
        raise ModelError(
            f"{path} has no classifier head.",
            "Fine-tune it first: deitctl train DATA --weights FILE.",
        )
    size = img_size or convert.infer_img_size(state, arch)
    # Drawing weights that are replaced at once takes longer than reading them.
    with torch.device("meta"):
        model = VisionTransformer(
            convert.resize_architecture(arch, size), num_classes=num_classes, img_size=size
        )
    changes = convert.load_adapted(model, state, str(path))
    model_config = arch.to_model_config().at_size(size)
    if num_classes != 1000:
        model_config = replace(
            model_config, num_classes=num_classes, class_names=None, descriptions=None
        )
    return LoadedModel(model.eval(), model_config, tuple(changes))


def _describe_published(arch: Architecture, img_size: int) -> LoadedModel:
    """Return a DeiT as its published weights make it, without them: its tensors have no memory."""
    size = img_size or arch.img_size
    with torch.device("meta"):
        model = VisionTransformer(
            convert.resize_architecture(arch, size), num_classes=1000, img_size=size
        )
    return LoadedModel(model.eval(), arch.to_model_config().at_size(size))


def _load_timm_file(name: str, path: Path, img_size: int) -> LoadedModel:
    state = load_tensors(path)
    num_classes = timm_models.count_classes(state, name)
    model = timm_models.create_model(name, num_classes=num_classes, img_size=img_size)
    model_config = timm_models.read_model_config(model, name, num_classes)
    timm_models.load_weights(model, state, str(path), new_head=False)
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
        if state["pos_embed"].is_meta:  # matched like any other, and nothing is loaded
            with torch.device("meta"):
                target = build()
        changes += convert.load_adapted(target, state, start or arch.hub_id)
    folder = _resolve_folder(start, SilentReporter()) if start else None
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
        folder = _resolve_folder(start, reporter)
        path: Path | None = folder / WEIGHTS if folder else Path(start)
    else:
        folder, (arch, path) = None, _find_published(arch, distilled, download, reporter)
    if path is None:
        with torch.device("meta"):
            published = VisionTransformer(arch, num_classes=1000, img_size=arch.img_size)
        return _Start(published.state_dict(), load_imagenet_classes()[0], arch.full_name)
    state = convert.normalize_names(load_tensors(path))
    require_finite(state, str(path))
    names = load_model_config(folder).class_names if folder else None
    count = convert.count_classes(state)
    if class_names:
        require_count(class_names, count, str(path))
        names = tuple(class_names)
    if names is None and count == 1000:
        names = load_imagenet_classes()[0]
    return _Start(state, names, str(path))


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
        plain = catalog.get_plain(arch)
        path = find_local_weights(plain) if distilled and plain != arch else None
        if path is None:
            raise
        reporter.warn(f"{error.message} The student starts from the plain weights {path}.")
        return plain, path


def require_count(class_names: Sequence[str], count: int | None, where: str) -> None:
    """Raise `ModelError` unless there is a name for each class of the weights in `where`."""
    if count is None:
        raise ModelError(f"{where} has no classifier head that --classes could name.")
    if len(class_names) != count:
        raise ModelError(
            f"--classes names {len(class_names)} classes, and {where} has {count}.",
            "Name the file with the classes that it was trained on, in their order.",
        )


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
    start_folder = _resolve_folder(start, reporter) if start else None
    ref_folder = _resolve_folder(ref, reporter)
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
        path = start_folder / WEIGHTS if start_folder else Path(start)
        timm_models.load_weights(model, load_tensors(path), str(path), new_head=True)
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

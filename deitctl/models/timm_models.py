"""Classifiers from timm: teachers, and students that are no DeiT. Imports timm lazily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deitctl.errors import ModelError, WeightsNotFound
from deitctl.events import Reporter
from deitctl.models.adapt import adapt_input_conv, resample_positions
from deitctl.models.catalog import ARCHITECTURES, TIMM_TAGS, load_imagenet_classes
from deitctl.models.checkpoint_io import (
    CONFIG,
    WEIGHTS,
    load_model_config,
    require_finite,
)
from deitctl.models.model_config import ModelConfig, Preprocessing, parse_preprocessing
from deitctl.models.weights import download, require_hub, require_published
from deitctl.paths import suggest_path
from deitctl.sizes import ImageSize, format_size, height_width, make_size


def is_timm_model(name: str) -> bool:
    """Return whether timm has an architecture of this name, with or without a weights tag."""
    import timm

    return bool(timm.is_model(name.partition(".")[0]))


def is_plain_vit(name: str) -> bool:
    """Return whether timm builds a `vit_*` model as its `VisionTransformer`, as it does not DINOv3's, an `Eva`."""
    if not (name.startswith("vit_") and is_timm_model(name)):
        return False
    import timm

    module = timm.model_entrypoint(name.partition(".")[0]).__module__
    return module.rpartition(".")[2] in ("vision_transformer", "vision_transformer_hybrid")


def drop_alike(model: nn.Module, rate: float) -> bool:
    """Drop the branches of every block of a ViT of timm's at one rate; return whether it is one.

    timm's rates rise with the depth; these are those of deit/models_v2.py.
    """
    from timm.layers.drop import DropPath

    blocks = getattr(model, "blocks", None)
    blocks = list(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else []
    paths = ("drop_path1", "drop_path2")
    if not blocks or not all(hasattr(block, path) for block in blocks for path in paths):
        return False
    for block in blocks:
        for path in paths:
            setattr(block, path, DropPath(rate))
    return True


def suggest_model(name: str) -> str:
    """Return a "Did you mean" line with the nearest names of models, deitctl's and timm's, and of runs."""
    import timm

    return suggest_path(name, *(a.alias for a in ARCHITECTURES), *timm.list_models())


def add_tag(name: str) -> str:
    """Return a timm name with the tag of its weights: `TIMM_TAGS`, else timm's present default."""
    if "." in name:
        return name
    if name in TIMM_TAGS:
        return f"{name}.{TIMM_TAGS[name]}"
    import timm

    cfg = timm.get_pretrained_cfg(name)
    return f"{name}.{cfg.tag}" if cfg and cfg.tag else name


def _get_pretrained_cfg(name: str) -> Any:
    """Return timm's config of published weights, or None; raise `ModelError` for a wrong tag."""
    import timm

    try:
        return timm.get_pretrained_cfg(add_tag(name))
    except RuntimeError as error:
        raise ModelError(
            f"timm has no weights {name!r}.", f"Leave out {name.partition('.')[2]!r}."
        ) from error


def read_preprocessing(name: str) -> Preprocessing:
    """Return the preprocessing that timm gives an architecture, with or without published weights."""
    cfg = _get_pretrained_cfg(name)
    return parse_preprocessing(cfg.to_dict() if cfg else {})


def is_published_headless(name: str) -> bool:
    """Return whether a timm model's published weights have no classifier."""
    cfg = _get_pretrained_cfg(name) if is_timm_model(name) else None
    return cfg is not None and not cfg.num_classes


def get_native_size(name: str) -> ImageSize:
    """Return the input size in pixels of a model's published weights, 224 if there are none."""
    cfg = _get_pretrained_cfg(name)
    return make_size(*map(int, cfg.input_size[-2:])) if cfg else 224


def create_model(
    name: str,
    *,
    num_classes: int | None,
    img_size: ImageSize = 0,
    drop_path_rate: float = 0.0,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build a timm classifier.

    Args:
        name: timm's.
        num_classes: None for timm's default.
        img_size: input size in pixels; 0 for timm's default. Ignored by models without it, such as
            convnets.
        drop_path_rate: stochastic depth rate; 0 for timm's default. Ignored by models without it.
        model_args: further arguments.
        pretrained: load published weights; timm resizes position embeddings and replaces a head of
            another class count.
    """
    import timm

    # timm has no list of a model's arguments: the constructor's TypeError names the one that it
    # lacks.
    optional = {k: v for k, v in (("img_size", img_size), ("drop_path_rate", drop_path_rate)) if v}
    kwargs: dict[str, Any] = {**optional, **(model_args or {})}
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    while True:
        try:
            # The tag decides the preprocessing, of models without published weights too.
            return timm.create_model(add_tag(name), pretrained=pretrained, **kwargs)
        except TypeError as error:
            refused = next((k for k in optional if k in kwargs and repr(k) in str(error)), None)
            if refused is None:
                raise ModelError(f"timm cannot build {name}: {error}.") from error
            del kwargs[refused]
        except AssertionError as error:
            raise ModelError(
                f"timm cannot build {name} at {format_size(img_size)} pixels: {error}."
            ) from error
        except (
            RuntimeError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
            ArithmeticError,
        ) as error:
            if pretrained:
                raise  # the hub's errors, for load_published
            raise ModelError(
                f"timm cannot build {name}: {' '.join(str(error).split())[:160]}."
            ) from error


def require_filled(model: nn.Module, name: str, img_size: ImageSize) -> None:
    """Refuse an input that the patches of timm's ViT do not fill, which its forward pass would.

    Args:
        model: as `create_model` builds it.
        name: timm's.
        img_size: of the input in pixels, 0 for the model's own.
    """
    from timm.models.vision_transformer import VisionTransformer

    if not img_size or not isinstance(model, VisionTransformer):
        return
    patches: Any = model.patch_embed
    sides = [
        (side, patch)
        for side, patch in zip(height_width(img_size), patches.patch_size, strict=True)
    ]
    if patches.strict_img_size and any(side % patch for side, patch in sides):
        nearest = make_size(*(max(1, round(side / patch)) * patch for side, patch in sides))
        raise ModelError(
            f"{name} has patches of {patches.patch_size[0]} pixels, which do not fill {format_size(img_size)}.",
            f"Use --img-size {format_size(nearest)}.",
        )


def read_model_config(model: nn.Module, name: str, num_classes: int) -> ModelConfig:
    """Return the config of a timm model from its `pretrained_cfg`."""
    cfg = dict(getattr(model, "pretrained_cfg", {}) or {})
    names = descriptions = None
    # A thousand logits are taken for ImageNet-1k only where the published weights have them too.
    if num_classes == 1000 and int(cfg.get("num_classes") or 0) == 1000:
        names, descriptions = load_imagenet_classes()
    return ModelConfig(
        architecture=str(cfg.get("architecture") or name.partition(".")[0]),
        num_classes=num_classes,
        class_names=names,
        descriptions=descriptions,
        preprocessing=parse_preprocessing(cfg),
    )


def describe_layers(model: nn.Module) -> dict[str, Any]:
    """Return `classifier`, `first_conv` and `fixed_input_size` of a model's `pretrained_cfg`."""
    cfg = dict(getattr(model, "pretrained_cfg", {}) or {})
    classifier = cfg.get("classifier") or "head"
    return {
        "classifier": (classifier,) if isinstance(classifier, str) else tuple(classifier),
        "first_conv": str(cfg.get("first_conv") or ""),
        "fixed_input_size": bool(cfg.get("fixed_input_size")),
    }


def get_layer_ids(model: nn.Module) -> dict[str, int]:
    """Return each parameter's layer as timm groups them, 0 at the input, or raise `ModelError`."""
    # reverse: parameters to layers; the default maps layers to parameters.
    from timm.models import group_parameters

    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        raise ModelError(
            "timm does not say which layers this model has.", "Leave optim.layer_decay at 1."
        )
    ids = group_parameters(model, matcher(coarse=False), reverse=True)
    return {name: int(layer) for name, layer in ids.items()}


def load_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    *,
    new_head: bool,
    img_size: ImageSize = 0,
) -> list[str]:
    """Load a state dict strictly; with `new_head` the classifier is set to zero instead.

    One without values (meta tensors) is matched, and the model keeps its own.

    Args:
        model: into which it goes.
        state: by timm's names.
        where: names the file.
        new_head: whether the data's classes are others.
        img_size: input size of the weights in pixels, 0 where it is not stated: a square one.

    Returns:
        The changes, as sentences.

    Raises:
        ModelError: the state dict does not fit, or holds infinite or NaN values.
    """
    own = model.state_dict()
    state, changes = resample_positions(model, state, img_size)
    if new_head:
        state = _adapt_first_conv(model, state, own)
        heads = tuple(f"{name}." for name in describe_layers(model)["classifier"])
        state = {k: v for k, v in state.items() if not k.startswith(heads)}
        # Zero makes all classes equally likely. With timm's initialization, meant for a thousand
        # classes, a few classes start at ten times the loss of a guess in some families, and a
        # linear probe takes epochs to recover.
        state |= {k: torch.zeros_like(v) for k, v in own.items() if k.startswith(heads)}
    # What has another shape, or is not the model's, stays and is refused below.
    state |= {
        k: own[k] for k, v in state.items() if v.is_meta and k in own and own[k].shape == v.shape
    }
    require_finite(state, where)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        mismatch = _first_mismatch(error)
        kind = "architecture or input size" if _depends_on_size(mismatch) else "architecture"
        raise ModelError(f"{where} holds weights of another {kind}: {mismatch}") from error
    return changes


def _depends_on_size(text: str) -> bool:
    """Return whether a message names a parameter whose shape may follow from the input's size."""
    return any(word in text for word in ("pos_embed", "relative_position", "rel_pos"))


def _adapt_first_conv(
    model: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return weights whose first layer has the model's input channels, as timm adapts published ones."""
    cfg = dict(getattr(model, "pretrained_cfg", {}) or {})
    layers = cfg.get("first_conv") or ()
    adapted = dict(state)
    for name in (layers,) if isinstance(layers, str) else layers:
        stored, target = state.get(f"{name}.weight"), own.get(f"{name}.weight")
        if stored is not None and target is not None and stored.ndim == target.ndim == 4:
            adapted[f"{name}.weight"] = adapt_input_conv(stored, target.shape[1])
    return adapted


def has_zero_heads(model: nn.Module) -> bool:
    """Return whether the classifier is new, as `load_weights` leaves it."""
    names = describe_layers(model)["classifier"]
    return not any(p.any() for name in names for p in model.get_submodule(name).parameters())


def _require_same_shapes(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    for name, parameter in model.named_parameters():
        if name not in state or state[name].shape != parameter.shape:
            actual = tuple(state[name].shape) if name in state else "missing"
            kind = "architecture or input size" if _depends_on_size(name) else "architecture"
            raise ModelError(
                f"{where} holds weights of another {kind}: "
                f"{name} is {actual}, not {tuple(parameter.shape)}."
            )


def _first_mismatch(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()[1:]]
    return (lines[0] if lines else str(error))[:160]


def load_published(
    name: str,
    *,
    num_classes: int | None = None,
    img_size: ImageSize = 0,
    drop_path_rate: float = 0.0,
    model_args: Mapping[str, Any] | None = None,
    download: bool = True,
) -> tuple[nn.Module, ModelConfig]:
    """Build a timm model with its published weights, or raise `WeightsNotFound`.

    Args:
        name: timm's.
        num_classes: see `create_model`, and so are `img_size`, `drop_path_rate` and `model_args`.
        download: False: weights that would be downloaded are left random.
    """
    name = add_tag(name)
    try:
        has_weights = not needs_download(name)
        model = create_model(
            name,
            num_classes=num_classes,
            img_size=img_size,
            drop_path_rate=drop_path_rate,
            model_args=model_args,
            pretrained=has_weights or download,
        )
        cfg = _get_pretrained_cfg(name)
        # timm has drawn a new head for another class count; it is zeroed, see load_weights.
        if num_classes not in (None, int(cfg.num_classes) if cfg else None):
            load_weights(model, model.state_dict(), name, new_head=True)
    except Exception as error:  # timm and the hub raise dozens of kinds: connection, HTTP, hash
        if isinstance(error, ModelError) and not isinstance(error, WeightsNotFound):
            raise
        if model_args and "loading state_dict" in str(error):  # torch's, for another shape
            shape = ", ".join(f"{key} = {value}" for key, value in model_args.items())
            raise ModelError(
                f"The weights of {name} do not fit {shape}: {_first_mismatch(error)}",
                "Leave model. settings out, or --no-pretrained trains from scratch.",
            ) from error
        raise _weights_not_found(name) from error
    if not model.num_classes:
        raise ModelError(
            f"{name} has no classifier head.",
            "Fine-tune it first: deitctl train DATA --model " + name,
        )
    model_config = read_model_config(model, name, int(model.num_classes))  # type: ignore[arg-type]
    return model, model_config.at_size(img_size) if img_size else model_config


def needs_download(name: str) -> bool:
    """Return whether published weights are not in the hub's cache, and can be fetched, or raise
    `WeightsNotFound`."""
    if is_cached(name):
        return False
    # Without this check a machine without a network waits for minutes of the client's retries.
    require_hub()
    if hub_id := _get_hub_id(name):
        require_published(hub_id, CONFIG)  # weights have one of several names
    elif not getattr(_get_pretrained_cfg(name), "url", ""):  # some are elsewhere
        raise _weights_not_found(name)
    return True


def fetch(name: str, reporter: Reporter) -> Path:
    """Return the file of published weights, downloaded if need be, or raise `WeightsNotFound`."""
    hub_id = _get_hub_id(name) if is_timm_model(name) else ""
    if not hub_id:
        raise _weights_not_found(name)
    return download(hub_id, WEIGHTS, reporter)


def _weights_not_found(name: str) -> WeightsNotFound:
    where = f"https://huggingface.co/{_get_hub_id(name)}" if _get_hub_id(name) else "the hub"
    return WeightsNotFound(
        f"The weights of {name} are not on this machine and cannot be downloaded.",
        f"Fetch model.safetensors from {where}, then pass --weights FILE.",
    )


def count_classes(state: Mapping[str, Tensor], name: str) -> int | None:
    """Return the number of classes of the classifier in a timm model's state dict, None without one."""
    cfg = _get_pretrained_cfg(name)
    classifier = (cfg.classifier if cfg else None) or "head"
    first = classifier if isinstance(classifier, str) else classifier[0]
    weight = state.get(f"{first}.weight")
    return None if weight is None else len(weight)


def _get_hub_id(name: str) -> str:
    """Return the hub repository of a timm model's weights, or the empty string."""
    cfg = _get_pretrained_cfg(name)
    if cfg is None:
        return ""
    hub_id = str(cfg.hf_hub_id or "")
    # older timm versions name the owner only
    return f"{hub_id}{cfg.architecture}.{cfg.tag}" if hub_id.endswith("/") else hub_id


def is_cached(name: str) -> bool:
    """Return whether a model's published weights are in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    hub_id = _get_hub_id(name)
    return bool(hub_id) and isinstance(try_to_load_from_cache(hub_id, WEIGHTS), str)


def load_folder(
    folder: Path, file: Path, state: Mapping[str, Tensor], img_size: ImageSize = 0
) -> tuple[nn.Module, ModelConfig]:
    """Make the model of a folder that is no DeiT's.

    Args:
        folder: of timm's or transformers' layout.
        file: its weights, for messages.
        state: what was read of them. Meta tensors are matched, and the model has no values.
        img_size: input size in pixels; 0 for its own.
    """
    model_config = load_model_config(folder)
    trained_size = model_config.preprocessing.img_size
    model_config = model_config.at_size(img_size) if img_size else model_config
    if not is_timm_model(model_config.architecture):
        raise ModelError(
            f"{folder} holds {model_config.architecture!r}, which timm does not have.",
            suggest_model(model_config.architecture),
        )
    # Passed apart, because only some models take it and the user's size goes before the folder's.
    model_args = {k: v for k, v in model_config.model_args.items() if k != "img_size"}

    def build() -> nn.Module:
        return create_model(
            model_config.architecture,
            num_classes=model_config.num_classes,
            img_size=model_config.preprocessing.img_size,
            model_args=model_args,
        )

    # config.json is untrusted: allocate nothing before its sizes are checked
    with torch.device("meta"):
        model = build()
    fitted, _ = resample_positions(model, state, trained_size)
    _require_same_shapes(model, fitted, str(file))
    if not any(value.is_meta for value in state.values()):
        model = build()
        load_weights(model, state, str(file), new_head=False, img_size=trained_size)
    if model_config.class_names is None and model_config.num_classes == 1000:
        names, descriptions = load_imagenet_classes()
        model_config = replace(model_config, class_names=names, descriptions=descriptions)
    return model, model_config

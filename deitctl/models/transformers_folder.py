"""The config of a transformers model folder: ViT and DeiT classifiers, and their image processors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deitctl.errors import ModelError
from deitctl.models import catalog
from deitctl.models.catalog import ARCHITECTURES, load_imagenet_classes
from deitctl.models.model_config import (
    MAX_CLASSES,
    ModelConfig,
    Preprocessing,
    find_absurd_value,
    read_thresholds,
    read_value_range,
)
from deitctl.models.recognize import VITS
from deitctl.models.tasks import CLASSIFICATION, MULTILABEL
from deitctl.models.transformers_processor import read_processor
from deitctl.names import canonicalize_name
from deitctl.paths import read_json
from deitctl.sizes import short_side

PROCESSOR = "preprocessor_config.json"
MODEL_TYPES = ("vit", "deit", "vit_mae", "vit_msn")
"""Those whose network is a DeiT's; the last two are backbones of self-supervised training."""
NUM_LABELS = 2
"""transformers' default, of a config that names no labels."""
PROBLEM_TYPE = "multi_label_classification"
"""Of a config of several labels an image."""
_MAX_EPS = 2e-6


def is_transformers_config(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is transformers', and not timm's, which may carry both kinds of keys."""
    return "architecture" not in config and ("architectures" in config or "model_type" in config)


def is_transformers_folder(folder: Path) -> bool:
    """Return whether a folder's config.json is transformers'."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and is_transformers_config(config)


def describe_guess(folder: Path, preprocessing: Preprocessing) -> str:
    """Return a sentence on where our images differ from transformers'; empty if they do not.

    Args:
        folder: any model folder.
        preprocessing: that was read from it.
    """
    if not is_transformers_folder(folder):
        return ""
    if not (folder / PROCESSOR).exists():
        return f"{folder} has no {PROCESSOR}: ImageNet's mean and std are taken, and timm's crop."
    # Of an odd margin transformers leaves the smaller half, and torchvision, as we do, the even one.
    size, target = short_side(preprocessing.img_size), short_side(preprocessing.resize_to)
    if (target - size) % 4 == 3:
        return (
            f"{folder} crops {size} of {target} pixels: the crop "
            "is one pixel beside transformers', and logits differ a little."
        )
    return ""


def from_transformers_config(config: Mapping[str, Any], folder: Path) -> ModelConfig:
    """Parse a transformers config.json, and preprocessor_config.json beside it.

    Raises:
        ModelError: it is of another network, or of a preprocessing that `Preprocessing` cannot say.
    """
    where = f"{folder}/config.json"
    names = config.get("architectures")
    model_class = str(names[0]) if isinstance(names, list) and names else ""
    # Written since 2019; without it the class says the same.
    by_class = re.match(r"(ViT|DeiT)(?=For|Model)", model_class)
    config = {"model_type": by_class[0].lower() if by_class else "", **config}
    if config["model_type"] not in MODEL_TYPES:
        kind = model_class or config["model_type"]
        raise ModelError(
            f"{folder} holds transformers' {str(kind)[:80]}, which is no ViT or DeiT classifier.",
            "Of transformers these are read: ViTForImageClassification, DeiTForImageClassification "
            "and DeiTForImageClassificationWithTeacher.",
        )
    try:
        if problem := _find_difference(config):
            raise ModelError(
                f"{folder} holds a {config['model_type']} that no DeiT is: {problem}.",
                "Use it with transformers itself.",
            )
        own = dict(config.get("deitctl") or {})
        class_names, descriptions = _read_labels(config, own, model_class)
        model_config = ModelConfig(
            architecture=(architecture := _find_architecture(config, folder)),
            num_classes=len(class_names or config.get("id2label") or range(NUM_LABELS)),
            class_names=class_names,
            descriptions=descriptions,
            preprocessing=_read_preprocessing(config, own, folder),
            head=str(own.get("head") or _choose_head(model_class)),
            temperatures={str(k): float(t) for k, t in (own.get("temperatures") or {}).items()},
            task=MULTILABEL if config.get("problem_type") == PROBLEM_TYPE else CLASSIFICATION,
            thresholds=read_thresholds(own.get("thresholds")),
            model_args=_read_shape(config, architecture),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ModelError(
            f"{where} is not a model's config.json: {repr(error)[:200]}.",
            "Download it again, or save the model again by its save_pretrained(FOLDER).",
        ) from error
    if problem := find_absurd_value(model_config):
        raise ModelError(f"{where} is refused: {problem}.", "Read it before you trust its weights.")
    return model_config


def _find_difference(config: Mapping[str, Any]) -> str:
    """Describe in what a network differs from a DeiT; empty if in nothing."""
    dim, eps = int(config.get("hidden_size", 768)), float(config.get("layer_norm_eps", 1e-12))
    same = {
        "it has no biases of query, key and value": config.get("qkv_bias", True) is True,
        f"its activation is {str(config.get('hidden_act'))[:40]}": config.get("hidden_act", "gelu")
        == "gelu",
        f"its images have {config.get('num_channels')} channels": config.get("num_channels", 3)
        == 3,
        f"its layers are {config.get('intermediate_size')} wide inside": int(
            config.get("intermediate_size", 3072)
        )
        == 4 * dim
        or "deitctl" in config,
        # 1e-12, transformers' default, moves logits by 1e-4 of those with 1e-6.
        f"its LayerNorm has an epsilon of {eps:g}": 0 <= eps <= _MAX_EPS,
        "it predicts numbers, not classes": config.get("problem_type") != "regression",
        "its weights are quantized": not config.get("quantization_config"),
    }
    return next((problem for problem, holds in same.items() if not holds), "")


def _find_architecture(config: Mapping[str, Any], folder: Path) -> str:
    """Return timm's name of the network of these sizes, or raise `ModelError`."""
    dim, heads, depth, patch, size = (
        int(config.get(key, default))
        for key, default in (
            ("hidden_size", 768),
            ("num_attention_heads", 12),
            ("num_hidden_layers", 12),
            ("patch_size", 16),
            ("image_size", 224),
        )
    )
    distilled = config["model_type"] == "deit"
    if own := dict(config.get("deitctl") or {}).get(
        "architecture"
    ):  # an export of a shape of its own
        arch = catalog.find(str(own))
        if arch is not None and arch.distilled == distilled and not arch.layer_scale:
            return arch.name
    candidates = [
        arch
        for arch in ARCHITECTURES
        if (arch.embed_dim, arch.num_heads, arch.depth, arch.patch_size)
        == (dim, heads, depth, patch)
        and arch.distilled == distilled
        and not arch.layer_scale
    ]
    if candidates:
        return min(candidates, key=lambda arch: abs(short_side(arch.img_size) - size)).name
    vit = VITS.get((dim, depth, patch))
    if vit and not distilled and heads * 64 == dim:
        return vit
    raise ModelError(
        f"{folder} holds a {config['model_type']} of width {dim}, {depth} layers, {heads} heads and "
        f"patches of {patch} pixels, which neither the DeiT family nor timm has.",
        "See `deitctl models`.",
    )


def _read_shape(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Return the arguments in which a network differs from the one that its name stands for."""
    arch = catalog.find(architecture)
    if arch is None:
        return {}
    dim, hidden = (
        int(config.get(key, 768 * n)) for n, key in ((1, "hidden_size"), (4, "intermediate_size"))
    )
    ratio = hidden / dim
    shape = {
        "embed_dim": dim,
        "num_heads": int(config.get("num_attention_heads", 12)),
        "depth": int(config.get("num_hidden_layers", 12)),
        "patch_size": int(config.get("patch_size", 16)),
        "mlp_ratio": ratio if int(dim * ratio) == hidden else (hidden + 0.5) / dim,
    }
    return {name: value for name, value in shape.items() if value != getattr(arch, name)}


def _choose_head(model_class: str) -> str:
    """Return what transformers' classes classify by: the class token, or the mean of both heads."""
    return "avg-logits" if model_class.endswith("WithTeacher") else "cls"


def _read_labels(
    config: Mapping[str, Any], own: Mapping[str, Any], model_class: str
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Return class names and descriptions, None where there are none: a backbone, or `LABEL_0` ..."""
    labels = config.get("id2label") or {}
    if not labels or "ForImageClassification" not in model_class:
        return None, None
    if len(labels) > MAX_CLASSES:
        raise ValueError(f"id2label has {len(labels)} entries")
    by_index = {int(index): label for index, label in labels.items()}
    if not all(isinstance(label, str) for label in by_index.values()):
        raise TypeError("id2label has labels that are no strings")
    # A KeyError for a gap.
    ordered = [canonicalize_name(by_index[i]) for i in range(len(by_index))]
    for label in ordered:
        label.encode()  # raises for half of a surrogate pair, which no text file can hold
    stated = own.get("class_names")
    if stated is not None:  # our own export: labels are for people
        class_names = tuple(str(name) for name in stated)
        if len(class_names) != len(ordered):
            raise ValueError(f"class_names has {len(class_names)} of {len(ordered)} names")
        return class_names, None if class_names == tuple(ordered) else tuple(ordered)
    if all(re.fullmatch(r"LABEL_\d+", label) for label in ordered):
        return None, None
    ids, descriptions = load_imagenet_classes()
    if len(ordered) == 1000 and are_imagenet(ordered, descriptions):
        return ids, descriptions
    counts = Counter(ordered)
    unique = (f"{x} ({i})" if counts[x] > 1 else x for i, x in enumerate(ordered))
    return tuple(unique), None


def are_imagenet(labels: list[str], descriptions: tuple[str, ...]) -> bool:
    """Return whether labels are ImageNet's in its order; a few of its names are spelled in two ways."""
    pairs = zip(labels, descriptions, strict=True)
    return sum(a.split(",")[0].lower() == b.split(",")[0].lower() for a, b in pairs) >= 900


def _read_preprocessing(
    config: Mapping[str, Any], own: Mapping[str, Any], folder: Path
) -> Preprocessing:
    """Return the evaluation transform of preprocessor_config.json; timm's for DeiT without one."""
    size = int(config.get("image_size", 224))
    value_range = read_value_range(own.get("value_range"))
    path = folder / PROCESSOR
    if not path.exists():
        return Preprocessing(img_size=size, value_range=value_range)
    try:
        preprocessing = read_processor(read_json(path), str(config["model_type"]), str(path))
    except OSError as error:
        raise ModelError(f"{path} is not readable: {str(error)[:160]}.") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(
            f"{path} is not an image processor's: {str(error)[:200]}.",
            "Download it again, or save the processor again by its save_pretrained(FOLDER).",
        ) from error
    if preprocessing.img_size != size:
        raise ModelError(
            f"{folder} contradicts itself: its images have {preprocessing.img_size} pixels a side, "
            f"its network takes {size}."
        )
    return replace(preprocessing, value_range=value_range)

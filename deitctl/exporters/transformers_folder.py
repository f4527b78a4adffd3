"""A folder that Hugging Face's transformers loads by itself: weights, config.json and preprocessor_config.json.

A plain DeiT is their `ViTForImageClassification`, a distilled one their `DeiTForImageClassificationWithTeacher`. Their
computation is ours under other names, but for three things: query, key and value are layers of their own, LayerNorm's
epsilon is 1e-12 unless config.json says otherwise, and `DeiTImageProcessor` squashes and takes 0.5 for mean and
deviation unless preprocessor_config.json says otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from deitctl.data.eval_transform import INTERPOLATION, center
from deitctl.errors import ExportError
from deitctl.exporters.metadata import METADATA, write_metadata
from deitctl.exporters.network import ExportedClassifier
from deitctl.models.checkpoint_io import CONFIG, WEIGHTS, save_tensors
from deitctl.models.to_transformers_config import ModelConfig, Preprocessing
from deitctl.models.vit import LAYER_NORM_EPS, VisionTransformer
from deitctl.paths import write_json

HEAD = "avg-logits"  # what DeiTForImageClassificationWithTeacher answers with
PROCESSOR = "preprocessor_config.json"
FILES = (CONFIG, WEIGHTS, PROCESSOR, METADATA)
TIMM = "Use --to timm: where timm is installed, transformers opens that folder too."
USAGE = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("PATH").eval()  # from the hub: "OWNER/NAME"
processor = AutoImageProcessor.from_pretrained("PATH", backend="pil")  # resizes with Pillow, as deitctl does
with torch.no_grad():
    logits = model(**processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt")).logits
print(model.config.id2label[int(logits.argmax())])
"""

_EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def export_transformers(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write a model for `AutoModelForImageClassification.from_pretrained(PATH)` and `AutoImageProcessor`.

    Args:
        network: whose model to write; its normalization goes to preprocessor_config.json.
        model_config: its config.
        metadata: what the folder says of itself to `verify`; transformers reads the other two.
        path: the folder.

    Raises:
        ExportError: transformers has no class for the model, or cannot look at images as it does.
    """
    model = _require_expressible(network.model, model_config)
    processor = processor_config(model_config.preprocessing)
    save_tensors(path / WEIGHTS, convert(model), {"format": "pt"})
    write_json(path / CONFIG, to_transformers_config(model, model_config))
    write_json(path / PROCESSOR, processor)
    write_metadata(path, metadata)


def _require_expressible(model: nn.Module, model_config: ModelConfig) -> VisionTransformer:
    if not isinstance(model, VisionTransformer):
        raise ExportError(
            f"{model_config.architecture} is no DeiT, and --to transformers writes nothing else.",
            TIMM,
        )
    if model.arch.layer_scale or model.arch.no_embed_class:
        raise ExportError(
            f"transformers has no class for {model_config.architecture}: DeiT-III scales its layers and gives the class token "
            "no position.",
            TIMM,
        )
    return model


def convert(model: VisionTransformer) -> dict[str, Tensor]:
    """Return the weights under transformers' names, as its files have them; `attn.qkv` [3D,D] becomes three of [D,D]."""
    distilled = model.arch.distilled
    body = "deit." if distilled else "vit."
    heads = {
        "head": "cls_classifier" if distilled else "classifier",
        "head_dist": "distillation_classifier",
    }
    converted: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        layer, _, kind = (
            name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        )
        end = f".{kind}" if kind else ""
        if layer in heads:
            converted[heads[layer] + end] = value
        elif layer in _EMBEDDINGS:
            converted[body + _EMBEDDINGS[layer] + end] = value
        else:
            _, number, inner = layer.split(".", 2)
            block = f"{body}encoder.layer.{number}."
            if inner == "attn.qkv":
                for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    converted[f"{block}attention.attention.{part}{end}"] = third.contiguous()
            else:
                converted[block + _IN_BLOCK[inner] + end] = value
    return converted


def to_transformers_config(model: VisionTransformer, model_config: ModelConfig) -> dict[str, Any]:
    """Return config.json: the shape of the network and, for people, the names of the classes."""
    arch, names = model.arch, labels(model_config)
    distilled = arch.distilled
    return {
        "architectures": [
            "DeiTForImageClassificationWithTeacher" if distilled else "ViTForImageClassification"
        ],
        "model_type": "deit" if distilled else "vit",
        "dtype": "float32",
        "hidden_size": arch.embed_dim,
        "num_hidden_layers": arch.depth,
        "num_attention_heads": arch.num_heads,
        "intermediate_size": 4 * arch.embed_dim,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": LAYER_NORM_EPS,
        "image_size": model.img_size,
        "patch_size": arch.patch_size,
        "num_channels": 3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "deitctl": {
            "architecture": model_config.architecture,
            "head": model_config.head,
            "temperatures": dict(model_config.temperatures),
        }
        | (
            {"class_names": list(model_config.class_names)}
            if model_config.class_names is not None
            else {}
        ),
    }


def labels(model_config: ModelConfig) -> list[str]:
    """Return the classes' names for people, each once: of those that are the same, every one has its own name added.

    ImageNet has two cranes, a bird and a machine: "crane (n02012849)" and "crane (n03126707)".
    """
    names = [model_config.label(i) for i in range(model_config.num_classes)]
    counts = Counter(names)
    ids = model_config.class_names or tuple(str(i) for i in range(model_config.num_classes))
    return [
        f"{name} ({own})" if counts[name] > 1 else name
        for name, own in zip(names, ids, strict=True)
    ]


def processor_config(pre: Preprocessing) -> dict[str, Any]:
    """Return preprocessor_config.json: how `DeiTImageProcessor` makes of an image what `eval_transform` makes of it.

    Raises:
        ExportError: it cannot.
    """
    size, target = pre.img_size, pre.resize_to
    if pre.crop_mode not in ("center", "squash"):
        raise ExportError(
            f"transformers cannot crop as {pre.crop_mode!r} says: it crops the center or squashes.",
            TIMM,
        )
    if center(target, size) != (target - size) // 2:
        raise ExportError(
            f"transformers cuts {size} pixels out of {target} one pixel beside this model's cut.",
            TIMM,
        )
    edges = (
        {"height": target, "width": target}
        if pre.crop_mode == "squash"
        else {"shortest_edge": target}
    )
    return {
        "image_processor_type": "DeiTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": edges,
        "resample": int(INTERPOLATION.get(pre.interpolation, Image.Resampling.BICUBIC)),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pre.mean),
        "image_std": list(pre.std),
    }

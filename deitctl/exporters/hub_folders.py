"""Folders that timm and Hugging Face's transformers load by themselves.

A plain DeiT is transformers' `ViTForImageClassification`, a distilled one its
`DeiTForImageClassificationWithTeacher`. Its computation is ours under other names, but for three
things: query, key and value are layers of their own, LayerNorm's epsilon is 1e-12 unless
config.json says otherwise, and `DeiTImageProcessor` squashes and takes 0.5 for mean and deviation
unless preprocessor_config.json says otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from deitctl.data.eval_transform import INTERPOLATION, get_crop_offset
from deitctl.errors import ExportError
from deitctl.exporters.dynamic_size import require_square_rgb
from deitctl.exporters.metadata import METADATA, write_metadata
from deitctl.exporters.network import ExportedClassifier
from deitctl.models.checkpoint_io import CONFIG, WEIGHTS, save_model, save_tensors
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.models.model_config import ModelConfig, Preprocessing, list_range, list_task
from deitctl.models.transformers_folder import PROBLEM_TYPE
from deitctl.models.vit import LAYER_NORM_EPS, VisionTransformer
from deitctl.paths import write_json
from deitctl.sizes import short_side

HEAD = "avg-logits"  # what distilled models of timm and transformers output in eval mode
TIMM_FILES = (CONFIG, WEIGHTS, METADATA)
_LOAD_TIMM = """\
import timm, torch
from PIL import Image

# from the hub: "hf-hub:OWNER/NAME"
model = timm.create_model("local-dir:PATH", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
mode = "L" if model.pretrained_cfg["input_size"][0] == 1 else "RGB"
with torch.no_grad():
    logits = model(transform(Image.open("image.jpg").convert(mode))[None])
names = model.pretrained_cfg.get("label_names", range(model.num_classes))
"""
TIMM_USAGE = f"""\
{_LOAD_TIMM}print(names[int(logits.argmax())])
"""
TIMM_MULTILABEL_USAGE = f"""\
import json
{_LOAD_TIMM}probabilities = (logits[0] / TEMPERATURE).sigmoid().tolist()
with open("PATH/config.json") as file:
    thresholds = json.load(file)["deitctl"]["thresholds"]["HEAD"]
print([name for name, p, t in zip(names, probabilities, thresholds) if p >= t])
"""
PROCESSOR = "preprocessor_config.json"
TRANSFORMERS_FILES = (CONFIG, WEIGHTS, PROCESSOR, METADATA)
_LOAD_TRANSFORMERS = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("PATH").eval()  # from the hub: "OWNER/NAME"
# resizes with Pillow, as deitctl does
processor = AutoImageProcessor.from_pretrained("PATH", backend="pil")
with torch.no_grad():
    logits = model(**processor(Image.open("image.jpg").convert("RGB"), return_tensors="pt")).logits
"""
TRANSFORMERS_USAGE = f"""\
{_LOAD_TRANSFORMERS}print(model.config.id2label[int(logits.argmax())])
"""
TRANSFORMERS_MULTILABEL_USAGE = f"""\
{_LOAD_TRANSFORMERS}probabilities = (logits[0] / TEMPERATURE).sigmoid().tolist()
thresholds = model.config.deitctl["thresholds"]["HEAD"]
print([model.config.id2label[i] for i, p in enumerate(probabilities) if p >= thresholds[i]])
"""
USE_TIMM = "Use --to timm: where timm is installed, transformers opens that folder too."

# The names on disk. transformers 5 still writes them, although its modules are called otherwise
# (`deit.layers.N.attention.q_proj`).
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


def export_timm(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write a model for `timm.create_model("local-dir:PATH", pretrained=True)`.

    Normalization and head rule go to config.json; the metadata are for `verify`.
    """
    model = network.model
    save_model(path, model.state_dict(), pin_img_size(model, model_config), describe_layers(model))
    write_metadata(path, metadata)


def export_transformers(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write a model for `AutoModelForImageClassification` and `AutoImageProcessor`.

    Normalization goes to preprocessor_config.json; the metadata are for `verify`.

    Raises:
        ExportError: transformers has no class for the model, or not its preprocessing.
    """
    model = _require_expressible(network.model, model_config)
    processor = to_processor_config(model_config.preprocessing)
    save_tensors(path / WEIGHTS, convert_weights(model), {"format": "pt"})
    write_json(path / CONFIG, to_transformers_config(model, model_config))
    write_json(path / PROCESSOR, processor)
    write_metadata(path, metadata)


def _require_expressible(model: nn.Module, model_config: ModelConfig) -> VisionTransformer:
    name = model_config.architecture
    if not isinstance(model, VisionTransformer):
        raise ExportError(
            f"{name} is no DeiT, and --to transformers writes nothing else.", USE_TIMM
        )
    # Such weights would load with keys left over, and transformers only warns: the answers would be
    # wrong.
    if model.arch.layer_scale or model.arch.no_embed_class:
        raise ExportError(
            f"transformers has no class for {name}: DeiT-III scales its layers "
            "and gives the class token no position.",
            USE_TIMM,
        )
    return model


def convert_weights(model: VisionTransformer) -> dict[str, Tensor]:
    """Return the weights by transformers' names; `attn.qkv` [3D,D] becomes three of [D,D]."""
    distilled = model.arch.distilled
    body = "deit." if distilled else "vit."
    heads = {
        "head": "cls_classifier" if distilled else "classifier",
        "head_dist": "distillation_classifier",
    }
    converted: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        layer, suffix = name, ""
        if name.endswith((".weight", ".bias")):
            layer, dot, kind = name.rpartition(".")
            suffix = dot + kind
        if layer in heads:
            converted[heads[layer] + suffix] = value
        elif layer in _EMBEDDINGS:
            converted[body + _EMBEDDINGS[layer] + suffix] = value
        else:
            _, number, inner = layer.split(".", 2)
            block = f"{body}encoder.layer.{number}."
            if inner == "attn.qkv":
                for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    converted[f"{block}attention.attention.{part}{suffix}"] = third.contiguous()
            else:
                converted[block + _IN_BLOCK[inner] + suffix] = value
    return converted


def to_transformers_config(model: VisionTransformer, model_config: ModelConfig) -> dict[str, Any]:
    """Return config.json: the shape of the network and, for people, the names of the classes."""
    arch, names = model.arch, get_unique_labels(model_config)
    distilled = arch.distilled
    ours: dict[str, Any] = {
        "architecture": model_config.architecture,
        "head": model_config.head,
        "temperatures": dict(model_config.temperatures),
        **list_task(model_config),
    }
    if (value_range := model_config.preprocessing.value_range) is not None:
        ours["value_range"] = list_range(value_range)
    if model_config.class_names is not None:
        ours["class_names"] = list(model_config.class_names)
    return {
        "architectures": [
            "DeiTForImageClassificationWithTeacher" if distilled else "ViTForImageClassification"
        ],
        "model_type": "deit" if distilled else "vit",
        "dtype": "float32",
        "hidden_size": arch.embed_dim,
        "num_hidden_layers": arch.depth,
        "num_attention_heads": arch.num_heads,
        "intermediate_size": arch.hidden_dim,
        "hidden_act": "gelu",
        "qkv_bias": arch.qkv_bias,
        # transformers' default of 1e-12 moves the logits by 1e-4 to 2e-4.
        "layer_norm_eps": LAYER_NORM_EPS,
        "image_size": model.img_size,
        "patch_size": arch.patch_size,
        "num_channels": 3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        # transformers makes unknown keys attributes: `model.config.deitctl["class_names"]`.
        "deitctl": ours,
        # By it transformers' pipeline and loss take the sigmoid.
        **({"problem_type": PROBLEM_TYPE} if model_config.is_multilabel else {}),
    }


def get_unique_labels(model_config: ModelConfig) -> list[str]:
    """Return the classes' labels for people, each once: equal ones get their class name added.

    ImageNet has two cranes, a bird and a machine: "crane (n02012849)" and "crane (n03126707)".
    """
    labels = [model_config.label(i) for i in range(model_config.num_classes)]
    # Equal labels would share a key of label2id, and transformers would lose one of the classes.
    counts = Counter(labels)
    ids = model_config.class_names or tuple(str(i) for i in range(model_config.num_classes))
    return [
        f"{label} ({own})" if counts[label] > 1 else label
        for label, own in zip(labels, ids, strict=True)
    ]


def to_processor_config(pre: Preprocessing) -> dict[str, Any]:
    """Return preprocessor_config.json: `eval_transform` in terms of `DeiTImageProcessor`.

    Raises:
        ExportError: it cannot.
    """
    size = require_square_rgb(pre, "--to transformers", USE_TIMM)
    target = short_side(pre.resize_to)
    if pre.crop_mode not in ("center", "squash"):
        raise ExportError(
            f"transformers cannot crop as {pre.crop_mode!r} says: it crops the center or squashes.",
            USE_TIMM,
        )
    # transformers rounds a half down, we to the even pixel: for such a size every image would be
    # cropped one pixel beside, which moves logits by up to 0.6.
    if get_crop_offset(target, size) != (target - size) // 2:
        raise ExportError(
            f"transformers crops {size} pixels out of {target} one pixel beside this model's crop.",
            USE_TIMM,
        )
    # All of this is stated although DeiTImageProcessor has defaults: those squash to 256 and
    # normalize by 0.5, and logits would be off by 3.
    squashed = {"height": target, "width": target}
    return {
        "image_processor_type": "DeiTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": squashed if pre.crop_mode == "squash" else {"shortest_edge": target},
        "resample": int(INTERPOLATION.get(pre.interpolation, Image.Resampling.BICUBIC)),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pre.mean),
        "image_std": list(pre.std),
    }

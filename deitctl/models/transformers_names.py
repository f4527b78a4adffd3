"""Names of transformers' ViT and DeiT, in timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from deitctl.errors import ModelError

PATCH_EMBEDDING = "embeddings.patch_embeddings.projection.weight"
_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
    "cls_classifier": "head",
    "distillation_classifier": "head_dist",
}
# On disk, and in memory since transformers 5.
_BLOCK = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)")
_IN_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_QKV = re.compile(r"attention\.(?:attention\.(query|key|value)|(q|k|v)_proj)")


def rename_transformers(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return timm's names; query, key and value [D,D] become `attn.qkv` [3D,D]. Others are kept.

    Raises:
        ModelError: one of the three is missing or of another shape.
    """
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        layer, suffix = name, ""
        if name.endswith((".weight", ".bias")):
            layer, _, suffix = name.rpartition(".")
            suffix = f".{suffix}"
        if layer in _TOP:
            renamed[_TOP[layer] + suffix] = value
        elif (match := _BLOCK.fullmatch(layer)) is None:
            renamed[name] = value
        elif (qkv := _QKV.fullmatch(match[2])) is not None:
            key = f"blocks.{match[1]}.attn.qkv{suffix}"
            parts.setdefault(key, {})[(qkv[1] or qkv[2])[0]] = value
        elif match[2] in _IN_BLOCK:
            renamed[f"blocks.{match[1]}.{_IN_BLOCK[match[2]]}{suffix}"] = value
        else:
            renamed[name] = value
    for name, three in parts.items():
        if three.keys() != {"q", "k", "v"} or len({v.shape for v in three.values()}) > 1:
            raise ModelError(f"{where} is incomplete: of {name} it has {', '.join(sorted(three))}.")
        renamed[name] = torch.cat([three["q"], three["k"], three["v"]])
    return renamed

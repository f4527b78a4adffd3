"""What every block attends to: DeiT's forward with the attention written out, which the fused one never holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from deitctl.models.vit import Block, HeadLogits, VisionTransformer


class Attended(NamedTuple):
    """The answers of the heads, [B,K] each, and what was kept of each block's attention, first block first."""

    logits: HeadLogits
    kept: list[Tensor]


def attend(
    model: VisionTransformer,
    images: Tensor,
    *,
    keep: Callable[[Tensor], Tensor] = lambda a: a,
    differentiable: bool = False,
) -> Attended:
    """Classify images as `model(images)` does, to rounding, and keep the attention softmax(q kᵀ / √d) of every block.

    Args:
        model: the classifier, in eval mode.
        images: normalized, [B,3,S,S].
        keep: what to keep of an attention [B,A,N,N], whose rows sum to 1; all of it unless told.
        differentiable: whether the logits can be differentiated by the attention, which must be kept whole for that.
            The graph begins behind the embedding; without it an attention is freed once `keep` has seen it.
    """
    kept: list[Tensor] = []
    with torch.inference_mode(False), torch.no_grad():
        x = model.embed(images)
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
        x.requires_grad_(differentiable)
        for block in cast(Iterable[Block], model.blocks):
            q, k, v = block.attn.project_qkv(block.norm1(x))
            attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
            kept.append(keep(attention))
            x = x + block.ls1(block.attn.merge_heads(attention @ v))
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return Attended(model.forward_head(x[:, : model.num_prefix_tokens]), kept)

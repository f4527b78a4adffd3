"""Maps of the patches that a DeiT's class and distillation token attend to: docs/explain.md.

Letters: B images, S pixels a side, G patches a side, P prefix tokens, N = P + G*G tokens,
A attention heads, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from deitctl.errors import ConfigError, ModelError
from deitctl.models.vit import Block, HeadLogits, VisionTransformer

TOKENS = {"cls": "class token", "dist": "distillation token"}
# `gradient` is the default because it was best in deletion and insertion, on photographs and on
# digits, for both tokens. The other two did hardly better than a map of the distance to the center.
METHODS = ("rollout", "gradient", "last-layer")
GRAPH_BYTES = 2**29
"""Memory for the attention of images differentiated together; larger batches are split."""
GRAPH_COPIES = 6
"""Tensors of that size in graph and gradients: scores, softmax, their gradients, products."""


class AttentionOutput(NamedTuple):
    """Logits, and the (reduced) attention of each block, first block first."""

    logits: HeadLogits
    attention: list[Tensor]


class TokenMaps(NamedTuple):
    """Each token's weights of the patches, 0 or more: [B,G,G], or [B,A,G,G] by attention head."""

    cls: Tensor
    dist: Tensor | None


def forward_with_attention(
    model: VisionTransformer,
    images: Tensor,
    *,
    reduce: Callable[[Tensor], Tensor] = lambda attention: attention,
    differentiable: bool = False,
) -> AttentionOutput:
    """Compute `model(images)`, to rounding, with the attention softmax(q kᵀ / √d) of the blocks.

    Args:
        model: in eval mode.
        images: normalized, [B,3,S,S].
        reduce: what to return of a block's attention [B,A,N,N], whose rows sum to 1; a block's full
            attention is then freed at once.
        differentiable: whether the logits have gradients of the attention; not with `reduce`.
    """
    maps: list[Tensor] = []
    # Explicit modes: callers may be in inference mode, whose tensors cannot have gradients.
    with torch.inference_mode(False), torch.no_grad():
        # The graph begins behind the embedding, so that the patch convolution keeps nothing for a
        # backward pass.
        x = model.embed(images)
    with torch.inference_mode(False), torch.set_grad_enabled(differentiable):
        x.requires_grad_(differentiable)
        for block in cast(Iterable[Block], model.blocks):
            q, k, v = block.attn.project_qkv(block.norm1(x))
            attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
            # [B,A,N,N]; scaled_dot_product_attention never holds it.
            maps.append(reduce(attention))
            x = x + block.ls1(block.attn.merge_heads(attention @ v))
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return AttentionOutput(model.forward_head(x[:, : model.num_prefix_tokens]), maps)


def compute_token_maps(
    model: nn.Module, images: Tensor, *, method: str = "gradient", classes: Tensor | None = None
) -> TokenMaps:
    """Return how much each patch counts for each token.

    Args:
        model: a DeiT in eval mode.
        images: normalized, [B,3,S,S], on the model's device.
        method: one of `METHODS`; only `gradient` depends on a class.
        classes: [B], the classes that `gradient` explains, for both heads; None for each head's own
            prediction.

    Raises:
        ModelError: the model is no DeiT.
        ConfigError: there is no such method.
    """
    deit = require_deit(model)
    if method == "rollout":
        return _to_token_maps(deit, _compute_rollout(deit, images))
    if method == "gradient":
        size = _choose_batch_size(deit)
        chunks = [
            _compute_relevance(
                deit, images[i : i + size], None if classes is None else classes[i : i + size]
            )
            for i in range(0, max(len(images), 1), size)
        ]
        return _to_token_maps(deit, [torch.cat(rows) for rows in zip(*chunks, strict=True)])
    if method == "last-layer":
        return average_heads(compute_head_maps(deit, images))
    raise ConfigError(f"There is no method {method!r}.", f"There are: {', '.join(METHODS)}.")


def compute_head_maps(model: nn.Module, images: Tensor) -> TokenMaps:
    """Return each token's attention in the last block by attention head, [B,A,G,G]."""
    deit = require_deit(model)
    num_prefix = deit.num_prefix_tokens
    # Cloned: a slice would keep the full attention of all blocks in memory.
    maps = forward_with_attention(deit, images, reduce=lambda a: a[:, :, :num_prefix].clone())
    return _to_token_maps(deit, list(maps.attention[-1].unbind(dim=2)))


def average_heads(maps: TokenMaps) -> TokenMaps:
    """Return the mean over attention heads, [B,G,G], of maps [B,A,G,G]."""
    return TokenMaps(maps.cls.mean(dim=1), None if maps.dist is None else maps.dist.mean(dim=1))


def require_deit(model: nn.Module) -> VisionTransformer:
    """Return the model if it is a DeiT, or raise `ModelError`."""
    if not isinstance(model, VisionTransformer):
        raise ModelError(
            f"This model ({type(model).__name__}) cannot be explained: it has no DeiT's tokens.",
            "`deitctl models` lists those that do.",
        )
    return model


def _compute_rollout(model: VisionTransformer, images: Tensor) -> list[Tensor]:
    """Attention rollout (Abnar & Zuidema 2020, §3): product over blocks of 0.5 Ā + 0.5 I.

    Ā is the mean of the heads, the identity the residual branch. Rows of Ā and I sum to 1, so those
    of the product do too. Only the prefix tokens' rows are needed: vectors times matrices, from the
    last block down.
    """
    attention = forward_with_attention(model, images, reduce=lambda a: a.mean(dim=1)).attention
    rows = []
    for token in range(model.num_prefix_tokens):
        row = _one_hot(token, like=attention[-1])
        for mean_attention in reversed(attention):
            # [B,1,N] @ [B,N,N]: P rows instead of N save the products of the full matrices.
            row = 0.5 * (row @ mean_attention) + 0.5 * row
        rows.append(row.squeeze(1))
    return rows


def _choose_batch_size(model: VisionTransformer) -> int:
    num_tokens = model.num_patches + model.num_prefix_tokens
    attention_bytes = 4 * model.arch.depth * model.arch.num_heads * num_tokens**2
    return max(1, GRAPH_BYTES // (GRAPH_COPIES * attention_bytes))


def _compute_relevance(
    model: VisionTransformer, images: Tensor, classes: Tensor | None
) -> list[Tensor]:
    """Relevance (Chefer et al., ICCV 2021, Eqs. 5 and 6): R ← R + mean of heads (∇A ⊙ A)⁺ R.

    R starts as I. A token's gradient is that of its own head's logit; only the prefix tokens' rows
    of R are needed.
    """
    heads, attention = forward_with_attention(model, images, differentiable=True)
    rows = []
    for token, logits in enumerate(h for h in heads if h is not None):
        targets = logits.argmax(dim=1) if classes is None else classes.to(logits.device)
        with torch.inference_mode(False), torch.enable_grad():
            # The sum separates the images, because no image's logit depends on another's attention.
            score = logits.gather(1, targets.clone()[:, None]).sum()
        is_last = token + 1 == model.num_prefix_tokens
        # Of the attention alone: gradients of the weights would cost memory and are not read.
        grads = torch.autograd.grad(score, attention, retain_graph=not is_last)
        row = _one_hot(token, like=attention[-1][:, 0])
        for a, grad in zip(reversed(attention), reversed(grads), strict=True):
            # Clamped per head, before the mean: what speaks against the class is cut off, as in Eq.
            # 5.
            row = row + row @ (grad * a.detach()).clamp(min=0).mean(dim=1)
        rows.append(row.squeeze(1))
    return rows


def _one_hot(token: int, *, like: Tensor) -> Tensor:
    """Return a token's row of the identity for each image, [B,1,N], for attention [B,N,N]."""
    row = torch.zeros_like(like[:, :1])
    row[:, :, token] = 1
    return row


def _to_token_maps(model: VisionTransformer, rows: list[Tensor]) -> TokenMaps:
    """Reshape the patches of rows [...,N] to the grid of the image, [...,G,G]."""
    maps = [
        row[..., model.num_prefix_tokens :].reshape(*row.shape[:-1], *model.grid) for row in rows
    ]
    return TokenMaps(maps[0], maps[1] if len(maps) > 1 else None)

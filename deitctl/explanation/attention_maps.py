"""Where a DeiT looks, token by token: the class token's map of the image and the distillation token's.

A method gives each of the two tokens a weight for every patch. All of them read the attention of the blocks; what they
do with it, and what that is worth, is in docs/explain.md.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from deitctl.errors import ConfigError, ModelError
from deitctl.explanation.attention import attend
from deitctl.models.vit import VisionTransformer

TOKENS = {"cls": "class token", "dist": "distillation token"}
METHODS = ("rollout", "gradient", "last-layer")
GRAPH_BYTES = 2**29
"""Memory for the attention of the images whose gradients are taken at once; the rest of a batch waits."""
COPIES = 6
"""Times that the graph and its gradients hold the size of the attention: scores, softmax, their gradients, products."""


class TokenMaps(NamedTuple):
    """For each token a weight of every patch, 0 or more: [B,G,G], or [B,A,G,G] where heads are kept apart."""

    cls: Tensor
    dist: Tensor | None


def token_maps(
    model: nn.Module, images: Tensor, *, method: str = "gradient", classes: Tensor | None = None
) -> TokenMaps:
    """Say how much each patch counts for each token.

    Args:
        model: a DeiT in eval mode; G is the number of patches along a side.
        images: normalized, [B,3,S,S], on the model's device.
        method: one of `METHODS`; `rollout` and `last-layer` know nothing of classes.
        classes: [B], the class whose logit `gradient` explains, for both heads; each head's own first one unless told.

    Raises:
        ModelError: the model is no DeiT of ours.
        ConfigError: there is no such method.
    """
    deit = require_deit(model)
    if method == "rollout":
        return _maps(deit, _rollout(deit, images))
    if method == "gradient":
        size = _images_at_once(deit)
        parts = [
            _gradient(
                deit, images[i : i + size], None if classes is None else classes[i : i + size]
            )
            for i in range(0, max(len(images), 1), size)
        ]
        return _maps(deit, [torch.cat(rows) for rows in zip(*parts, strict=True)])
    if method == "last-layer":
        return mean_of_heads(head_maps(deit, images))
    raise ConfigError(f"There is no method {method!r}.", f"There are: {', '.join(METHODS)}.")


def head_maps(model: nn.Module, images: Tensor) -> TokenMaps:
    """Return what each token attends to in the last block, attention head by attention head: [B,A,G,G].

    Raises:
        ModelError: the model is no DeiT of ours.
    """
    deit = require_deit(model)
    last = attend(deit, images, keep=lambda a: a[:, :, : deit.num_prefix_tokens].clone()).kept[-1]
    return _maps(deit, list(last.unbind(dim=2)))


def mean_of_heads(maps: TokenMaps) -> TokenMaps:
    """Return the mean over attention heads, [B,G,G], of maps [B,A,G,G]."""
    return TokenMaps(maps.cls.mean(dim=1), None if maps.dist is None else maps.dist.mean(dim=1))


def require_deit(model: nn.Module) -> VisionTransformer:
    """Return the model if its attention can be read.

    Raises:
        ModelError: it is no DeiT of ours.
    """
    if not isinstance(model, VisionTransformer):
        raise ModelError(
            f"This model ({type(model).__name__}) cannot be explained: it has not a DeiT's tokens.",
            "`deitctl models` lists those that have.",
        )
    return model


def _rollout(model: VisionTransformer, images: Tensor) -> list[Tensor]:
    """Attention rollout (Abnar & Zuidema 2020, §3): the product over blocks of 0.5 Ā + 0.5 I, Ā the mean of the heads.

    The identity stands for the residual branch; rows of Ā and of I sum to 1, so theirs do too. Only the tokens' rows
    of the product are wanted, so that it is taken from the last block down, as vectors times matrices.
    """
    kept = attend(model, images, keep=lambda a: a.mean(dim=1)).kept
    rows = []
    for token in range(model.num_prefix_tokens):
        row = _one_hot(token, like=kept[-1])
        for attention in reversed(kept):
            row = 0.5 * (row @ attention) + 0.5 * row
        rows.append(row.squeeze(1))
    return rows


def _images_at_once(model: VisionTransformer) -> int:
    tokens = (model.img_size // model.arch.patch_size) ** 2 + model.num_prefix_tokens
    return max(1, GRAPH_BYTES // (4 * COPIES * model.arch.depth * model.arch.num_heads * tokens**2))


def _gradient(model: VisionTransformer, images: Tensor, classes: Tensor | None) -> list[Tensor]:
    """Gradient-weighted relevance (Chefer et al., ICCV 2021, Eqs. 5 and 6): R ← R + mean over heads of (∇A ⊙ A)⁺ R.

    R starts as I. A token's gradient is that of its own head's logit; again only its row of R is wanted.
    """
    heads, attention = attend(model, images, differentiable=True)
    rows = []
    for token, logits in enumerate(h for h in heads if h is not None):
        wanted = logits.argmax(dim=1) if classes is None else classes.to(logits.device)
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has forbidden
            score = logits.gather(
                1, wanted.clone()[:, None]
            ).sum()  # a sum: no image of a batch sees another
        gradients = torch.autograd.grad(
            score, attention, retain_graph=token + 1 < model.num_prefix_tokens
        )
        row = _one_hot(token, like=attention[-1][:, 0])
        for a, gradient in zip(reversed(attention), reversed(gradients), strict=True):
            row = row + row @ (gradient * a.detach()).clamp(min=0).mean(dim=1)
        rows.append(row.squeeze(1))
    return rows


def _one_hot(token: int, *, like: Tensor) -> Tensor:
    """A row of the identity for each image, [B,1,N], for attention like [B,N,N]."""
    row = torch.zeros_like(like[:, :1])
    row[:, :, token] = 1
    return row


def _maps(model: VisionTransformer, rows: list[Tensor]) -> TokenMaps:
    """Drop the prefix tokens of rows [...,P+G²] and lay the patches out as they lie in the image, [...,G,G]."""
    grid = model.img_size // model.arch.patch_size
    maps = [
        row[..., model.num_prefix_tokens :].reshape(*row.shape[:-1], grid, grid) for row in rows
    ]
    return TokenMaps(maps[0], maps[1] if len(maps) > 1 else None)

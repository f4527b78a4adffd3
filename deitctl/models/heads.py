"""One way to ask any model, and the ways to join two heads into one answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deitctl.errors import ModelError
from deitctl.models.model_config import HEADS
from deitctl.models.vit import HeadLogits, VisionTransformer


def forward_heads(model: nn.Module, images: Tensor, keep: Tensor | None = None) -> HeadLogits:
    """Return each head's logits, [B,K], for a DeiT of ours or any classifier of timm's, in either mode."""
    if isinstance(model, VisionTransformer):
        return model(images, keep)  # type: ignore[no-any-return]
    out = model(images)
    return HeadLogits(out, None) if isinstance(out, Tensor) else HeadLogits(*out[:2])


def fuse_heads(heads: HeadLogits, how: str) -> Tensor:
    """Join the heads into logits [B,K] whose softmax is the answer.

    `cls` and `dist` take one head; `avg-logits` averages the logits, as the released code does (models.py);
    `avg-probs` averages the softmaxes, as the paper says (DeiT §3, "adding the softmax output by the two classifiers"),
    and returns their logarithm. A model with one head answers with it, whatever is asked except `dist`.

    Raises:
        ModelError: `dist` is asked of a model with one head, or `how` is no rule.
    """
    cls, dist = heads
    if how not in HEADS:
        raise ModelError(f"There is no head rule {how!r}.", f"There are: {', '.join(HEADS)}.")
    if dist is None:
        if how == "dist":
            raise ModelError(
                "This model has no distillation head.", "Use --head cls, or leave it out."
            )
        return cls
    if how == "cls":
        return cls
    if how == "dist":
        return dist
    if how == "avg-logits":
        return (cls + dist) / 2
    # the logarithm of the mean of two softmaxes, without leaving the log domain
    both = torch.stack([cls.float().log_softmax(1), dist.float().log_softmax(1)])
    return both.logsumexp(0) - torch.log(torch.tensor(2.0, device=cls.device))


def choose_head(asked: str, own: str, model: nn.Module) -> str:
    """Return the head rule to use: the one asked for, or with `auto` the model's own; the mean of logits if it has none.

    Raises:
        ModelError: the rule does not exist, or needs a head that the model does not have.
    """
    how = own if asked == "auto" else asked
    how = "avg-logits" if how == "auto" else how
    if how not in HEADS:
        raise ModelError(f"There is no head rule {how!r}.", f"There are: auto, {', '.join(HEADS)}.")
    two_heads = isinstance(model, VisionTransformer) and model.head_dist is not None
    if how == "dist" and not two_heads:
        raise ModelError("This model has no distillation head.", "Use --head cls, or leave it out.")
    return how if two_heads else "cls"

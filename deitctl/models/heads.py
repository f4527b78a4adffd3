"""One forward pass for any classifier, and rules that fuse class and distillation head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deitctl.errors import ModelError
from deitctl.models.model_config import HEADS
from deitctl.models.vit import HeadLogits, VisionTransformer


def forward_heads(
    model: nn.Module, images: Tensor, drop_path_mask: Tensor | None = None
) -> HeadLogits:
    """Return each head's logits, [B,K], of a DeiT or any timm classifier, in both modes."""
    if isinstance(model, VisionTransformer):
        return model(images, drop_path_mask)  # type: ignore[no-any-return]
    # timm's distilled models return both heads' logits after set_distilled_training(True) in
    # training mode, else their mean.
    out = model(images)
    return HeadLogits(out, None) if isinstance(out, Tensor) else HeadLogits(*out[:2])


def fuse_heads(heads: HeadLogits, rule: str) -> Tensor:
    """Return logits [B,K] whose softmax is the prediction (DeiT §4, "Classification").

    Args:
        heads: logits of both heads; a model with one head is used as it is.
        rule: `cls` or `dist` for one head; `avg-logits` averages the logits, as the released code
            does (models.py); `avg-probs` averages the softmaxes, as the paper's text says, and
            returns their logarithm.

    Raises:
        ModelError: there is no such rule, or `dist` of a model with one head.
    """
    cls, dist = heads
    if rule not in HEADS:
        raise ModelError(f"There is no head rule {rule!r}.", f"There are: {', '.join(HEADS)}.")
    if dist is None:
        _require_dist_head(rule, has_dist=False)
        return cls
    if rule == "cls":
        return cls
    if rule == "dist":
        return dist
    if rule == "avg-logits":
        # The default: timm and the published accuracies use it.
        return (cls + dist) / 2
    # in the log domain throughout: softmaxes of large logits underflow
    log_probs = torch.stack([cls.float().log_softmax(1), dist.float().log_softmax(1)])
    return log_probs.logsumexp(0) - torch.log(torch.tensor(2.0, device=cls.device))


def choose_head(rule: str, default: str, model: nn.Module) -> str:
    """Return the head rule to use.

    Args:
        rule: the user's; `auto` for the model's own.
        default: the rule in the model config; `auto` there means `avg-logits`.
        model: with one head, every rule but `dist` is `cls`.

    Raises:
        ModelError: there is no such rule, or `dist` of a model with one head.
    """
    rule = default if rule == "auto" else rule
    rule = "avg-logits" if rule == "auto" else rule
    if rule not in HEADS:
        names = ", ".join(("auto", *HEADS))
        raise ModelError(f"There is no head rule {rule!r}.", f"There are: {names}.")
    has_dist = isinstance(model, VisionTransformer) and model.head_dist is not None
    _require_dist_head(rule, has_dist=has_dist)
    return rule if has_dist else "cls"


def _require_dist_head(rule: str, *, has_dist: bool) -> None:
    if rule == "dist" and not has_dist:
        raise ModelError("This model has no distillation head.", "Use --head cls, or leave it out.")

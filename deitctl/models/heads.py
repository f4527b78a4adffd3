"""One forward pass for any classifier, and rules that fuse class and distillation head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deitctl.errors import ModelError
from deitctl.models.model_config import HEADS
from deitctl.models.tasks import CLASSIFICATION, MULTILABEL
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


def to_probs(logits: Tensor, task: str) -> Tensor:
    """Return probabilities [B,K] in fp32 of logits [B,K]: softmax, or of several labels sigmoid."""
    logits = logits.float()
    return logits.sigmoid() if task == MULTILABEL else logits.softmax(dim=1)


def fuse_heads(heads: HeadLogits, rule: str, task: str = CLASSIFICATION) -> Tensor:
    """Return logits [B,K] whose `to_probs` is the prediction (DeiT §4, "Classification").

    Args:
        heads: logits of both heads; a model with one head is used as it is.
        rule: `cls` or `dist` for one head; `avg-logits` averages the logits, as the released code
            does (models.py); `avg-probs` averages the probabilities, as the paper's text says, and
            returns logits of the average.
        task: a name of `TASKS`, on which the probabilities depend.

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
    # in the log domain throughout: probabilities of large logits underflow
    dtype = torch.promote_types(cls.dtype, torch.float32)
    both = torch.stack([cls.to(dtype), dist.to(dtype)])
    if task == MULTILABEL:  # log p - log (1 - p), the divisors of both averages being one
        # -softplus(-z) is log p; Core ML has no logsigmoid.
        return (-F.softplus(-both)).logsumexp(0) - (-F.softplus(both)).logsumexp(0)
    return both.log_softmax(2).logsumexp(0) - math.log(2)  # a number, which no device waits for


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

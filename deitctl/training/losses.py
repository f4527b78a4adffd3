"""The formulas of the losses. Letters: B images, K classes.

Logits may be of any float type; losses are computed in float32 and are means over images, so that the
mean over a batch is that of its micro-batches and of its shares in several processes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

ASL_EPS = 1e-8
"""Least probability that a logarithm is taken of, as in timm.loss.AsymmetricLossMultiLabel, and least
miss that is focused on: fp32 has none between 0 and 6e-8."""


def make_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels as numbers of each class in fp32, [B,K].

    Args:
        labels: of one label an image int64 [B], which become one-hot; of several bool [B,K]. A row of
            -1, for an image without a label, becomes zeros.
        num_classes: K.
    """
    if labels.ndim == 2:
        return labels.float().clamp(min=0)
    return F.one_hot(labels.clamp(min=0), num_classes).float() * (labels >= 0).unsqueeze(1)


def find_labeled(labels: Tensor) -> Tensor:
    """Return which of a batch's images have labels as 0 or 1 in fp32, [B]; arguments as `make_targets`."""
    return (labels >= 0 if labels.ndim == 1 else (labels >= 0).all(dim=1)).float()


def smooth_labels(labels: Tensor, smoothing: float | Tensor) -> Tensor:
    """Move a share of each label evenly to all classes (label smoothing, as timm and torch have it).

    Args:
        labels: weights of the classes, mixed perhaps, [B,K].
        smoothing: the share, 0..1, of every label, or of each class's, [K].
    """
    share = labels * smoothing
    return labels - share + share.sum(dim=1, keepdim=True) / labels.shape[1]


def smooth_binary_labels(labels: Tensor, smoothing: float | Tensor) -> Tensor:
    """Move the labels of several an image towards 1/2 (`smooth_dense` of timm's BinaryCrossEntropy).

    Args:
        labels: of each class by itself, 0..1, [B,K].
        smoothing: how far, 0..1: 1 is 1/2; of every class, or of each, [K].
    """
    return labels * (1 - smoothing) + 0.5 * smoothing


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of logits [B,K] with labels [B] or with weights of the classes [B,K]."""
    return F.cross_entropy(logits.float(), targets)


def binary_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    class_weights: Tensor | None = None,
    pos_weights: Tensor | None = None,
    target_thresh: float | None = None,
    sum_classes: bool = False,
) -> Tensor:
    """Return the binary cross-entropy of each class by itself (timm.loss.BinaryCrossEntropy).

    Args:
        logits: [B,K].
        targets: 0..1, [B,K].
        class_weights: of both terms of each class, [K].
        pos_weights: of the positive term of each class, [K].
        target_thresh: targets above it become 1, others 0; None: they stay.
        sum_classes: whether classes are summed; else the loss is their mean.
    """
    if target_thresh is not None:
        targets = (targets > target_thresh).float()
    # torch's own mean, as timm takes it: that of single losses has other last bits in its gradient.
    loss = F.binary_cross_entropy_with_logits(
        logits.float(),
        targets,
        class_weights,
        pos_weight=pos_weights,
        reduction="none" if sum_classes else "mean",
    )
    return loss.sum(dim=1).mean() if sum_classes else loss


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_neg: float,
    gamma_pos: float,
    clip: float,
    class_weights: Tensor | None = None,
    pos_weights: Tensor | None = None,
) -> Tensor:
    """Return the asymmetric loss of several labels (arXiv 2009.14119, Eq. 7; timm's
    AsymmetricLossMultiLabel in its reduction `batchmean`: classes are summed).

    With p a class's probability and q = min(1 - p + clip, 1), a label y costs
    -(y log p + (1 - y) log q) (1 - y p - (1 - y) q)^(y gamma_pos + (1 - y) gamma_neg).
    A label that is met exactly has neither loss nor gradient, also where gamma is below 1 and the slope
    of the power has no limit.

    Args:
        logits: [B,K].
        targets: 0..1, [B,K]; between them where images are mixed or labels smoothed.
        gamma_neg: focus on hard negatives, from 0.
        gamma_pos: focus on hard positives, from 0.
        clip: probability below which a negative costs nothing, 0..1.
        class_weights: of both terms of each class, [K].
        pos_weights: of the positive term of each class, [K].
    """
    probs = logits.float().sigmoid()
    negatives = (1 - probs + clip).clamp(max=1) if clip else 1 - probs
    positive = targets * probs.clamp(min=ASL_EPS).log()
    if pos_weights is not None:
        positive = positive * pos_weights
    losses = -(positive + (1 - targets) * negatives.clamp(min=ASL_EPS).log())
    if gamma_neg or gamma_pos:
        right = targets * probs + (1 - targets) * negatives
        missed = (1 - right).clamp(min=ASL_EPS)
        losses = losses * missed.pow(targets * gamma_pos + (1 - targets) * gamma_neg)
    if class_weights is not None:
        losses = losses * class_weights
    return losses.sum(dim=1).mean()


def soft_distillation(logits: Tensor, targets: Tensor, *, tau: float, reduction: str) -> Tensor:
    """Return tau^2 KL(targets || softmax(logits / tau)) (DeiT Eq. 2, second term).

    Args:
        logits: the student's, [B,K].
        targets: the teacher's probabilities, already at temperature tau, [B,K].
        tau: temperature, above 0.
        reduction: `batchmean` sums over classes and averages over images, as Eq. 2 and `F.kl_div`
            have it; `mean` divides by B * K, as the released code does (deit/losses.py, `/
            outputs_kd.numel()`): K times weaker.
    """
    log_probs = F.log_softmax(logits.float() / tau, dim=1)
    divergence = F.kl_div(log_probs, targets, reduction="sum")
    return tau**2 * divergence / _count_terms(logits, reduction)


def soft_binary_distillation(
    logits: Tensor, targets: Tensor, *, tau: float, reduction: str
) -> Tensor:
    """Return tau^2 times the divergence KL(targets || sigmoid(logits / tau)) of each class by itself.

    It is DeiT's Eq. 2 with two outcomes a class: several labels are as many binary problems, the
    logits' part of arXiv 2308.06453 (one-versus-all reduction).

    Args:
        logits: the student's, [B,K].
        targets: the teacher's probabilities, already at temperature tau, [B,K].
        tau: temperature, above 0.
        reduction: as in `soft_distillation`; `mean` is the mean over classes too.
    """
    scaled = logits.float() / tau
    divergence = F.kl_div(F.logsigmoid(scaled), targets, reduction="sum")
    divergence = divergence + F.kl_div(F.logsigmoid(-scaled), 1 - targets, reduction="sum")
    return tau**2 * divergence / _count_terms(logits, reduction)


def _count_terms(logits: Tensor, reduction: str) -> int:
    """Return what a sum over images and classes is divided by."""
    if reduction not in ("batchmean", "mean"):
        raise ValueError(f"reduction is 'batchmean' or 'mean', not {reduction!r}")
    return len(logits) if reduction == "batchmean" else logits.numel()

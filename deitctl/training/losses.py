"""The objectives of the paper as pure functions. Letters: B images, K classes. Every loss is a mean over images.

Logits may be of any float type; the arithmetic is in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def smooth_labels(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Turn true labels [B] into targets [B,K]: 1 - smoothing on the label, plus smoothing / K on every class."""
    targets = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1.0 - smoothing + smoothing / num_classes)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits [B,K] with labels [B] or with target distributions [B,K]."""
    return F.cross_entropy(logits.float(), targets)


def teacher_targets(logits: Tensor, mode: str, tau: float) -> Tensor:
    """Turn a teacher's logits [B,K] into what it says, a distribution [B,K]: all on its decision, or softened by tau.

    The decision of `hard` is not smoothed (DeiT §3: "smoothing of true labels only").
    """
    if mode == "hard":
        return F.one_hot(logits.argmax(dim=1), logits.shape[1]).float()
    return (logits.float() / tau).softmax(dim=1)


def hard_distillation(student: Tensor, word: Tensor) -> Tensor:
    """Cross-entropy of the student's logits [B,K] with the teacher's decisions [B,K] (DeiT Eq. 3, second term).

    A row of `word` is a decision, or two of them weighed as two images are mixed.
    """
    return F.cross_entropy(student.float(), word)


def soft_distillation(student: Tensor, word: Tensor, *, tau: float, reduction: str) -> Tensor:
    """tau^2 KL(word || student) at temperature tau, of the student's logits [B,K] (DeiT Eq. 2, second term).

    Args:
        student: logits.
        word: the teacher's probabilities, already at temperature tau (see `teacher_targets`).
        tau: temperature, above 0.
        reduction: `batchmean` sums over classes and averages over images, as Eq. 2 has it; `mean` divides by
            B * K, as the released code does (training/losses.py, `/ outputs_kd.numel()`), which is K times weaker.
    """
    if reduction not in ("batchmean", "mean"):
        raise ValueError(f"reduction is 'batchmean' or 'mean', not {reduction!r}")
    divergence = F.kl_div(
        F.log_softmax(student.float() / tau, dim=1),
        word,
        reduction="sum",
    )
    count = len(student) if reduction == "batchmean" else student.numel()
    return tau**2 * divergence / count


def combine(base: Tensor, distillation: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) * base + alpha * distillation: Eq. 3 with alpha = 1/2, Eq. 2 with alpha = lambda."""
    return (1 - alpha) * base + alpha * distillation

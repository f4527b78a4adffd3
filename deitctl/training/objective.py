"""The losses of training and distillation, named as in timm.task. Letters: B images, K classes, S
pixels of a side.

Logits may be of any float type; losses are computed in float32 and are means over images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deitctl.config import DistillConfig
from deitctl.models.heads import forward_heads


class StudentBatch(NamedTuple):
    """A batch as the student sees it: augmented, mixed, on the device."""

    images: Tensor
    """Normalized, [B,3,S,S]."""
    targets: Tensor
    """Distributions over the classes, smoothed and mixed, [B,K]."""
    teacher_targets: Tensor | None
    """The teacher's distributions of the same images, [B,K]; None without a teacher."""
    drop_path_mask: Tensor | None
    """See `VisionTransformer.sample_drop_path`; None where nothing is dropped."""


class Objective(Protocol):
    """Returns the scalar to minimize as `loss`, and its terms by name for the log."""

    def __call__(self, student: nn.Module, batch: StudentBatch) -> dict[str, Tensor]: ...


class Supervised:
    """Cross-entropy with the true labels, of both heads of a distilled DeiT without a teacher."""

    def __call__(self, student: nn.Module, batch: StudentBatch) -> dict[str, Tensor]:
        cls, dist = forward_heads(student, batch.images, batch.drop_path_mask)
        task_loss = cross_entropy(cls, batch.targets)
        if dist is None:
            return {"loss": task_loss, "task_loss": task_loss}
        task_loss_dist = cross_entropy(dist, batch.targets)
        loss = (task_loss + task_loss_dist) / 2
        return {"loss": loss, "task_loss": task_loss, "task_loss_dist": task_loss_dist}


@dataclass(frozen=True)
class Distillation:
    """True labels for the class head, teacher targets for the distillation head, or without a token
    for the same head.

    (1 - alpha) * task_loss + alpha * kd_loss: DeiT §3, Eq. 3 with `hard` and alpha = 1/2, Eq. 2
    with `soft` and alpha = lambda.
    """

    config: DistillConfig

    def __call__(self, student: nn.Module, batch: StudentBatch) -> dict[str, Tensor]:
        if batch.teacher_targets is None:
            raise ValueError("distillation needs teacher targets")
        cls, dist = forward_heads(student, batch.images, batch.drop_path_mask)
        distilled = cls if dist is None else dist
        task_loss = cross_entropy(cls, batch.targets)
        if self.config.mode == "hard":
            # A row is one hard label, or two of them weighted as two images are mixed (DeiT Eq. 3,
            # second term).
            kd_loss = cross_entropy(distilled, batch.teacher_targets)
        else:
            kd_loss = soft_distillation(
                distilled,
                batch.teacher_targets,
                tau=self.config.tau,
                reduction=self.config.reduction,
            )
        loss = (1 - self.config.alpha) * task_loss + self.config.alpha * kd_loss
        return {"loss": loss, "task_loss": task_loss, "kd_loss": kd_loss}


def smooth_labels(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return targets [B,K] of labels [B]: 1 - smoothing on the label, smoothing / K on every class."""
    targets = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1.0 - smoothing + smoothing / num_classes)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of logits [B,K] with labels [B] or with distributions [B,K]."""
    return F.cross_entropy(logits.float(), targets)


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
    if reduction not in ("batchmean", "mean"):
        raise ValueError(f"reduction is 'batchmean' or 'mean', not {reduction!r}")
    log_probs = F.log_softmax(logits.float() / tau, dim=1)
    divergence = F.kl_div(log_probs, targets, reduction="sum")
    return tau**2 * divergence / (len(logits) if reduction == "batchmean" else logits.numel())

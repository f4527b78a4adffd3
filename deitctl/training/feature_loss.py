"""Losses of a student's features with its teachers'. Letters: B images, D features of the student, T of a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def vkd_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Return the smooth L1 distance to the teacher's features, standardized image by image, mean over images and
    features.

    VkD (arXiv 2403.06213, its normalization of features for discriminative tasks; released code engine.py:
    `layer_norm` without weights, then `smooth_l1_loss`).

    Args:
        projected: the student's, orthogonally projected, [B,T].
        teacher: [B,T].
    """
    return F.smooth_l1_loss(projected, F.layer_norm(teacher, teacher.shape[1:]))


def cosine_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Return one minus the cosine between features [B,T], mean over images."""
    return (1 - F.cosine_similarity(projected, teacher, dim=1)).mean()


def mse_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared distance between features [B,T], mean over images and features (FitNets, arXiv 1412.6550)."""
    return F.mse_loss(projected, teacher)


FEATURE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "vkd": vkd_loss,
    "cosine": cosine_loss,
    "mse": mse_loss,
}


@dataclass(frozen=True)
class FeatureTerm:
    """The loss of features, which joins that of labels."""

    loss: str
    """Name in `FEATURE_LOSSES`."""
    weight: float
    pool: str
    """Of the student, see `forward_heads_and_features`."""
    projector: nn.ModuleList
    """A projection for each teacher, see `build_projector`."""

    def __call__(self, features: Tensor, teachers: tuple[Tensor, ...]) -> Tensor:
        """Return the mean loss over images and teachers of features [B,D] with each teacher's [B,T], in the
        precision of the features: a projection in bf16 would be orthogonal to two digits."""
        if len(teachers) != len(self.projector):
            raise ValueError(f"{len(self.projector)} projections and {len(teachers)} teachers")
        measure = FEATURE_LOSSES[self.loss]
        with torch.autocast(features.device.type, enabled=False):
            losses = [
                measure(project(features), teacher.to(features.dtype))
                for project, teacher in zip(self.projector, teachers, strict=True)
            ]
        return torch.stack(losses).mean()

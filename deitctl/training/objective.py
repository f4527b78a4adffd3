"""What a step minimizes: true labels alone, or true labels and a teacher. The formulas are in training/losses.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from deitctl.config import DistillConfig
from deitctl.models.heads import forward_heads
from deitctl.training import losses


class Loss(NamedTuple):
    """The scalar to minimize and its named parts, for the log."""

    total: Tensor
    parts: dict[str, Tensor]


class Objective(Protocol):
    """Images [B,3,S,S], target distributions [B,K] and a teacher's words [B,K] in, a loss out; `keep` is stochastic depth."""

    def __call__(
        self,
        student: nn.Module,
        images: Tensor,
        targets: Tensor,
        words: Tensor | None,
        keep: Tensor | None,
    ) -> Loss: ...


class Supervised:
    """Cross-entropy with the (smoothed, mixed) true labels; a second head learns the same."""

    def __call__(
        self,
        student: nn.Module,
        images: Tensor,
        targets: Tensor,
        words: Tensor | None,
        keep: Tensor | None,
    ) -> Loss:
        cls, dist = forward_heads(student, images, keep)
        loss = losses.cross_entropy(cls, targets)
        if dist is None:
            return Loss(loss, {"labels": loss})
        second = losses.cross_entropy(dist, targets)
        return Loss((loss + second) / 2, {"labels": loss, "labels_dist": second})


@dataclass(frozen=True)
class Distillation:
    """True labels for the class head; the teacher for the distillation head, or without a token for the same head.

    DeiT §3: Eq. 3 (`hard`) and Eq. 2 (`soft`).
    """

    config: DistillConfig

    def __call__(
        self,
        student: nn.Module,
        images: Tensor,
        targets: Tensor,
        words: Tensor | None,
        keep: Tensor | None,
    ) -> Loss:
        if words is None:
            raise ValueError("distillation needs the teacher's words")
        cls, dist = forward_heads(student, images, keep)
        listening = dist if dist is not None else cls
        base = losses.cross_entropy(cls, targets)
        if self.config.mode == "hard":
            taught = losses.hard_distillation(listening, words)
        else:
            taught = losses.soft_distillation(
                listening, words, tau=self.config.tau, reduction=self.config.reduction
            )
        return Loss(
            losses.combine(base, taught, self.config.alpha), {"labels": base, "teacher": taught}
        )

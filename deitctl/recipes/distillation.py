"""Defaults of distillation: by its mode, and of recipes that say nothing of a teacher."""

from __future__ import annotations

from typing import Literal, NamedTuple

DIGITS_TEACHER = "regnety_002"  # the smallest of the paper's teacher family
DIGITS_STUDENT = "deit_tiny"


class DistillDefaults(NamedTuple):
    """Weight of the teacher's labels, temperature, and weight of its features."""

    alpha: float
    tau: float
    feature_weight: float = 1.0


DISTILL_DEFAULTS = {
    "hard": DistillDefaults(alpha=0.5, tau=1.0),  # DeiT Eq. 3: one half each; no temperature
    "soft": DistillDefaults(alpha=0.1, tau=3.0),  # DeiT §5.2: lambda = 0.1, tau = 3.0
    # VkD's released code weighs labels, teacher's labels and features alike, at temperature 1
    # (main_distributed.py, --alpha 1 --gamma 1). With 1 - alpha and alpha of one half, so is 0.5.
    "features": DistillDefaults(alpha=0.0, tau=1.0),
    "features+hard": DistillDefaults(alpha=0.5, tau=1.0, feature_weight=0.5),
    "features+soft": DistillDefaults(alpha=0.5, tau=1.0, feature_weight=0.5),
}
DISTILL_REDUCTION: Literal["batchmean", "mean"] = "batchmean"  # DeiT Eq. 2
DISTILL_TOPK = 100
DISTILL_VIEWS = 8
"""Views per image where a recipe names no number; docs/results/distillation.md has accuracies with fewer and more."""
VIEW_PASSES = 10
"""Times that a view may come of few images, where a recipe's number of views would let it come more often: with 4 views
of 145 digits in 200 epochs, 50 times each, no way of distilling helped, and with 32 each did
(docs/results/distillation.md)."""
FULL_FINETUNE_IMAGES = 50
"""Training images a class from which `--finetune-teacher auto` fine-tunes all of a teacher instead of its head."""

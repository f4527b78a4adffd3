"""Is a model right as often as it says? Reliability, and the one number that mends it (Guo et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deitctl.evaluation.metrics import Reliability, expected_calibration_error, reliability
from deitctl.evaluation.result import Evaluation
from deitctl.models.heads import fuse_heads
from deitctl.models.model_config import HEADS, MAX_TEMPERATURE, MIN_TEMPERATURE

FOLDS = 5
STEPS = 50
ROWS = 2048
"""Images at a time, so that a step does not need the memory of all logits again."""
CLOSE = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What temperatures would do to a model; each is measured on images that it was not fitted to."""

    temperatures: dict[str, float]
    """Of each head rule, fitted to all images: what the raw logits should be divided by."""
    temperature: float
    """That of the model's rule."""
    loss: float
    """Of the model's rule after cross-fitting: each fifth of the images by the temperature of the other four."""
    ece: float
    """Likewise."""
    reliability: Reliability
    """Likewise."""
    num_images: int
    """Images it was fitted to."""


def calibrate(scores: Evaluation) -> Calibration | None:
    """Fit a temperature to each head rule of an evaluation with logits.

    Returns:
        None where there is no such temperature: without a mistake among the images, or with almost nothing right.
    """
    if scores.logits is None:
        raise ValueError("this evaluation has no logits")
    targets, (cls, dist) = scores.targets[scores.kept], scores.logits
    if len(targets) < FOLDS:
        return None
    joined = (
        {scores.head: cls}
        if dist is None
        else {rule: fuse_heads(scores.logits, rule) for rule in HEADS}
    )
    fitted = {rule: fit_temperature(logits, targets) for rule, logits in joined.items()}
    temperature = fitted[scores.head]
    if temperature is None:
        return None
    logits = joined[scores.head]
    confidence, right, losses = (
        torch.empty(len(targets)),
        torch.empty(len(targets), dtype=torch.bool),
        0.0,
    )
    fold = (
        torch.randperm(len(targets), generator=torch.Generator().manual_seed(0)) % FOLDS
    )  # whatever the data's order
    for n in range(FOLDS):
        held = fold == n
        cooled = logits[held] / (fit_temperature(logits[~held], targets[~held]) or temperature)
        confidence[held], answer = cooled.softmax(1).max(1)
        right[held] = answer == targets[held]
        losses += float(F.cross_entropy(cooled, targets[held], reduction="sum"))
    return Calibration(
        temperatures={rule: t for rule, t in fitted.items() if t is not None},
        temperature=temperature,
        loss=losses / len(targets),
        ece=expected_calibration_error(confidence, right),
        reliability=reliability(confidence, right),
        num_images=len(targets),
    )


def fit_temperature(logits: Tensor, targets: Tensor) -> float | None:
    """Return the temperature T that minimizes the cross-entropy of softmax(logits / T) (Guo et al. 2017, §4.2).

    The loss is convex in b = 1/T, with the first derivative mean(E_p[z] - z_y) and the second mean(Var_p[z]); Newton's
    steps, kept between the ends of what a model config may carry.

    Args:
        logits: [N,K].
        targets: the right classes, [N].

    Returns:
        None where the minimum lies outside `MIN_TEMPERATURE` to `MAX_TEMPERATURE`.
    """
    picked = logits.gather(1, targets[:, None])[:, 0].double()
    low, high, b = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE, 1.0
    if (
        not _slope(logits, picked, low)[0] < 0 < _slope(logits, picked, high)[0]
    ):  # nor where one is no number
        return None
    for _ in range(STEPS):
        first, second = _slope(logits, picked, b)
        low, high = (low, b) if first > 0 else (b, high)  # the minimum stays between
        step = b - first / second if second > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - b) < CLOSE * b:
            break
        b = following
    return 1 / b


def _slope(logits: Tensor, picked: Tensor, b: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean cross-entropy of softmax(b z) by b."""
    first = second = 0.0
    for z, right in zip(torch.split(logits, ROWS), torch.split(picked, ROWS), strict=True):
        p = (b * z).softmax(1)
        mean = (p * z).sum(1)
        first += float((mean.double() - right).sum())
        second += float((p * z.square()).sum(1).sub(mean.square()).double().sum())
    return first / len(logits), second / len(logits)

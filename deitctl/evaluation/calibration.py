"""Temperature scaling (Guo et al. 2017): a fitted temperature for each head rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deitctl.evaluation.metrics import (
    ReliabilityBin,
    compute_reliability,
    expected_calibration_error,
)
from deitctl.models.heads import fuse_heads
from deitctl.models.model_config import HEADS, MAX_TEMPERATURE, MIN_TEMPERATURE
from deitctl.models.vit import HeadLogits
from deitctl.records import hidden

FOLDS = 5
MAX_STEPS = 50
ROWS = 2048  # images at a time, so that a Newton step does not need the memory of all logits again
TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Fitted temperatures, and with them the errors of the model's head rule."""

    temperature: float
    """Fitted temperature of the model's head rule: what its raw logits should be divided by."""
    temperatures: dict[str, float]
    """Fitted temperature of each head rule."""
    loss: float
    """Cross-entropy, cross-fitted: each fifth of the images with the temperature of the others."""
    ece: float
    """Expected calibration error, cross-fitted likewise, 0..1."""
    num_images: int
    """Images that the temperatures were fitted to."""
    reliability: list[ReliabilityBin] = hidden()


def calibrate(heads: HeadLogits, targets: Tensor, head: str) -> Calibration | None:
    """Fit a temperature to each head rule.

    Args:
        heads: raw logits, [N,K] each.
        targets: right classes, [N].
        head: the model's head rule.

    Returns:
        None if no temperature fits: fewer than five images, all predictions right, or almost none.
    """
    if len(targets) < FOLDS:
        return None
    fused = (
        {head: heads.cls}
        if heads.dist is None
        else {rule: fuse_heads(heads, rule) for rule in HEADS}
    )
    temperatures = {rule: fit_temperature(logits, targets) for rule, logits in fused.items()}
    temperature, logits = temperatures[head], fused[head]
    if temperature is None:
        return None
    # Drawn, so that the order of the data (often by class) does not decide what a fold holds.
    fold = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0)) % FOLDS
    confidence = torch.empty(len(targets))
    correct = torch.empty(len(targets), dtype=torch.bool)
    loss = 0.0
    for n in range(FOLDS):
        held_out = fold == n
        fitted = fit_temperature(logits[~held_out], targets[~held_out]) or temperature
        scaled = logits[held_out] / fitted
        confidence[held_out], preds = scaled.softmax(1).max(1)
        correct[held_out] = preds == targets[held_out]
        loss += float(F.cross_entropy(scaled, targets[held_out], reduction="sum"))
    return Calibration(
        temperature=temperature,
        temperatures={rule: t for rule, t in temperatures.items() if t is not None},
        loss=loss / len(targets),
        ece=expected_calibration_error(confidence, correct),
        num_images=len(targets),
        reliability=compute_reliability(confidence, correct),
    )


def fit_temperature(logits: Tensor, targets: Tensor) -> float | None:
    """Return the T that minimizes the cross-entropy of softmax(logits / T) (Guo et al. 2017, §4.2).

    Args:
        logits: [N,K].
        targets: right classes, [N].

    Returns:
        None if the minimum lies outside `MIN_TEMPERATURE` to `MAX_TEMPERATURE`.
    """
    # The loss is convex in b = 1/T, with the derivatives mean(E_p[z] - z_y) and mean(Var_p[z]):
    # Newton's steps, and bisection where a step leaves the bracket.
    target_logits = logits.gather(1, targets[:, None])[:, 0].double()
    low, high, b = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE, 1.0
    first_low = _compute_derivatives(logits, target_logits, low)[0]
    first_high = _compute_derivatives(logits, target_logits, high)[0]
    if not first_low < 0 < first_high:  # false for NaN as well
        return None
    for _ in range(MAX_STEPS):
        first, second = _compute_derivatives(logits, target_logits, b)
        low, high = (low, b) if first > 0 else (b, high)  # the minimum stays inside
        step = b - first / second if second > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - b) < TOLERANCE * b:
            break
        b = following
    return 1 / b


def _compute_derivatives(logits: Tensor, target_logits: Tensor, b: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean cross-entropy of softmax(b z) by b."""
    first = second = 0.0
    for z, z_y in zip(torch.split(logits, ROWS), torch.split(target_logits, ROWS), strict=True):
        p = (b * z).softmax(1)
        mean = (p * z).sum(1)
        first += float((mean.double() - z_y).sum())
        second += float((p * z.square()).sum(1).sub(mean.square()).double().sum())
    return first / len(logits), second / len(logits)

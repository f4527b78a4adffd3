"""Temperature scaling (Guo et al. 2017): a fitted temperature for each head rule, of either task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deitctl.evaluation.metrics import (
    ReliabilityBin,
    compute_reliability,
    expected_calibration_error,
)
from deitctl.evaluation.multilabel import Labels, classwise_calibration_error
from deitctl.models.heads import fuse_heads
from deitctl.models.model_config import HEADS, MAX_TEMPERATURE, MIN_TEMPERATURE
from deitctl.models.tasks import MULTILABEL
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


@dataclass(frozen=True, kw_only=True)
class SigmoidCalibration:
    """Fitted temperatures, and with them the errors of the model's head rule."""

    temperature: float
    """Fitted temperature of the model's head rule: what its raw logits should be divided by."""
    temperatures: dict[str, float]
    """Fitted temperature of each head rule."""
    loss: float
    """Binary cross-entropy, cross-fitted: each fifth of the images with the temperature of the others."""
    ece: float
    """Mean expected calibration error of the classes, cross-fitted likewise, 0..1."""
    num_images: int
    """Images that the temperatures were fitted to."""


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
    fold = _draw_folds(len(targets))
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


def calibrate_labels(heads: HeadLogits, labels: Labels, head: str) -> SigmoidCalibration | None:
    """Fit a temperature to each head rule of images with several labels.

    Args:
        heads: raw logits, [N,K] each.
        labels: which classes each image has, [N,K].
        head: the model's head rule.

    Returns:
        None if no temperature fits: fewer than five images, or all classes of all are right, or none.
    """
    count, targets = len(labels), torch.from_numpy(labels)
    if count < FOLDS:
        return None
    fused = (
        {head: heads.cls}
        if heads.dist is None
        else {rule: fuse_heads(heads, rule, MULTILABEL) for rule in HEADS}
    )
    temperatures = {rule: fit_sigmoid_temperature(x, targets) for rule, x in fused.items()}
    temperature, logits = temperatures[head], fused[head]
    if temperature is None:
        return None
    fold, scaled = _draw_folds(count), torch.empty_like(logits)
    for n in range(FOLDS):
        held_out = fold == n
        fitted = fit_sigmoid_temperature(logits[~held_out], targets[~held_out]) or temperature
        scaled[held_out] = logits[held_out] / fitted
    loss = F.binary_cross_entropy_with_logits(scaled.double(), targets.double())
    errors = classwise_calibration_error(labels, scaled.double().sigmoid().numpy())
    return SigmoidCalibration(
        temperature=temperature,
        temperatures={rule: t for rule, t in temperatures.items() if t is not None},
        loss=float(loss),
        ece=float(errors.mean()),
        num_images=count,
    )


def _draw_folds(count: int) -> Tensor:
    """Return the fold of each image, [N]: drawn, so that the order of the data (often by class) does not
    decide what a fold holds."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)) % FOLDS


def fit_temperature(logits: Tensor, targets: Tensor) -> float | None:
    """Return the T that minimizes the cross-entropy of softmax(logits / T) (Guo et al. 2017, §4.2).

    Args:
        logits: [N,K].
        targets: right classes, [N].

    Returns:
        None if the minimum lies outside `MIN_TEMPERATURE` to `MAX_TEMPERATURE`.
    """
    target_logits = logits.gather(1, targets[:, None])[:, 0].double()
    return _minimize(lambda b: _compute_derivatives(logits, target_logits, b))


def fit_sigmoid_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Return the T that minimizes the binary cross-entropy of sigmoid(logits / T).

    Args:
        logits: [N,K].
        labels: which classes each image has, bool [N,K].

    Returns:
        None if the minimum lies outside `MIN_TEMPERATURE` to `MAX_TEMPERATURE`.
    """
    return _minimize(lambda b: _compute_sigmoid_derivatives(logits, labels, b))


def _minimize(compute_derivatives: Callable[[float], tuple[float, float]]) -> float | None:
    """Return 1 / b for the b between the limits where a first derivative is 0; None if there is none.

    Args:
        compute_derivatives: returns the first and second derivative of a convex loss at b.
    """
    # Both losses are convex in b = 1/T: Newton's steps, and bisection where a step leaves the bracket.
    low, high, b = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE, 1.0
    first_low, first_high = compute_derivatives(low)[0], compute_derivatives(high)[0]
    if not first_low < 0 < first_high:  # false for NaN as well
        return None
    for _ in range(MAX_STEPS):
        first, second = compute_derivatives(b)
        low, high = (low, b) if first > 0 else (b, high)  # the minimum stays inside
        step = b - first / second if second > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - b) < TOLERANCE * b:
            break
        b = following
    return 1 / b


def _compute_derivatives(logits: Tensor, target_logits: Tensor, b: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean cross-entropy of softmax(b z) by b:
    mean(E_p[z] - z_y) and mean(Var_p[z])."""
    first = second = 0.0
    for z, z_y in zip(torch.split(logits, ROWS), torch.split(target_logits, ROWS), strict=True):
        p = (b * z).softmax(1)
        mean = (p * z).sum(1)
        first += float((mean.double() - z_y).sum())
        second += float((p * z.square()).sum(1).sub(mean.square()).double().sum())
    return first / len(logits), second / len(logits)


def _compute_sigmoid_derivatives(logits: Tensor, labels: Tensor, b: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean binary cross-entropy of sigmoid(b z) by b:
    mean(z (p - y)) and mean(z^2 p (1 - p))."""
    first = second = 0.0
    for z, y in zip(torch.split(logits, ROWS), torch.split(labels, ROWS), strict=True):
        p = (b * z).sigmoid()
        first += float((z * (p - y.float())).double().sum())
        second += float((z.square() * p * (1 - p)).double().sum())
    return first / logits.numel(), second / logits.numel()

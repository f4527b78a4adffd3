"""New heads on pretrained weights: fitted to the features in closed form, before the first step.

A head of random weights sends the backbone gradients of no meaning until it is learned, which ruins features where
images are few (Kumar et al. 2022, arXiv 2202.10054, who train a linear probe first). Ridge regression of the classes
on the features gives such a probe without training, for one forward pass over the images. Its values lie around 0
to 1; how they become logits depends on the loss: one scale for a softmax, a scale and a shift of each class for
sigmoids.

Letters: N images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deitctl import rng
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import build_eval_loader
from deitctl.data.subsets import select
from deitctl.device import Device
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.multilabel import average_precision, mean_average_precision, rank
from deitctl.events import Reporter
from deitctl.models.introspect import describe_layers
from deitctl.models.model_config import ModelConfig
from deitctl.pieces import Pieces
from deitctl.training.losses import make_targets, smooth_binary_labels, smooth_labels
from deitctl.training.objective import BinaryLoss, CrossEntropy, TaskLoss, uses_sigmoids

MAX_IMAGES = 5_000
"""Images that heads are fitted to; more change little, and would cost part of an epoch."""
BATCH_SIZE = 64
PENALTIES = tuple(10.0**exponent for exponent in range(-3, 3))
"""Ridge penalties that are tried, relative to N times the features' mean variance."""
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 11.0, 16.0, 22.0)
"""Factors that are tried between the regression's values, which lie around 0 to 1, and logits of a softmax."""
NEWTON_STEPS = 30
"""Of the scale and shift of sigmoids; the last of them change nothing."""


class RidgeHead(NamedTuple):
    """A linear head: logits = features @ weight.T + bias."""

    weight: Tensor
    """[K,D]"""
    bias: Tensor
    """[K]"""
    loo_score: float
    """When each image is left out of its own fit: percent of the images that are right; of several labels, mean
    average precision in percent."""


def fit_new_heads(
    model: nn.Module,
    model_config: ModelConfig,
    dataset: ImageDataset,
    *,
    task_loss: TaskLoss,
    seed: int,
    device: Device,
    workers: int,
    reporter: Reporter,
    pause: Callable[[], None] = lambda: None,
    max_images: int = MAX_IMAGES,
) -> float | None:
    """Set the heads of a model by ridge regression of the classes on its features.

    Args:
        model: on the device; put into eval mode.
        model_config: with the preprocessing of the images.
        dataset: training images, of which `max_images` drawn by the seed are used.
        task_loss: that the logits are scaled for, and that begins to train them.
        seed: of the run.
        device: device and precision of the forward pass.
        workers: loader processes.
        reporter: shows progress, and warns of features that are not finite.
        pause: called before every batch; may raise to stop, and the model is then as it was.
        max_images: see `dataset`.

    Returns:
        The first head's `RidgeHead.loo_score`, None where a head is not a linear layer, too few images
        can be read or a feature is not finite; such heads stay as they are.
    """
    layers = [model.get_submodule(name) for name in describe_layers(model)["classifier"]]
    heads = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(heads) < len(layers):
        return None
    count = len(dataset.labels)
    chosen = rng.generator(seed, "head-init").permutation(count)[:max_images]
    inputs_of, labels = _compute_features(
        EvalModel(
            model=model.eval(),
            preprocessing=model_config.preprocessing,
            rows=tuple(range(model_config.num_classes)),
            head=model_config.head,
        ),
        heads,
        select(dataset, np.sort(chosen)),
        device=device,
        workers=workers,
        reporter=reporter,
        pause=pause,
    )
    if len(labels) < 2:
        return None
    is_finite = torch.stack([inputs.isfinite().all(1) for inputs in inputs_of]).all(0)
    if not is_finite.all():
        reporter.warn(
            f"The new head is not fitted, and starts from random weights: {model_config.architecture} in "
            f"{device.precision} gives {int((~is_finite).sum())} of {len(is_finite)} images features that are "
            "not finite. Try --precision fp32, or other weights."
        )
        return None
    scores = [
        _fit_head(head, inputs, labels, task_loss)
        for head, inputs in zip(heads, inputs_of, strict=True)
    ]
    return scores[0]


def _compute_features(
    eval_model: EvalModel,
    heads: Sequence[nn.Linear],
    images: ImageDataset,
    *,
    device: Device,
    workers: int,
    reporter: Reporter,
    pause: Callable[[], None],
) -> tuple[list[Tensor], Tensor]:
    """Return what each head sees of the images that can be read, [N,D], and their labels."""
    labels: list[Tensor] = [torch.from_numpy(images.labels[:0])]
    batches = build_eval_loader(
        images,
        [eval_model.preprocessing],
        batch_size=BATCH_SIZE,
        workers=workers,
        pin_memory=device.pins_memory,
        pause=pause,
        reporter=reporter,
    )
    pieces = Pieces(device, eval_model.choose_piece_size(device))
    with (
        torch.no_grad(),
        _record_inputs(heads) as features,
        reporter.task("fit the new head", len(images.labels)) as task,
    ):
        for batch in batches:
            pause()
            if len(batch.indices):
                eval_model.forward_where_it_fits(batch.images[0], pieces)
                labels.append(batch.labels)
            task.advance(len(batch.indices) + len(batch.errors))
    return [torch.cat(inputs) for inputs in features if inputs], torch.cat(labels)


@torch.no_grad()
def _fit_head(head: nn.Linear, features: Tensor, labels: Tensor, task_loss: TaskLoss) -> float:
    """Set a head by ridge regression for a loss; return its `RidgeHead.loo_score`."""
    fitted = fit_ridge(
        features,
        labels,
        head.out_features,
        smoothing=task_loss.smoothing if isinstance(task_loss, CrossEntropy | BinaryLoss) else 0.0,
        has_sigmoid=uses_sigmoids(task_loss, is_multilabel=labels.ndim == 2),
    )
    head.weight.copy_(fitted.weight)
    if head.bias is not None:
        adjustment = task_loss.adjustment if isinstance(task_loss, CrossEntropy) else None
        head.bias.copy_(fitted.bias if adjustment is None else fitted.bias - adjustment.cpu())
    return fitted.loo_score


@contextmanager
def _record_inputs(layers: Sequence[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """Collect what each layer is called with, on the CPU."""
    inputs: list[list[Tensor]] = [[] for _ in layers]
    position_of = {layer: position for position, layer in enumerate(layers)}

    def record(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs[position_of[layer]].append(args[0].float().cpu())

    handles = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def fit_ridge(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    smoothing: float | Tensor,
    has_sigmoid: bool = False,
) -> RidgeHead:
    """Fit a linear head by ridge regression on one-hot classes, or on 0 and 1 of several (Hoerl and Kennard 1970).

    The penalty is that with the least cross-entropy of predictions that leave each image out of its own fit, which
    ridge regression gives without fitting again: the residual of image i divided by 1 - H_ii, where H maps targets to
    fitted values. So are the scale and, with sigmoids, the shift that make logits of them.

    Args:
        features: [N,D].
        labels: int64 [N], from 0; of several an image bool [N,K].
        num_classes: K; classes without an image get their mean, 0, as a value.
        smoothing: label smoothing of that cross-entropy, of every label or of each class's, [K].
        has_sigmoid: whether the cross-entropy is that of each class by itself.
    """
    x, count, is_multilabel = features.double(), len(labels), labels.ndim == 2
    targets = make_targets(labels, num_classes).double()
    smooth = smooth_binary_labels if is_multilabel else smooth_labels
    smoothed = smooth(
        targets, smoothing.double().cpu() if isinstance(smoothing, Tensor) else smoothing
    )
    mean_x, mean_y = x.mean(0), targets.mean(0)
    u, s, vh = torch.linalg.svd(x - mean_x, full_matrices=False)
    rotated = u.T @ (targets - mean_y)
    variance = float((s**2).sum()) / x.shape[1]  # N times the features' mean variance
    fit_logits = fit_sigmoids if has_sigmoid else fit_softmax
    best: tuple[LogitFit, Tensor, Tensor] | None = None
    for penalty in PENALTIES:
        shrinkage = s**2 / (s**2 + penalty * variance + 1e-12)
        fitted = mean_y + u @ (shrinkage[:, None] * rotated)
        leverage = (u**2 @ shrinkage + 1 / count).clamp(max=1 - 1e-6)
        left_out = targets - (targets - fitted) / (1 - leverage)[:, None]
        fit = fit_logits(left_out, smoothed)
        if best is None or fit.loss < best[0].loss:
            weight = (vh.T @ ((shrinkage / s.clamp(min=1e-12))[:, None] * rotated)).T
            best = fit, weight, left_out
    assert best is not None
    fit, weight, left_out = best
    bias = fit.scale * (mean_y - weight @ mean_x) + fit.shift
    score = _score_left_out(left_out * fit.scale + fit.shift, labels)
    return RidgeHead((fit.scale[:, None] * weight).float(), bias.float(), score)


class LogitFit(NamedTuple):
    """What makes logits of regression values: logits = values * scale + shift."""

    loss: float
    scale: Tensor
    """[K]"""
    shift: Tensor
    """[K]"""


def fit_softmax(values: Tensor, targets: Tensor) -> LogitFit:
    """Return the one of `SCALES` with the least cross-entropy of values [N,K] with targets [N,K]."""
    losses = [float(F.cross_entropy(scale * values, targets)) for scale in SCALES]
    scale = SCALES[int(np.argmin(losses))]
    return LogitFit(min(losses), values.new_full((values.shape[1],), scale), values.new_zeros(()))


def fit_sigmoids(values: Tensor, targets: Tensor) -> LogitFit:
    """Return the scale and shift of each class with the least binary cross-entropy, by Newton's method.

    The targets are softened as if each class had one more image of either kind (Platt 1999, section 2.2), so that the
    logits of classes that the values separate without an error, or that no image has, stay finite.

    Args:
        values: [N,K].
        targets: 0..1, [N,K].
    """
    count = len(values)
    positives = targets.sum(0)
    low, high = 1 / (count - positives + 2), (positives + 1) / (positives + 2)
    softened = low + targets * (high - low)
    mean, deviation = values.mean(0), values.std(0, correction=0).clamp(min=1e-6)
    z = (values - mean) / deviation
    scale, shift = torch.zeros_like(mean), torch.logit(softened.mean(0))
    for _ in range(NEWTON_STEPS):
        probs = (z * scale + shift).sigmoid()
        residual, slope = probs - softened, probs * (1 - probs)
        along_scale, along_shift = (residual * z).mean(0), residual.mean(0)
        a, b, c = (slope * z**2).mean(0) + 1e-6, (slope * z).mean(0), slope.mean(0) + 1e-6
        determinant = a * c - b**2
        # Where probabilities are near 0 and 1 the loss is nearly straight, and a whole step too far.
        scale = scale - ((c * along_scale - b * along_shift) / determinant).clamp(-1, 1)
        shift = shift - ((a * along_shift - b * along_scale) / determinant).clamp(-1, 1)
    loss = float(F.binary_cross_entropy_with_logits(z * scale + shift, targets))
    return LogitFit(loss, scale / deviation, shift - scale * mean / deviation)


def _score_left_out(logits: Tensor, labels: Tensor) -> float:
    """Return the accuracy of logits [N,K], or of several labels their mean average precision, percent."""
    if labels.ndim == 1:
        return 100 * float((logits.argmax(1) == labels).double().mean())
    ranking = rank(labels.numpy(), logits.numpy())
    return 100 * float(np.nan_to_num(mean_average_precision(average_precision(ranking))))

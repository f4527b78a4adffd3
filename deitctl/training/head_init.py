"""New heads on pretrained weights: fitted to the features in closed form, before the first step.

A head of random weights sends the backbone gradients of no meaning until it is learned, which ruins features where
images are few (Kumar et al. 2022, arXiv 2202.10054, who train a linear probe first). Ridge regression of the classes
on the features gives such a probe without training, for one forward pass over the images.

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
from deitctl.data.dataset import ImageDataset, select
from deitctl.data.loader import build_eval_loader
from deitctl.device import Device
from deitctl.evaluation.eval_model import EvalModel
from deitctl.events import Reporter
from deitctl.models.introspect import describe_layers
from deitctl.models.model_config import ModelConfig

MAX_IMAGES = 5_000
"""Images that heads are fitted to; more change little, and would cost part of an epoch."""
BATCH_SIZE = 64
PENALTIES = tuple(10.0**exponent for exponent in range(-3, 3))
"""Ridge penalties that are tried, relative to N times the features' mean variance."""
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 11.0, 16.0, 22.0)
"""Factors that are tried between the regression's values, which lie around 0 to 1, and logits."""


class RidgeHead(NamedTuple):
    """A linear head: logits = features @ weight.T + bias."""

    weight: Tensor
    """[K,D]"""
    bias: Tensor
    """[K]"""
    loo_accuracy: float
    """Percent of the images that are right when each is left out of its own fit."""


def fit_new_heads(
    model: nn.Module,
    model_config: ModelConfig,
    dataset: ImageDataset,
    *,
    smoothing: float,
    seed: int,
    device: Device,
    workers: int,
    reporter: Reporter,
    pause: Callable[[], None] = lambda: None,
) -> float | None:
    """Set the heads of a model by ridge regression of the classes on its features.

    Args:
        model: on the device; put into eval mode.
        model_config: with the preprocessing of the images.
        dataset: training images, of which `MAX_IMAGES` drawn by the seed are used.
        smoothing: label smoothing of the loss that the logits are scaled for.
        seed: of the run.
        device: device and precision of the forward pass.
        workers: loader processes.
        reporter: shows progress, and warns of features that are not finite.
        pause: called before every batch; may raise to stop, and the model is then as it was.

    Returns:
        The first head's leave-one-out accuracy in percent, None where a head is not a linear layer, too few images
        can be read or a feature is not finite; such heads stay as they are.
    """
    layers = [model.get_submodule(name) for name in describe_layers(model)["classifier"]]
    heads = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(heads) < len(layers):
        return None
    count = len(dataset.labels)
    chosen = rng.generator(seed, "head-init").permutation(count)[:MAX_IMAGES]
    images = select(dataset, np.sort(chosen))
    eval_model = EvalModel(
        model=model.eval(),
        preprocessing=model_config.preprocessing,
        rows=tuple(range(model_config.num_classes)),
        head=model_config.head,
    )
    labels: list[Tensor] = []
    batches = build_eval_loader(
        images,
        [model_config.preprocessing],
        batch_size=BATCH_SIZE,
        workers=workers,
        pin_memory=device.pins_memory,
        pause=pause,
        reporter=reporter,
    )
    with (
        torch.no_grad(),
        _record_inputs(heads) as features,
        reporter.task("fit the new head", len(images.labels)) as task,
    ):
        for batch in batches:
            pause()
            if len(batch.indices):
                eval_model.forward_in_pieces(device.to_device(batch.images[0]), device)
                labels.append(batch.labels)
            task.advance(len(batch.indices) + len(batch.errors))
    if sum(map(len, labels)) < 2:
        return None
    inputs_of = [torch.cat(inputs) for inputs in features]
    is_finite = torch.stack([inputs.isfinite().all(1) for inputs in inputs_of]).all(0)
    if not is_finite.all():
        reporter.warn(
            f"The new head is not fitted, and starts from random weights: {model_config.architecture} in "
            f"{device.precision} gives {int((~is_finite).sum())} of {len(is_finite)} images features that are "
            "not finite. Try --precision fp32, or other weights."
        )
        return None
    accuracies = []
    for head, inputs in zip(heads, inputs_of, strict=True):
        fitted = fit_ridge(inputs, torch.cat(labels), model_config.num_classes, smoothing=smoothing)
        with torch.no_grad():
            head.weight.copy_(fitted.weight)
            if head.bias is not None:
                head.bias.copy_(fitted.bias)
        accuracies.append(fitted.loo_accuracy)
    return accuracies[0]


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


def fit_ridge(features: Tensor, labels: Tensor, num_classes: int, *, smoothing: float) -> RidgeHead:
    """Fit a linear head by ridge regression on one-hot classes (Hoerl and Kennard 1970).

    Penalty and scale of the logits are those with the least cross entropy of predictions that leave each image out of
    its own fit, which ridge regression gives without fitting again: the residual of image i divided by 1 - H_ii, where
    H maps targets to fitted values.

    Args:
        features: [N,D].
        labels: [N], from 0.
        num_classes: K; classes without an image get their mean, 0, as a value.
        smoothing: label smoothing of that cross entropy.
    """
    x, count = features.double(), len(labels)
    targets = F.one_hot(labels, num_classes).double()
    mean_x, mean_y = x.mean(0), targets.mean(0)
    u, s, vh = torch.linalg.svd(x - mean_x, full_matrices=False)
    rotated = u.T @ (targets - mean_y)
    variance = float((s**2).sum()) / x.shape[1]  # N times the features' mean variance
    best: tuple[float, Tensor, float, Tensor] | None = None
    for penalty in PENALTIES:
        shrinkage = s**2 / (s**2 + penalty * variance + 1e-12)
        fitted = mean_y + u @ (shrinkage[:, None] * rotated)
        leverage = (u**2 @ shrinkage + 1 / count).clamp(max=1 - 1e-6)
        left_out = targets - (targets - fitted) / (1 - leverage)[:, None]
        for scale in SCALES:
            loss = float(F.cross_entropy(scale * left_out, labels, label_smoothing=smoothing))
            if best is None or loss < best[0]:
                weight = (vh.T @ ((shrinkage / s.clamp(min=1e-12))[:, None] * rotated)).T
                best = loss, weight, scale, left_out
    assert best is not None
    _, weight, scale, left_out = best
    accuracy = 100 * float((left_out.argmax(1) == labels).double().mean())
    bias = mean_y - weight @ mean_x
    return RidgeHead((scale * weight).float(), (scale * bias).float(), accuracy)

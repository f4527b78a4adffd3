"""How well a teacher's features tell the data's classes apart: by a classifier that is fitted to a sample of them.

Letters: M views, N images, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import build_eval_loader
from deitctl.device import Device
from deitctl.distillation.teacher import Teacher
from deitctl.distillation.view_sample import BATCH_SIZE, build_sample_loader
from deitctl.errors import TeacherError
from deitctl.evaluation.multilabel import average_precision_by_class, mean_average_precision
from deitctl.events import Reporter

FitHead = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Returns weight [K,D] and bias [K] of a linear classifier by features [M,D], labels (int64 [M], or of several an
image bool [M,K]) and K."""


class FeatureSource(NamedTuple):
    """A teacher that gives features, and where it runs."""

    network: Teacher
    """On `device`."""
    config: TrainConfig
    """The student's run, for its augmentation and view seed."""
    device: Device
    reporter: Reporter

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of views, fp32 [B,D] on the CPU."""
        with torch.no_grad(), self.device.autocast():
            features = self.network.forward_views(self.device.to_device(pixels)).features
        assert features is not None
        if not features.isfinite().all():
            raise TeacherError(
                "The teacher's features are not finite.", "Check its weights; or --precision fp32."
            )
        return features.float().cpu()


def score_features(
    source: FeatureSource,
    train: ImageDataset,
    val: ImageDataset,
    keys: Sequence[tuple[int, int]],
    fit_head: FitHead,
) -> float | None:
    """Return the accuracy on the validation images of a classifier that is fitted to training views, percent.

    It is balanced accuracy, of several labels an image mean average precision: what teachers of labels are
    ordered by. None where no image can be read.

    Args:
        source: see `FeatureSource`.
        train: the training images.
        val: the validation images.
        keys: view and image of each training view.
        fit_head: see `FitHead`.

    Raises:
        TeacherError: features that are not finite.
    """
    features, labels = _compute_view_features(source, train, keys)
    if len(features) < 2:
        return None
    weight, bias = fit_head(features, labels, len(train.class_names))
    logits, labels = _compute_logits(source, val, weight, bias)
    if not len(logits):
        return None
    if val.is_multilabel:
        values = average_precision_by_class(labels.numpy(), logits.numpy())
        return 100 * float(np.nan_to_num(mean_average_precision(values)))
    correct = (logits.argmax(1) == labels).double()
    return 100 * float(
        torch.stack([correct[labels == c].mean() for c in sorted(set(labels.tolist()))]).mean()
    )


def _compute_view_features(
    source: FeatureSource, train: ImageDataset, keys: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Return features [M,D] of training views, and the labels of their images."""
    pre = source.network.model_config.preprocessing
    loader = build_sample_loader(source.config, train, keys, pre, source.device, source.reporter)
    rows, indices = [torch.empty(0, 0)], list[int]()
    with source.reporter.task("features of training views", len(keys), "views") as task:
        for batch in loader:
            if batch.keys:
                rows.append(source.forward(batch.images))
                indices += [key.index for key in batch.keys]
            task.advance(len(batch.keys) + len(batch.unreadable))
    labels = torch.from_numpy(np.asarray(train.labels[indices]))
    return torch.cat(rows[1:] or rows), labels.bool() if train.is_multilabel else labels


def _compute_logits(
    source: FeatureSource, val: ImageDataset, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a classifier's logits [N,K] of the validation images that can be read, and their labels."""
    device = source.device
    batches = build_eval_loader(
        val,
        [source.network.model_config.preprocessing],
        batch_size=BATCH_SIZE,
        workers=device.choose_num_workers(source.config.workers, in_memory=val.is_in_memory),
        pin_memory=device.pins_memory,
        reporter=source.reporter,
    )
    logits, labels = [torch.empty(0, len(bias))], [torch.from_numpy(val.labels[:0])]
    with source.reporter.task("features of validation images", len(val.labels)) as task:
        for batch in batches:
            if len(batch.indices):
                logits.append(source.forward(batch.images[0]) @ weight.T + bias)
                labels.append(batch.labels)
            task.advance(len(batch.indices) + len(batch.errors))
    return torch.cat(logits), torch.cat(labels)

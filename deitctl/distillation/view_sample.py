"""A teacher's decisions on a sample of training views, against the labels and each other.

A teacher whose decision is the label on every view teaches by hard labels what the labels already say; DeiT's
teachers err, and disagree with themselves under augmentation (DeiT section 5.2 and Table 4).

Letters: M views, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deitctl import rng
from deitctl.config import TrainConfig
from deitctl.data.batch_transforms import normalize
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import Batch, build_view_loader
from deitctl.data.samplers import SampleKey
from deitctl.data.unlabeled import find_labeled
from deitctl.device import Device
from deitctl.distillation.target_cache import DAMAGED, TargetCache
from deitctl.distillation.targets import TargetCodec, teacher_targets
from deitctl.distillation.teacher import Teacher
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.errors import TeacherError
from deitctl.events import Reporter
from deitctl.models.model_config import Preprocessing

NUM_IMAGES = 256
"""Training images of a sample: an agreement of 95 % has then a standard error of 1.4 points."""
BATCH_SIZE = 32
SMALLEST = 2.0**-24
"""Above 0 in float16: the least probability that a soft target has."""
ECHO = 99.0
"""Percent of views above which a teacher's decisions repeat the labels."""


@dataclass(frozen=True, kw_only=True)
class ViewLogits:
    """A teacher's logits of sampled views, in the order in which they were drawn."""

    keys: list[tuple[int, int]]
    """View and image of each; those that could not be read are left out."""
    logits: Tensor
    """Over the data's classes, fp32 [M,K]."""
    is_multilabel: bool

    @property
    def decisions(self) -> Tensor:
        """Hard labels, [M,K] of 0 and 1."""
        return teacher_targets(self.logits, "hard", 1.0, self.is_multilabel)

    @property
    def mean_entropy(self) -> float:
        """Mean entropy of the views' probabilities at temperature 1, nats; of several labels the mean
        over the classes as well."""
        logits = self.logits.double()
        if self.is_multilabel:
            p, q = logits.sigmoid(), (-logits).sigmoid()
            entropies = -(torch.special.xlogy(p, p) + torch.special.xlogy(q, q)).mean(1)
        else:
            p = logits.softmax(1)
            entropies = -torch.special.xlogy(p, p).sum(1)
        return float(entropies.mean())


def draw_images(
    dataset: ImageDataset, view_seed: int, count: int = NUM_IMAGES
) -> NDArray[np.int64]:
    """Return up to `count` labeled images of a data set, a function of the view seed."""
    labeled = np.flatnonzero(find_labeled(dataset.labels))
    draw = rng.generator("view-sample", view_seed)
    return labeled[draw.permutation(len(labeled))[:count]]


def read_views(
    cache: TargetCache, codec: TargetCodec, keys: Sequence[tuple[int, int]], tau: float
) -> tuple[ViewLogits, bool] | None:
    """Return what a cache holds of views, and whether these are probabilities; None where it lacks some.

    The logits are those that a soft target of temperature `tau` had, but for a constant of the view and the
    rounding of float16, or of a hard target any that have its decision. Views of damaged images are left out.
    """
    records, is_valid = cache.read(keys)
    is_damaged = records[:, 0] == DAMAGED
    if not (is_valid | is_damaged).all() or is_damaged.all():
        return None
    read = [key for key, is_good in zip(keys, is_valid, strict=True) if is_good]
    targets = codec.decode(records[is_valid]).double()
    if codec.mode == "hard":
        logits = targets - 0.5
    elif codec.is_multilabel:
        logits = tau * targets.logit(eps=SMALLEST)
    else:
        logits = tau * targets.clamp(min=SMALLEST).log()
    views = ViewLogits(keys=read, logits=logits.float(), is_multilabel=codec.is_multilabel)
    return views, codec.mode != "hard"


def run_on_views(
    network: Teacher,
    train: ImageDataset,
    config: TrainConfig,
    keys: Sequence[tuple[int, int]],
    *,
    mixed: Preprocessing | None = None,
    device: Device,
    reporter: Reporter,
    world: World = SINGLE_PROCESS,
) -> ViewLogits:
    """Return a teacher's logits of training views; collective, and equal in all processes of a `world`.

    Args:
        network: the teacher, which gives logits, on `device`.
        train: the training images.
        config: the student's run, for its augmentation and view seed.
        keys: view and image of each.
        mixed: preprocessing of the student, of which a teacher of mixed images has the views: here as they
            are before they are mixed. None: they are rendered at the teacher's own size.
        device: where the teacher runs.
        reporter: shows progress.
        world: processes that share the views.
    """
    pre = mixed or network.model_config.preprocessing
    own = keys[world.rank :: world.size]
    loader = build_sample_loader(config, train, own, pre, device, reporter)
    rows: dict[tuple[int, int], Tensor] = {}
    with reporter.task("check teacher on training views", len(keys), "views") as task:
        for batch in loader:
            if batch.keys:
                logits = _forward(network, device.to_device(batch.images), mixed, device)
                names = [(key.epoch, key.index) for key in batch.keys]
                rows.update(zip(names, logits.unbind(), strict=True))
            task.advance(world.size * (len(batch.keys) + len(batch.unreadable)))
    for part in world.all_gather_object(rows) if world.size > 1 else ():
        rows.update(part)
    read = [key for key in keys if key in rows]
    logits = (
        torch.stack([rows[key] for key in read]) if read else torch.empty(0, len(train.class_names))
    )
    return ViewLogits(keys=read, logits=logits, is_multilabel=train.is_multilabel)


def _forward(
    network: Teacher, pixels: Tensor, mixed: Preprocessing | None, device: Device
) -> Tensor:
    """Return the logits of views, fp32 [B,K] on the CPU."""
    images = None if mixed is None else normalize(pixels, mixed)
    with torch.no_grad(), device.autocast():
        output = network.forward_views(pixels) if images is None else network(images)
    logits = output.logits
    assert logits is not None
    if not logits.isfinite().all():
        raise TeacherError(
            "The teacher's logits are not finite.", "Check its weights; or --precision fp32."
        )
    return logits.float().cpu()


def measure_label_agreement(
    decisions: Tensor, dataset: ImageDataset, keys: Sequence[tuple[int, int]]
) -> float | None:
    """Return the percentage of views whose hard label, [M,K], is their image's label, of several labels
    all of its labels and no other; None without a view."""
    if not keys:
        return None
    labels = torch.from_numpy(np.asarray(dataset.labels[[index for _, index in keys]]))
    if dataset.is_multilabel:
        return measure_agreement(decisions, labels.float())
    return 100 * float((decisions.argmax(1) == labels).double().mean())


def measure_agreement(decisions: Tensor, others: Tensor) -> float:
    """Return the percentage of views with the same hard label, both [M,K]."""
    return 100 * float((decisions == others).all(1).double().mean())


def build_sample_loader(
    config: TrainConfig,
    train: ImageDataset,
    keys: Sequence[tuple[int, int]],
    preprocessing: Preprocessing,
    device: Device,
    reporter: Reporter,
) -> Iterator[Batch]:
    """Return a loader of some (view, image) pairs of the training images, for a teacher of this preprocessing."""
    assert config.distill is not None
    batches = [keys[n : n + BATCH_SIZE] for n in range(0, len(keys), BATCH_SIZE)]
    workers = device.choose_num_workers(config.workers, in_memory=train.is_in_memory)
    return build_view_loader(
        train,
        config.recipe.augment,
        preprocessing.img_size,
        config.distill.view_seed,
        ([SampleKey(view, index, 0) for view, index in batch] for batch in batches),
        in_chans=preprocessing.in_chans,
        workers=workers if len(batches) > 1 else 0,
        pin_memory=device.pins_memory,
        reporter=reporter,
    )

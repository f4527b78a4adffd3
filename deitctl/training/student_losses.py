"""From a batch on the device to its losses: transforms, teacher of mixed images, student, objective.

Letters: B images, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from deitctl.config import DistillConfig
from deitctl.data.batch_table import BatchTable, Parts, list_all_parts, list_parts
from deitctl.data.batch_transforms import mix_targets, to_model_channels, transform_batch
from deitctl.distillation.ensemble import EnsembleNetwork
from deitctl.distillation.targets import TeacherTargets, teacher_targets
from deitctl.distillation.teacher import Teacher
from deitctl.training.compilation import FewGraphs
from deitctl.training.context import TrainContext
from deitctl.training.device_batch import DeviceBatch
from deitctl.training.losses import find_labeled, make_targets
from deitctl.training.objective import StudentBatch
from deitctl.training.state import TrainState


class LossInputs(NamedTuple):
    """What the losses of a micro-batch are computed of; see `DeviceBatch`, whose other fields are the host's."""

    images: Tensor
    labels: Tensor
    table: BatchTable
    drop_path_mask: Tensor | None
    cached: TeacherTargets | None
    """The teacher's targets of its views; None where it sees mixed images, or there is none."""


class StudentLosses(nn.Module):
    """The network whose outputs are the losses of a micro-batch: what a backward pass goes through."""

    def __init__(self, context: TrainContext, state: TrainState) -> None:
        """Hold what is trained, the student and the projector of its features, and no copy of it."""
        super().__init__()
        self.student, self.projector = state.model, state.projector
        self.context = context
        self._graphs = None
        if context.compiler is not None:
            parts = list_all_parts(context.recipe.augment, uses_affine=context.uses_student_affine)

            def compute(inputs: LossInputs) -> dict[str, Tensor]:
                return self.compute(inputs, parts)

            self._graphs = FewGraphs(compute, self.student, context.compiler)

    def train(self, mode: bool = True) -> StudentLosses:
        """Leave the student as it is: which of its parts are trained is `freezing`'s to say."""
        return self

    def forward(self, batch: DeviceBatch, cached: TeacherTargets | None) -> dict[str, Tensor]:
        """Return the mean losses of a micro-batch, by name; `loss` is minimized.

        Args:
            batch: on the device.
            cached: the teacher's targets of its views; None where it sees mixed images, or there is none.
        """
        inputs = LossInputs(batch.images, batch.labels, batch.table, batch.drop_path_mask, cached)
        if self._graphs is not None:
            return self._graphs(inputs)
        context = self.context
        parts = list_parts(
            context.recipe.augment, batch.groups, uses_affine=context.uses_student_affine
        )
        return self.compute(inputs, parts)

    def compute(self, inputs: LossInputs, parts: Parts) -> dict[str, Tensor]:
        """Return the mean losses of a micro-batch, by name, with the transforms of `parts`: what may be one graph."""
        context, (pixels, labels, table, mask, cached) = self.context, inputs
        images = transform_batch(pixels, table, parts, context.preprocessing)
        targets = mix_targets(make_targets(labels, context.num_classes), table, parts)
        labeled = None
        if context.has_unlabeled:
            labeled = mix_targets(find_labeled(labels)[:, None], table, parts)[:, 0]
        with context.device.autocast():
            if cached is not None:
                taught = _mix(cached, table, parts)
            elif context.teacher is not None and context.distill is not None:
                several = labels.ndim == 2
                taught = teach(context.teacher, images, context.distill, is_multilabel=several)
            else:
                taught = TeacherTargets(None)
            images = to_model_channels(images, context.preprocessing.in_chans)
            return context.objective(
                self.student,
                StudentBatch(images, targets, taught.labels, mask, taught.features, labeled),
            )


def teach(
    teacher: Teacher | EnsembleNetwork,
    images: Tensor,
    distill: DistillConfig,
    *,
    is_multilabel: bool = False,
) -> TeacherTargets:
    """Return what a student learns of mixed images [B,C,H,W] from its teacher, as they are computed.

    Args:
        teacher: the network, or several.
        images: as the student sees them.
        distill: for mode and temperature.
        is_multilabel: whether the data's images have several labels.
    """
    outputs = [network(images) for network in teacher.networks]
    logits = [output.logits.float() for output in outputs if output.logits is not None]
    labels = None
    if distill.label_mode:
        average = logits[0] if len(logits) == 1 else torch.stack(logits).mean(0)
        labels = teacher_targets(average, distill.label_mode, distill.tau, is_multilabel)
    features = [output.features.float() for output in outputs if output.features is not None]
    return TeacherTargets(labels, tuple(features))


def _mix(targets: TeacherTargets, table: BatchTable, parts: Parts) -> TeacherTargets:
    """Mix targets in the proportion in which their images are mixed.

    Features too: that is no feature of the mixed image, which VkD's released code computes, as
    `--teacher-input mixed` does, and nothing could be cached.
    """
    labels = targets.labels
    labels = None if labels is None else mix_targets(labels, table, parts)
    return TeacherTargets(labels, tuple(mix_targets(f, table, parts) for f in targets.features))

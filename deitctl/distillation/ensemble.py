"""Several teachers of one run, which are used as one: averaged labels, features of each.

Labels are averaged as logits (the geometric mean of probabilities). What is stored are the soft labels of each teacher,
softmax(logits / tau), whose logarithms are its logits / tau but for a constant of the image: so the average of these
has the soft labels of the averaged logits, and their decision, to the three digits of a stored probability. Computed
targets pass through the same form as cached ones, so that both train the same.

Letters: B images, N validation images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deitctl.config import Recipe, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import Batch, TeacherView, build_eval_loader
from deitctl.device import Device
from deitctl.distillation.cached_teacher import CachedTeacher, Filling
from deitctl.distillation.callable_teacher import CallableTeacher
from deitctl.distillation.distillation_teacher import DistillationTeacher
from deitctl.distillation.finetune import TrainRun
from deitctl.distillation.joint_targets import Cache
from deitctl.distillation.preflight import BATCH_SIZE, Preflight
from deitctl.distillation.targets import TeacherTargets, teacher_targets
from deitctl.distillation.teacher import Teacher
from deitctl.distillation.teacher_weights import hash_json
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.events import Reporter
from deitctl.home import can_write
from deitctl.models.model_config import Preprocessing
from deitctl.paths import read_json, write_json

SMALLEST = 2.0**-24
"""Above 0 in float16: the least probability that a stored label has."""


class EnsembleNetwork(nn.Module):
    """The networks of several teachers, for mixed images."""

    def __init__(self, networks: Sequence[Teacher]) -> None:
        """Hold frozen networks."""
        super().__init__()
        self._networks = nn.ModuleList(networks)

    @property
    def networks(self) -> tuple[Teacher, ...]:
        """The teachers', in their order."""
        return tuple(network for network in self._networks if isinstance(network, Teacher))

    @property
    def in_chans(self) -> int:
        """Channels of the images that the teacher with the most of them sees."""
        return max(network.in_chans for network in self.networks)


@dataclass(frozen=True)
class EnsembleCache:
    """The caches of several teachers, as if they were one; methods as those of `TargetCache`."""

    parts: tuple[Cache, ...]

    @property
    def root(self) -> Path:
        """Folder that messages name: that of all caches, or of the first."""
        parents = {cache.root.parent for cache in self.parts}
        return parents.pop() if len(parents) == 1 else self.parts[0].root

    @property
    def record_bytes(self) -> int:
        """Bytes of a view of an image."""
        return sum(cache.record_bytes for cache in self.parts)

    def has_target(self, view: int, index: int) -> bool:
        """Return whether all targets of a view of an image are cached."""
        return all(cache.has_target(view, index) for cache in self.parts)

    def missing_indices(self, view: int) -> NDArray[np.int64]:
        """Return the readable images of a view that lack a target."""
        missing = [cache.missing_indices(view) for cache in self.parts]
        return np.unique(np.concatenate(missing))

    def damaged_indices(self, views: int) -> set[int]:
        """Return the images that could not be decoded in one of the first `views` views."""
        return set().union(*(cache.damaged_indices(views) for cache in self.parts))

    def count_missing(self, views: int) -> int:
        """Return how many (view, image) pairs of the first `views` views lack a target."""
        return sum(len(self.missing_indices(view)) for view in range(views))


@dataclass(frozen=True)
class CachedEnsemble:
    """Returns the targets of a batch's views that several teachers give together."""

    parts: tuple[CachedTeacher, ...]
    label_mode: str
    is_multilabel: bool

    @property
    def cache(self) -> EnsembleCache | None:
        """The caches of all; None where one of them has none."""
        caches = tuple(part.cache for part in self.parts if part.cache is not None)
        return EnsembleCache(caches) if len(caches) == len(self.parts) else None

    def __call__(self, batch: Batch, size: int = 0) -> TeacherTargets:
        """Return the targets of a batch's views; those that are computed are cached."""
        targets = [part(batch, size) for part in self.parts]
        labels = [t.labels for t in targets if t.labels is not None]
        return TeacherTargets(
            average_labels(labels, self.label_mode, self.is_multilabel) if labels else None,
            tuple(features for t in targets for features in t.features),
        )


def average_labels(labels: Sequence[Tensor], mode: str, is_multilabel: bool = False) -> Tensor:
    """Return the targets of averaged logits.

    Args:
        labels: of each teacher [B,K]; of several soft ones, of one temperature; of one those of `mode`.
        mode: `hard` or `soft`, of the result.
        is_multilabel: whether each class is one by itself.
    """
    if len(labels) == 1:
        return labels[0]
    probabilities = torch.stack(list(labels))
    logits = probabilities.clamp(min=SMALLEST).log()
    if is_multilabel:
        logits = logits - (1 - probabilities).clamp(min=SMALLEST).log()
    return teacher_targets(logits.mean(0), mode, 1.0, is_multilabel)


class TeacherEnsemble:
    """The teachers of a run, each with its own preflight, cache and size; methods as `DistillationTeacher`."""

    def __init__(self, config: TrainConfig, teachers: Sequence[DistillationTeacher]) -> None:
        """Join teachers, each of a configuration of its own, see `DistillConfig.list_teachers`."""
        assert config.distill is not None
        self.config, self.distill, self.teachers = config, config.distill, tuple(teachers)
        first = self.teachers[0]
        self.train, self.val, self.device = first.train, first.val, first.device
        self.reporter, self.world, self.total_views = first.reporter, first.world, first.total_views
        self._predictions: Tensor | None = None

    def prepare(self, *, on_views: bool = True) -> TeacherEnsemble:
        """Prepare each teacher, see `DistillationTeacher.prepare`, and score their averaged labels; collective."""
        for teacher in self.teachers:
            teacher.prepare(on_views=on_views)
        if self.distill.label_mode:
            self._predictions = self._predict()
        return self

    def plan(self) -> list[tuple[str, Recipe | None]]:
        """Return what `DistillationTeacher.plan` does, of each."""
        return [teacher.plan() for teacher in self.teachers]

    @property
    def labelers(self) -> list[DistillationTeacher]:
        """The teachers whose labels are learned."""
        return [teacher for teacher in self.teachers if teacher.distill.label_mode]

    @property
    def preflight(self) -> Preflight:
        """The check of the first teacher."""
        return self.teachers[0].preflight

    @property
    def preflights(self) -> list[Preflight]:
        """The check of each teacher."""
        return [teacher.preflight for teacher in self.teachers]

    @property
    def uses_views(self) -> bool:
        """Whether the teachers see views before they are mixed, which can be cached."""
        return self.teachers[0].uses_views

    @property
    def cache(self) -> EnsembleCache | None:
        """The caches of all teachers; None where one of them has none."""
        caches = tuple(t.cache for t in self.teachers if t.cache is not None)
        return EnsembleCache(caches) if len(caches) == len(self.teachers) else None

    @property
    def num_features(self) -> tuple[int, ...]:
        """Numbers of an image's features of each teacher that gives them."""
        return tuple(number for teacher in self.teachers for number in teacher.num_features)

    @property
    def num_sampled(self) -> int:
        """Targets that the checks on training views have cached."""
        return sum(teacher.num_sampled for teacher in self.teachers)

    @property
    def is_loaded(self) -> bool:
        """Whether a network is in memory."""
        return any(teacher.is_loaded for teacher in self.teachers)

    @property
    def val_predictions(self) -> Tensor | None:
        """Predictions of the averaged labels on the validation images, as `Preflight.list_predictions`; None where
        no labels are learned."""
        return self._predictions

    def list_views(self) -> tuple[TeacherView, ...]:
        """Return the distinct views that the loader renders; teachers of one input size share one."""
        return join_views([view for t in self.teachers for view in t.list_views()])

    def load(self) -> None:
        """Load all networks in all processes if any of them needs one; collective."""
        for teacher in self.teachers:
            teacher.load()

    def get_network(self) -> EnsembleNetwork:
        """Return the networks, loading those that are not in memory; not collective, see `load`."""
        return EnsembleNetwork([teacher.get_network() for teacher in self.teachers])

    def release(self) -> None:
        """Remove the networks from memory."""
        for teacher in self.teachers:
            teacher.release()

    def build_cached_teacher(self) -> CachedEnsemble:
        """Return the source of targets of views."""
        views, parts = self.list_views(), []
        for teacher in self.teachers:
            (own,) = teacher.list_views()
            place = next(n for n, view in enumerate(views) if view.is_same_input(own))
            parts.append(replace(teacher.build_cached_teacher(), place=place))
        return CachedEnsemble(tuple(parts), self.distill.label_mode, self.train.is_multilabel)

    def fill_cache(
        self, *, batch_size: int, workers: int, pause: Callable[[], None] = lambda: None
    ) -> Filling:
        """Compute all missing targets of the run's views, teacher by teacher; collective."""
        fillings = [
            teacher.fill_cache(batch_size=batch_size, workers=workers, pause=pause)
            for teacher in self.teachers
        ]
        unread = frozenset[int]().union(*(filling.unread for filling in fillings))
        return Filling(sum(filling.num_computed for filling in fillings), unread)

    def _predict(self) -> Tensor:
        """Return the averaged labels' predictions of the validation images, of one label an image with a line on their
        accuracy; collective.

        They are kept beside the first teacher's targets, so that a cache is enough for the next student.
        """
        labelers = self.labelers
        if len(labelers) == 1:
            predictions = labelers[0].val_predictions
            assert predictions is not None
            return predictions
        identity = [t.preflight.weights_fingerprint for t in labelers] + [
            labelers[0].preflight.val_fingerprint
        ]
        cache = labelers[0].cache
        path = cache.root / f"average-{hash_json(identity)}.json" if cache is not None else None
        predictions = _read_predictions(path, self.val)
        if not all(self.world.all_gather_object(predictions is not None)) or predictions is None:
            predictions = self._compute_predictions()
            if path is not None and self.world.is_main and can_write(path.parent):
                write_json(path, {"val_predictions": predictions.tolist()})
        if not self.val.is_multilabel:
            readable = predictions >= 0
            labels = torch.from_numpy(self.val.labels)[readable]
            top1 = 100 * float((predictions[readable] == labels).double().mean())
            self.reporter.note(
                f"Averaged labels of {len(labelers)} teachers: top-1 {top1:.2f} % on "
                f"{int(readable.sum())} validation images."
            )
        return predictions

    def _compute_predictions(self) -> Tensor:
        """Run all networks that give labels on the validation images; collective."""
        networks = [teacher.get_network() for teacher in self.labelers]
        world, device = self.world, self.device
        shape = (len(self.val.labels), len(self.val.class_names))
        several = self.val.is_multilabel
        predictions = torch.full(shape if several else shape[:1], -1, dtype=torch.int64)
        own = [network.model_config.preprocessing for network in networks]
        views = list(dict.fromkeys(pre.without_normalization for pre in own))
        batches = build_eval_loader(
            self.val,
            views,
            batch_size=BATCH_SIZE,
            workers=device.choose_num_workers(self.config.workers, in_memory=self.val.is_in_memory),
            pin_memory=device.pins_memory,
            shard=slice(world.rank, None, world.size),
            reporter=self.reporter,
        )
        predicted: list[tuple[list[int], list[Any]]] = []
        with self.reporter.task("check the teachers' average", len(self.val.labels)) as task:
            for batch in batches:
                if len(batch.indices):
                    total = torch.zeros(())
                    for network, pre in zip(networks, own, strict=True):
                        pixels = batch.images[views.index(pre.without_normalization)]
                        with torch.no_grad(), device.autocast():
                            logits = network.forward_views(device.to_device(pixels)).logits
                        assert logits is not None
                        total = total + logits.float().cpu()
                    chosen = (total >= 0).long() if several else total.argmax(1)
                    predicted.append((batch.indices.tolist(), chosen.tolist()))
                task.advance(world.size * (len(batch.indices) + len(batch.errors)))
        for parts in world.all_gather_object(predicted):
            for indices, chosen_rows in parts:
                predictions[indices] = torch.tensor(chosen_rows)
        return predictions


def _read_predictions(path: Path | None, val: ImageDataset) -> Tensor | None:
    """Return cached predictions; None where there are none of such data."""
    if path is None:
        return None
    shape = (len(val.labels), len(val.class_names)) if val.is_multilabel else (len(val.labels),)
    try:
        predictions = torch.tensor(read_json(path)["val_predictions"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    is_valid = (
        predictions.dtype is torch.int64
        and predictions.shape == shape
        and bool(((predictions >= -1) & (predictions < len(val.class_names))).all())
    )
    return predictions if is_valid else None


def join_views(views: Sequence[TeacherView]) -> tuple[TeacherView, ...]:
    """Return views of distinct inputs, each cached where all teachers that see it have its target."""
    joined: list[TeacherView] = []
    for view in views:
        same = next((n for n, other in enumerate(joined) if other.is_same_input(view)), None)
        if same is None:
            joined.append(view)
        else:
            joined[same] = joined[same].join(view)
    return tuple(joined)


RunTeacher: TypeAlias = DistillationTeacher | TeacherEnsemble
"""What a run has: one teacher, or several that are used as one."""


def name_teachers(
    config: TrainConfig,
    train: ImageDataset,
    val: ImageDataset,
    student_preprocessing: Preprocessing,
    *,
    device: Device,
    train_run: TrainRun,
    reporter: Reporter,
    own: CallableTeacher | None = None,
    world: World = SINGLE_PROCESS,
) -> RunTeacher:
    """Return the teacher of a run, or its teachers; arguments as of `DistillationTeacher`.

    `own` takes the place of the teacher that is named as it is.
    """
    assert config.distill is not None
    teachers = [
        DistillationTeacher(
            replace(config, distill=alone),
            train,
            val,
            student_preprocessing,
            device=device,
            train_run=train_run,
            reporter=reporter,
            own=own if own is not None and alone.teacher == own.name else None,
            world=world,
        )
        for alone in config.distill.list_teachers()
    ]
    return teachers[0] if len(teachers) == 1 else TeacherEnsemble(config, teachers)

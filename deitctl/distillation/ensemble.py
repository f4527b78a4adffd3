"""Several teachers of one run, which are used as one: averaged labels, features of each.

Labels are averaged as logits (the geometric mean of probabilities). Those of each teacher are stored in fp32, not as
labels: likeliest classes alone, or probabilities in float16, would decide wrongly where teachers disagree. So one cache
serves hard labels and soft ones of any temperature.

Letters: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from deitctl.config import DistillConfig, Recipe, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.fingerprint import RunFingerprints
from deitctl.data.loader import Batch, TeacherView
from deitctl.device import Device
from deitctl.distillation.average import average_labels, check_average
from deitctl.distillation.cached_teacher import CachedTeacher, Filling
from deitctl.distillation.callable_teacher import CallableTeacher
from deitctl.distillation.compact_targets import CompactTargets
from deitctl.distillation.distillation_teacher import DistillationTeacher
from deitctl.distillation.finetune import TrainRun
from deitctl.distillation.joint_targets import Cache
from deitctl.distillation.preflight import Preflight
from deitctl.distillation.targets import TeacherTargets
from deitctl.distillation.teacher import Teacher
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.events import Reporter
from deitctl.models.model_config import Preprocessing


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
    tau: float
    """Of averaged soft labels."""
    is_multilabel: bool

    @property
    def cache(self) -> EnsembleCache | None:
        """The caches of all; None where one of them has none."""
        caches = tuple(part.cache for part in self.parts if part.cache is not None)
        return EnsembleCache(caches) if len(caches) == len(self.parts) else None

    def __call__(self, batch: Batch, size: int = 0) -> TeacherTargets:
        """Return the targets of a batch's views at once; see `CachedTeacher`, and so are the others."""
        return self._join([part(batch, size) for part in self.parts])

    def read(self, batch: Batch) -> tuple[CompactTargets, ...]:
        """Read what is cached, one of each teacher."""
        return tuple(compact for part in self.parts for compact in part.read(batch))

    def complete(
        self,
        targets: Sequence[CompactTargets],
        images: Sequence[Tensor],
        rows: Sequence[Sequence[int]],
        size: int = 0,
    ) -> TeacherTargets:
        """Return the targets of a batch's views on the device."""
        pairs = zip(self.parts, targets, strict=True)
        return self._join([part.complete([own], images, rows, size) for part, own in pairs])

    def mark(self) -> Callable[[], None]:
        """Return what stores the targets that were computed so far."""
        marks = [part.mark() for part in self.parts]

        def store() -> None:
            for mark in marks:
                mark()

        return store

    def _join(self, targets: Sequence[TeacherTargets]) -> TeacherTargets:
        labels = [t.labels for t in targets if t.labels is not None]
        return TeacherTargets(
            average_labels(labels, self.label_mode, self.tau, self.is_multilabel)
            if labels
            else None,
            tuple(features for t in targets for features in t.features),
        )


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
        if len(self.labelers) == 1:
            self._predictions = self.labelers[0].val_predictions
        elif self.labelers:
            check = check_average(self.labelers, self.distill, on_views=on_views)
            self._predictions = check.predictions
        return self

    def plan(self) -> list[tuple[str, Recipe | None]]:
        """Return what `DistillationTeacher.plan` does, of each."""
        return [plan for teacher in self.teachers for plan in teacher.plan()]

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
        no labels are learned, or weights are not here."""
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
        d = self.distill
        return CachedEnsemble(tuple(parts), d.label_mode, d.tau, self.train.is_multilabel)

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


def averages_labels(distill: DistillConfig) -> bool:
    """Return whether a run averages labels of several teachers."""
    return sum(bool(alone.label_mode) for alone in distill.list_teachers()) > 1


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
    alone = config.distill.list_teachers()
    averages = averages_labels(config.distill)
    fingerprints = RunFingerprints(train, val, reporter, world)
    teachers = [
        DistillationTeacher(
            replace(config, distill=distill),
            train,
            val,
            student_preprocessing,
            device=device,
            train_run=train_run,
            reporter=reporter,
            own=own if own is not None and distill.teacher == own.name else None,
            is_averaged=averages and bool(distill.label_mode),
            world=world,
            fingerprints=fingerprints,
        )
        for distill in alone
    ]
    return teachers[0] if len(teachers) == 1 else TeacherEnsemble(config, teachers)

"""Computes a teacher's targets ahead of training, and verifies cached ones (`cache-teacher`)."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import build_view_loader
from deitctl.data.samplers import SampleKey
from deitctl.device import choose_run_device
from deitctl.distillation.distillation_teacher import NO_CACHE, DistillationTeacher
from deitctl.distillation.ensemble import EnsembleCache, RunTeacher, name_teachers
from deitctl.distillation.finetune import TrainRun
from deitctl.distillation.joint_targets import Cache
from deitctl.distillation.preflight import Preflight
from deitctl.distillation.targets import TargetCodec, TeacherTargets, teacher_targets
from deitctl.distributed import SINGLE_PROCESS, World, process_group
from deitctl.errors import ConfigError, Interrupted, Signalled, TeacherError
from deitctl.events import Reporter, SilentReporter
from deitctl.models.model_config import Preprocessing

# Another device or precision may move this share of predictions, of images whose two likeliest
# classes are level, and a probability of a soft label by this much.
MAX_DIFFERENT = 0.02
MAX_DIFFERENCE = 0.02
MAX_FEATURE_DIFFERENCE = 0.1
"""Length of a difference of features relative to theirs around their mean; another teacher's are above 1, bf16 moves
them by some hundredths."""
SMALLEST_SPREAD = 1e-6
"""Of features that are all alike."""


@dataclass(frozen=True, kw_only=True)
class CacheTeacherResult:
    """A cache that holds all teacher targets of a run's views."""

    cache: Path
    """Folder of the cache; of several teachers, whose caches are apart, the one that holds them."""
    teacher: Preflight
    """Check of the teacher, of several the first, on the validation images."""
    more_teachers: list[Preflight]
    """Checks of the others."""
    recipe: str
    """Recipe whose augmentation the views have."""
    num_views: int
    """Augmented views per image."""
    num_images: int
    """Training images."""
    num_computed: int
    """Targets that were missing and are computed now."""
    unreadable: tuple[str, ...]
    """Images that could not be read or decoded, and lack targets."""
    bytes: int
    """Size of all targets on disk."""
    seconds: float
    """Duration."""


@dataclass(frozen=True, kw_only=True)
class VerifyCacheResult:
    """A sample of a cache's targets, computed again and compared."""

    cache: Path
    """Folder of the cache."""
    num_verified: int
    """Targets that were computed again."""
    num_different: int
    """Targets whose likeliest class differs; of several labels, whose classes of 0.5 or more do; of features,
    whose difference is longer than a tenth of what the view's have around their mean."""
    max_abs_diff: float | None
    """Largest difference of a probability; null where features alone are cached."""
    max_feature_diff: float | None
    """Largest length of the difference of a view's features, relative to theirs around their mean; null where
    labels alone are cached."""


def cache_teacher(
    config: TrainConfig,
    datasets: tuple[ImageDataset, ImageDataset],
    train_run: TrainRun,
    *,
    batch_size: int = 64,
    reporter: Reporter | None = None,
) -> CacheTeacherResult:
    """Compute the targets of all views of all training images that the teacher's cache lacks.

    Args:
        config: a student's run; its `distill` names the teacher and the number of views.
        datasets: the training and validation images.
        train_run: fine-tunes the teacher if need be, see `TrainRun`.
        batch_size: views per forward pass.
        reporter: receives progress.

    Raises:
        TeacherError: a teacher that cannot teach, or a stale cache.
        Interrupted: a signal; every target that was computed is cached.
    """
    reporter, start = reporter or SilentReporter(), time.monotonic()
    device = choose_run_device(config)
    with process_group(device.torch_device) as world, device.computing():
        teacher, cache = _open_teacher(config, datasets, train_run, reporter, world)
        workers = teacher.device.choose_num_workers(
            config.workers, in_memory=teacher.train.is_in_memory
        )
        try:
            filling = teacher.fill_cache(batch_size=batch_size, workers=workers)
        except (KeyboardInterrupt, Signalled) as stop:
            signum = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.signum
            raise Interrupted(signum) from stop
    train, num_views = datasets[0], teacher.total_views
    without_targets = filling.unread | cache.damaged_indices(num_views)
    return CacheTeacherResult(
        cache=cache.root,
        teacher=teacher.preflight,
        more_teachers=teacher.preflights[1:],
        recipe=config.recipe.name,
        num_views=num_views,
        num_images=len(train.labels),
        num_computed=filling.num_computed + teacher.num_sampled,
        unreadable=tuple(train.name(i) for i in sorted(without_targets)),
        bytes=cache.record_bytes * len(train.labels) * num_views,
        seconds=time.monotonic() - start,
    )


def verify_teacher_cache(
    config: TrainConfig,
    datasets: tuple[ImageDataset, ImageDataset],
    train_run: TrainRun,
    *,
    num_images: int = 256,
    batch_size: int = 64,
    reporter: Reporter | None = None,
) -> VerifyCacheResult:
    """Compute up to `num_images` cached targets again, and compare; arguments as `cache_teacher`.

    Raises:
        TeacherError: nothing is cached, or the targets differ.
    """
    reporter = reporter or SilentReporter()
    opened, cache = _open_teacher(
        config, datasets, train_run, reporter, SINGLE_PROCESS, on_views=False
    )
    results = [_verify(teacher, num_images, batch_size, reporter) for teacher in opened.teachers]
    return VerifyCacheResult(
        cache=cache.root,
        num_verified=sum(result.num_verified for result in results),
        num_different=sum(result.num_different for result in results),
        max_abs_diff=_find_largest([result.max_abs_diff for result in results]),
        max_feature_diff=_find_largest([result.max_feature_diff for result in results]),
    )


def _find_largest(values: list[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _verify(
    teacher: DistillationTeacher, num_images: int, batch_size: int, reporter: Reporter
) -> VerifyCacheResult:
    """Compute a sample of one teacher's targets again, and compare."""
    cache, config = teacher.cache, teacher.config
    assert cache is not None
    keys = _sample_cached(cache, teacher.total_views, num_images)
    if not keys:
        raise TeacherError(f"{cache.root} is empty.", "Fill it first: leave --verify out.")
    own = teacher.get_network().model_config.preprocessing
    batches = build_view_loader(
        teacher.train,
        config.recipe.augment,
        own.img_size,
        teacher.distill.view_seed,
        [keys[n : n + batch_size] for n in range(0, len(keys), batch_size)],
        in_chans=own.in_chans,
        workers=teacher.device.choose_num_workers(
            config.workers, in_memory=teacher.train.is_in_memory
        ),
        pin_memory=teacher.device.pins_memory,
        reporter=reporter,
    )
    cached_teacher = teacher.build_cached_teacher()
    codec, comparison, num_verified = cached_teacher.codec, _Comparison(), 0
    with reporter.task("verify teacher targets", len(keys)) as task:
        for batch in batches:
            if not batch.keys:
                continue
            records, _ = cache.read([(key.epoch, key.index) for key in batch.keys])
            with teacher.device.computing():
                computed = cached_teacher.compute(batch.images)
            comparison.add(codec.decode(records), codec.decode(computed), codec.labels)
            num_verified += len(batch.keys)
            task.advance(len(batch.keys))
    is_soft = codec.labels is not None and codec.labels.mode != "hard"
    if comparison.num_different > MAX_DIFFERENT * num_verified or (
        is_soft and (comparison.max_abs_diff or 0) > MAX_DIFFERENCE
    ):
        raise TeacherError(
            f"The targets in {cache.root} are not those of the teacher: {comparison.num_different} of "
            f"{num_verified} {comparison.describe()}.",
            "Delete that folder, and run this again without --verify.",
        )
    return VerifyCacheResult(
        cache=cache.root,
        num_verified=num_verified,
        num_different=comparison.num_different,
        max_abs_diff=comparison.max_abs_diff,
        max_feature_diff=comparison.max_feature_diff,
    )


@dataclass
class _Comparison:
    """Differences of cached targets and those computed again, so far."""

    num_different: int = 0
    max_abs_diff: float | None = None
    max_feature_diff: float | None = None

    def add(
        self, cached: TeacherTargets, computed: TeacherTargets, codec: TargetCodec | None
    ) -> None:
        """Compare the targets of a batch, labels as `codec` has them."""
        is_different = torch.zeros(1, dtype=torch.bool)
        if codec is not None and cached.labels is not None and computed.labels is not None:
            ours, theirs, several = cached.labels, computed.labels, codec.is_multilabel
            if codec.mode == "logits":
                ours, theirs = (teacher_targets(x, "soft", 1.0, several) for x in (ours, theirs))
            self.max_abs_diff = max(self.max_abs_diff or 0.0, float((ours - theirs).abs().max()))
            is_different = _differ(ours, theirs, several)
        for ours, theirs in zip(cached.features, computed.features, strict=True):
            spread = (theirs - theirs.mean(1, keepdim=True)).norm(dim=1).clamp(min=SMALLEST_SPREAD)
            lengths = (ours - theirs).norm(dim=1) / spread
            self.max_feature_diff = max(self.max_feature_diff or 0.0, float(lengths.max()))
            is_different = is_different | (lengths > MAX_FEATURE_DIFFERENCE)
        self.num_different += int(is_different.sum())

    def describe(self) -> str:
        """Return what differs by how much, the end of a sentence."""
        parts = []
        if self.max_abs_diff is not None:
            parts.append(f"a probability by up to {self.max_abs_diff:.3f}")
        if self.max_feature_diff is not None:
            parts.append(f"features by up to {self.max_feature_diff:.3f} of their spread")
        what = "predictions" if self.max_feature_diff is None else "targets"
        return f"{what} differ, {' and '.join(parts)}"


def _differ(cached: Tensor, computed: Tensor, is_multilabel: bool) -> Tensor:
    """Return which of two targets [B,K] say another class, [B]."""
    if is_multilabel:
        return ((cached >= 0.5) != (computed >= 0.5)).any(1)
    return cached.argmax(1) != computed.argmax(1)


def _sample_cached(cache: Cache, num_views: int, count: int) -> list[SampleKey]:
    """Draw about `count` cached (view, image) keys, equally many per view."""
    draw = np.random.default_rng()  # unseeded: each verification covers other images
    per_view = -(-count // num_views)
    keys = [
        SampleKey(view, int(index), 0)
        for view in range(num_views)
        for index in draw.permutation(cache.cached_indices(view))[:per_view]
    ]
    chosen = draw.permutation(len(keys))[:count]
    return [keys[n] for n in sorted(chosen.tolist())]


def _open_teacher(
    config: TrainConfig,
    datasets: tuple[ImageDataset, ImageDataset],
    train_run: TrainRun,
    reporter: Reporter,
    world: World,
    *,
    on_views: bool = True,
) -> tuple[RunTeacher, Cache | EnsembleCache]:
    distill = config.distill
    if distill is None or distill.teacher_input != "unmixed" or distill.teacher_cache == NO_CACHE:
        raise ConfigError(
            "Without a cache there are no targets to compute.",
            "Leave out --teacher-cache off and --teacher-input mixed.",
        )
    teacher = name_teachers(
        config,
        *datasets,
        Preprocessing(),  # of mixed images, which are not used
        device=choose_run_device(config),
        train_run=train_run,
        reporter=reporter,
        world=world,
    ).prepare(on_views=on_views)
    teacher.load()
    assert teacher.cache is not None
    return teacher, teacher.cache

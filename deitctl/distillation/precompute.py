"""Computes a teacher's targets ahead of training, and verifies cached ones (`cache-teacher`)."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import build_view_loader
from deitctl.data.samplers import SampleKey
from deitctl.device import choose_device
from deitctl.distillation.distillation_teacher import NO_CACHE, DistillationTeacher
from deitctl.distillation.finetune import TrainRun
from deitctl.distillation.preflight import Preflight
from deitctl.distillation.target_cache import TargetCache
from deitctl.distributed import SINGLE_PROCESS, World, process_group
from deitctl.errors import ConfigError, Interrupted, Signalled, TeacherError
from deitctl.events import Reporter, SilentReporter
from deitctl.models.model_config import Preprocessing

# Another device or precision may move this share of predictions, of images whose two likeliest
# classes are level, and a probability of a soft label by this much.
MAX_DIFFERENT = 0.02
MAX_DIFFERENCE = 0.02


@dataclass(frozen=True, kw_only=True)
class CacheTeacherResult:
    """A cache that holds all teacher targets of a run's views."""

    cache: Path
    """Folder of the cache."""
    teacher: Preflight
    """Check of the teacher on the validation images."""
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
    """Targets whose likeliest class differs; of several labels, whose classes of 0.5 or more do."""
    max_abs_diff: float
    """Largest difference of a probability."""


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
    with process_group(choose_device(config.device, config.precision).torch_device) as world:
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
        recipe=config.recipe.name,
        num_views=num_views,
        num_images=len(train.labels),
        num_computed=filling.num_computed,
        unreadable=tuple(train.name(i) for i in sorted(without_targets)),
        bytes=2 * cache.codec.width * len(train.labels) * num_views,
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
    teacher, cache = _open_teacher(config, datasets, train_run, reporter, SINGLE_PROCESS)
    keys = _sample_cached(cache, teacher.total_views, num_images)
    if not keys:
        raise TeacherError(f"{cache.root} is empty.", "Fill it first: leave --verify out.")
    own = teacher.get_network().model_config.preprocessing
    batches = build_view_loader(
        datasets[0],
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
    num_different, max_abs_diff, num_verified = 0, 0.0, 0
    with reporter.task("verify teacher targets", len(keys)) as task:
        for batch in batches:
            if not batch.keys:
                continue
            records, _ = cache.read([(key.epoch, key.index) for key in batch.keys])
            cached = cache.codec.decode(records)
            computed = cache.codec.decode(cached_teacher.compute(batch.images))
            num_different += _count_different(cached, computed, cache.codec.is_multilabel)
            max_abs_diff = max(max_abs_diff, float((cached - computed).abs().max()))
            num_verified += len(batch.keys)
            task.advance(len(batch.keys))
    if num_different > MAX_DIFFERENT * num_verified or (
        cache.codec.mode == "soft" and max_abs_diff > MAX_DIFFERENCE
    ):
        raise TeacherError(
            f"The targets in {cache.root} are not those of the teacher: {num_different} of "
            f"{num_verified} predictions differ, a probability by up to {max_abs_diff:.3f}.",
            "Delete that folder, and run this again without --verify.",
        )
    return VerifyCacheResult(
        cache=cache.root,
        num_verified=num_verified,
        num_different=num_different,
        max_abs_diff=max_abs_diff,
    )


def _count_different(cached: Tensor, computed: Tensor, is_multilabel: bool) -> int:
    """Return how many of two targets [B,K] say another class."""
    if is_multilabel:
        return int(((cached >= 0.5) != (computed >= 0.5)).any(1).sum())
    return int((cached.argmax(1) != computed.argmax(1)).sum())


def _sample_cached(cache: TargetCache, num_views: int, count: int) -> list[SampleKey]:
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
) -> tuple[DistillationTeacher, TargetCache]:
    distill = config.distill
    if distill is None or distill.teacher_input != "unmixed" or distill.teacher_cache == NO_CACHE:
        raise ConfigError(
            "Without a cache there are no targets to compute.",
            "Leave out --teacher-cache off and --teacher-input mixed.",
        )
    teacher = DistillationTeacher(
        config,
        *datasets,
        Preprocessing(),  # of mixed images, which are not used
        device=choose_device(config.device, config.precision),
        train_run=train_run,
        reporter=reporter,
        world=world,
    ).prepare()
    teacher.load()
    assert teacher.cache is not None
    return teacher, teacher.cache

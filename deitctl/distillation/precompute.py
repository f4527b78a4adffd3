"""Hear a teacher out ahead of time, so that no student needs it; and check that a cache still says what it would say."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import build_view_loader
from deitctl.data.samplers import SampleKey
from deitctl.device import choose_device
from deitctl.distillation.preflight import NO_CACHE, DistillationTeacher, Preflight
from deitctl.distillation.target_cache import TargetCache
from deitctl.distributed import SINGLE_PROCESS, World, process_group
from deitctl.errors import ConfigError, Interrupted, Signalled, TeacherError
from deitctl.events import Reporter, SilentReporter
from deitctl.models.model_config import Preprocessing
from deitctl.training.configure import check
from deitctl.training.launch import loaders_may_die, train_or_find

MOST_DIFFERENT = 0.02
"""Share of decisions that another device or precision may tip, where two classes are all but level."""
FARTHEST = 0.02
"""The same for a probability of a soft word."""


@dataclass(frozen=True, kw_only=True)
class TeachResult:
    """A filled cache."""

    cache: Path
    teacher: Preflight
    views: int
    num_images: int
    asked: int
    """Words that were not there before."""
    unreadable: tuple[str, ...]
    """Images that could not be read and have no words."""
    bytes: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        return {
            "cache": str(self.cache),
            "teacher": self.teacher.to_dict(),
            "views": self.views,
            "num_images": self.num_images,
            "asked": self.asked,
            "unreadable": list(self.unreadable),
            "bytes": self.bytes,
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """A sample of a cache's words, asked for again."""

    cache: Path
    checked: int
    different: int
    """Words whose likeliest class is another now."""
    largest_difference: float
    """Of any probability of any word."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        return {
            "cache": str(self.cache),
            "checked": self.checked,
            "different": self.different,
            "largest_difference": self.largest_difference,
        }


def teach(
    config: TrainConfig,
    datasets: tuple[ImageDataset, ImageDataset],
    *,
    batch_size: int = 64,
    reporter: Reporter | None = None,
) -> TeachResult:
    """Ask the teacher about every view of every training image that its cache lacks.

    Args:
        config: a student's run, as `configure` makes it; its `distill` says which teacher and how many views.
        sources: the training and validation images.
        batch_size: views at a time.
        reporter: told of progress.

    Raises:
        TeacherError: a teacher that cannot teach, or a stale cache.
        Interrupted: stopped by a signal; every word heard so far is kept.
    """
    reporter, start = reporter or SilentReporter(), time.monotonic()
    check(config)
    with process_group(choose_device(config.device, config.precision).torch_device) as world:
        tutor, cache = _open(config, datasets, reporter, world)
        try:
            with loaders_may_die("Teach again with fewer: --workers 0"):
                asked = tutor.listener().fill(
                    datasets[0],
                    config.recipe.augment,
                    tutor.distill.view_seed,
                    tutor.total_views,
                    batch_size=batch_size,
                    workers=tutor.device.loader_workers(config.workers),
                    reporter=reporter,
                    world=world,
                )
        except (KeyboardInterrupt, Signalled) as stop:
            raise Interrupted(
                signal.SIGINT if isinstance(stop, KeyboardInterrupt) else stop.signum
            ) from stop
    num_images = len(datasets[0].labels)
    unreadable = tuple(datasets[0].name(i) for i in sorted(cache.unreadable(tutor.total_views)))
    return TeachResult(
        cache=cache.root,
        teacher=tutor.preflight,
        views=tutor.total_views,
        num_images=num_images,
        asked=asked,
        unreadable=unreadable,
        bytes=2 * cache.form.width * num_images * tutor.total_views,
        seconds=time.monotonic() - start,
    )


def verify(
    config: TrainConfig,
    datasets: tuple[ImageDataset, ImageDataset],
    *,
    count: int = 256,
    batch_size: int = 64,
    reporter: Reporter | None = None,
) -> VerifyResult:
    """Ask the teacher again about up to `count` views that its cache knows, and compare.

    Raises:
        TeacherError: nothing is cached, or the teacher says something else now.
    """
    reporter = reporter or SilentReporter()
    check(config)
    tutor, cache = _open(config, datasets, reporter, SINGLE_PROCESS)
    keys = _some(cache, tutor.total_views, count)
    if not keys:
        raise TeacherError(
            f"{cache.root} holds no words yet.", "Fill it first: leave --verify out."
        )
    batches = build_view_loader(
        datasets[0],
        config.recipe.augment,
        tutor.network().model_config.preprocessing.img_size,
        tutor.distill.view_seed,
        [keys[n : n + batch_size] for n in range(0, len(keys), batch_size)],
        workers=tutor.device.loader_workers(config.workers),
        pin_memory=tutor.device.pins_memory,
    )
    listener, different, farthest, checked = tutor.listener(), 0, 0.0, 0
    with (
        loaders_may_die("Verify again with fewer: --workers 0"),
        reporter.task("ask again", len(keys)) as task,
    ):
        for batch in batches:
            if not batch.keys:
                continue
            kept = cache.form.decode(cache.read([(k.epoch, k.index) for k in batch.keys])[0])
            again = cache.form.decode(listener.ask(batch.images))
            different += int((kept.argmax(1) != again.argmax(1)).sum())
            farthest = max(farthest, float((kept - again).abs().max()))
            checked += len(batch.keys)
            task.advance(len(batch.keys))
    if different > MOST_DIFFERENT * checked or (cache.form.mode == "soft" and farthest > FARTHEST):
        raise TeacherError(
            f"The teacher contradicts its words in {cache.root}: {different} of {checked} decisions differ, a "
            f"probability by up to {farthest:.3f}.",
            "Delete that folder and teach again.",
        )
    return VerifyResult(
        cache=cache.root, checked=checked, different=different, largest_difference=farthest
    )


def _some(cache: TargetCache, views: int, count: int) -> list[SampleKey]:
    """Choose about `count` words that are known, as many of each view, others every time."""
    draw = np.random.default_rng()
    share = -(-count // views)
    keys = [
        SampleKey(view, int(index), 0)
        for view in range(views)
        for index in draw.permutation(cache.known(view))[:share]
    ]
    return (
        keys
        if len(keys) <= count
        else [keys[n] for n in sorted(draw.permutation(len(keys))[:count].tolist())]
    )


def _open(
    config: TrainConfig,
    datasets: tuple[ImageDataset, ImageDataset],
    reporter: Reporter,
    world: World,
) -> tuple[DistillationTeacher, TargetCache]:
    if (
        config.distill is None
        or config.distill.teacher_input != "unmixed"
        or config.distill.teacher_cache == NO_CACHE
    ):
        raise ConfigError(
            "Without a cache there is nothing to teach.", "Leave --teacher-cache off out."
        )
    tutor = DistillationTeacher(
        config,
        *datasets,
        Preprocessing(),
        device=choose_device(config.device, config.precision),
        reporter=reporter,
        world=world,
        train_run=lambda run: train_or_find(run, datasets, reporter),
    )
    tutor.load_together()
    assert tutor.cache is not None
    return tutor, tutor.cache

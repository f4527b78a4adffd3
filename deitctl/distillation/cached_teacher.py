"""Hearing a teacher about views: from its cache where the word is there, from the network where it is not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import Batch, build_view_loader
from deitctl.data.samplers import SampleKey, view_of
from deitctl.device import Device
from deitctl.distillation.target_cache import Records, TargetCache, TargetCodec
from deitctl.distillation.teacher import Teacher
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.errors import TeacherError
from deitctl.events import Reporter
from deitctl.training.losses import teacher_targets


@dataclass(frozen=True)
class CachedTeacher:
    """Answers with the teacher's words [B,K] about the views of a batch, and remembers them."""

    form: TargetCodec
    tau: float
    cache: TargetCache | None
    """None: nothing is remembered, the teacher is asked every time."""
    teacher: Callable[[], Teacher]
    """Loads the network; called when a word is not in the cache, so perhaps never."""
    device: Device
    views: int
    repeats: int

    @property
    def known(self) -> Callable[[int, int], bool] | None:
        """Say by (view, image) whether a word is at hand, so that a loader need not render it; None: none ever is.

        It is the cache's own method, which travels to a loader process without the network.
        """
        return self.cache.holds if self.cache is not None else None

    def __call__(self, batch: Batch) -> Tensor:
        """Return the words [B,K] about a batch's views; what had to be asked is kept.

        Cached or not, a word passes through its stored form, so that training is the same either way.
        """
        places = [
            (view_of(key, views=self.views, repeats=self.repeats), key.index) for key in batch.keys
        ]
        if self.cache is None:
            return self.form.decode(self.ask(batch.teacher_images))
        records, found = self.cache.read(places)
        if not found.all():
            rows = [row for row in batch.teacher_rows if not found[row]]
            if len(rows) < len(found) - found.sum():
                raise TeacherError(
                    f"{self.cache.root} lost words while they were being read.", "Run it again."
                )
            images = batch.teacher_images[
                [i for i, row in enumerate(batch.teacher_rows) if not found[row]]
            ]
            records[rows] = self.ask(_in_places(images, rows, len(found)))[rows]
            self.cache.write([places[row] for row in rows], records[rows])
        return self.form.decode(records)

    def ask(self, pixels: Tensor) -> Records:
        """Ask the network about views, uint8 [B,3,T,T] at its own size; raise `TeacherError` if it answers no numbers."""
        with torch.no_grad(), self.device.autocast():
            logits = self.teacher().look(self.device.to_device(pixels))
        if not logits.isfinite().all():
            raise TeacherError(
                "The teacher answers with what is no number.",
                "Check its weights; or --precision fp32.",
            )
        return self.form.encode(teacher_targets(logits.float(), self.form.mode, self.tau))

    def fill(
        self,
        dataset: ImageDataset,
        augment: AugmentConfig,
        view_seed: int,
        views: int,
        *,
        batch_size: int,
        workers: int,
        reporter: Reporter,
        world: World = SINGLE_PROCESS,
        pause: Callable[[], None] = lambda: None,
    ) -> int:
        """Ask for every word that the first `views` views lack; return how many that were, in all processes together.

        The processes of a `world` share the views out. Others may do it at once: each goes through the views in an
        order of its own and leaves out what is there when its turn comes.
        """
        cache = self.cache
        if cache is None:
            return 0
        missing = cache.count_missing(views)
        if not any(world.all_gather_object(missing)):
            return 0
        asked = 0
        batches = build_view_loader(
            dataset,
            augment,
            self.teacher().model_config.preprocessing.img_size,
            view_seed,
            _still_missing(cache, views, batch_size, world),
            workers=workers,
            pin_memory=self.device.pins_memory,
        )
        with reporter.task("ask the teacher", missing) as task:
            for batch in batches:
                pause()
                cache.mark_unreadable([(key.epoch, key.index) for key, _ in batch.unreadable])
                if batch.keys:
                    heard = self.ask(_in_places(batch.images, range(len(batch.keys)), batch_size))
                    cache.write(
                        [(key.epoch, key.index) for key in batch.keys], heard[: len(batch.keys)]
                    )
                asked += len(batch.keys)
                task.advance(world.size * (len(batch.keys) + len(batch.unreadable)))
        return sum(world.all_gather_object(asked))


def _still_missing(
    cache: TargetCache, views: int, batch_size: int, world: World
) -> Iterator[list[SampleKey]]:
    """Yield batches of (view, image) that have no word yet, in an order that differs from process to process.

    Which of a `world` asks about an image depends on its number alone, so that none is left out or asked twice.
    """
    draw = rng.generator("teach", os.getpid())
    for view in draw.permutation(views).tolist():
        missing = cache.missing(view)
        missing = missing[missing // batch_size % world.size == world.rank]
        starts = range(0, len(missing), batch_size)
        for turn in draw.permutation(len(starts)).tolist():
            wanted = missing[starts[turn] : starts[turn] + batch_size]
            first, last = int(wanted[0]), int(wanted[-1]) + 1
            if left := np.intersect1d(
                wanted, cache.missing(view, first, last), assume_unique=True
            ).tolist():
                yield [SampleKey(view, index, 0) for index in left]


def _in_places(images: Tensor, rows: Sequence[int], size: int) -> Tensor:
    """Put views [M,3,T,T] into `rows` of a batch of `size`, black where there is none.

    An answer's last digit can depend on how many images are asked about together. So a batch that is half known, after
    a kill for example, is asked about as a whole one was.
    """
    if len(images) == size:
        return images
    batch = images.new_zeros((size, *images.shape[1:]))
    batch[list(rows)] = images
    return batch

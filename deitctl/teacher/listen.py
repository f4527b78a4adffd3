"""Hearing a teacher about views: from its cache where the word is there, from the network where it is not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deitctl import rng
from deitctl.config import AugmentConfig
from deitctl.data.loader import Batch, view_batches
from deitctl.data.samplers import SampleKey, view_of
from deitctl.data.sources import Source
from deitctl.device import Device
from deitctl.errors import TeacherError
from deitctl.events import Reporter
from deitctl.losses import teacher_word
from deitctl.teacher.frozen import Teacher
from deitctl.teacher.words import Records, WordCache, WordFormat


@dataclass(frozen=True)
class Listener:
    """Answers with the teacher's words [B,K] about the views of a batch, and remembers them."""

    form: WordFormat
    tau: float
    cache: WordCache | None
    """None: nothing is remembered, the teacher is asked every time."""
    teacher: Callable[[], Teacher]
    """Loads the network; called when a word is not in the cache, so perhaps never."""
    device: Device
    views: int
    repeats: int

    @property
    def known(self) -> Callable[[int, int], bool] | None:
        """Say by (view, picture) whether a word is at hand, so that a loader need not render it; None: none ever is.

        It is the cache's own method, which travels to a loader process without the network.
        """
        return self.cache.holds if self.cache is not None else None

    def __call__(self, batch: Batch) -> Tensor:
        """Return the words [B,K] about a batch's views; what had to be asked is kept.

        Cached or not, a word passes through its stored form, so that training is the same either way.
        """
        places = [(view_of(key, views=self.views, repeats=self.repeats), key.index) for key in batch.keys]
        if self.cache is None:
            return self.form.decode(self.ask(batch.teacher_images))
        records, found = self.cache.read(places)
        if not found.all():
            rows = [row for row in batch.teacher_rows if not found[row]]
            if len(rows) < len(found) - found.sum():
                raise TeacherError(f"{self.cache.root} lost words while they were being read.", "Run it again.")
            images = batch.teacher_images[[i for i, row in enumerate(batch.teacher_rows) if not found[row]]]
            records[rows] = self.ask(images)
            self.cache.write([places[row] for row in rows], records[rows])
        return self.form.decode(records)

    def ask(self, pixels: Tensor) -> Records:
        """Ask the network about views, uint8 [B,3,T,T] at its own size; raise `TeacherError` if it answers no numbers."""
        with torch.no_grad(), self.device.autocast():
            logits = self.teacher().look(self.device.move(pixels))
        if not logits.isfinite().all():
            raise TeacherError("The teacher answers with what is no number.", "Check its weights; or --precision fp32.")
        return self.form.encode(teacher_word(logits.float(), self.form.mode, self.tau))

    def fill(
        self, source: Source, augment: AugmentConfig, view_seed: int, views: int, *,
        batch_size: int, workers: int, reporter: Reporter,
    ) -> int:  # fmt: skip
        """Ask for every word that the first `views` views lack; return how many that were.

        Several processes may do it at once: each goes through the views in an order of its own and leaves out what is
        there when its turn comes.
        """
        cache = self.cache
        if cache is None:
            return 0
        missing = cache.count_missing(views)
        if not missing:
            return 0
        asked = 0
        batches = view_batches(
            source, augment, self.teacher().card.preprocessing.img_size, view_seed,
            _still_missing(cache, views, batch_size), workers=workers, pin_memory=self.device.pins_memory,
        )  # fmt: skip
        with reporter.task("ask the teacher", missing) as task:
            for batch in batches:
                cache.mark_unreadable([(key.epoch, key.index) for key, _ in batch.unreadable])
                if batch.keys:
                    cache.write([(key.epoch, key.index) for key in batch.keys], self.ask(batch.images))
                asked += len(batch.keys)
                task.advance(len(batch.keys) + len(batch.unreadable))
        return asked


def _still_missing(cache: WordCache, views: int, batch_size: int) -> Iterator[list[SampleKey]]:
    """Yield batches of (view, picture) that have no word yet, in an order that differs from process to process."""
    steps = -(-cache.pictures // batch_size)
    for turn in rng.generator("teach", os.getpid()).permutation(views * steps):
        view, step = divmod(int(turn), steps)
        if left := cache.missing(view, step * batch_size, (step + 1) * batch_size).tolist():
            yield [SampleKey(view, index, 0) for index in left]

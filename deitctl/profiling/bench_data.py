"""The stages from a file to a batch: reading, decoding, augmenting, on one core and with the loader's processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from deitctl.data.dataset import FileSource, Source
from deitctl.data.lazy_jpeg import LazyJpeg
from deitctl.data.loader import EvalViews
from deitctl.data.samplers import SampleKey, view_of
from deitctl.data.transforms import train_transform
from deitctl.errors import DataError
from deitctl.profiling.bench_result import Stage, StageClock
from deitctl.profiling.trial_run import TRIES, TrialRun

CHUNK = 8
"""Images of a sample."""
SMALL_SIDE = 8 / 7
"""Short side of an image that is stored small, over the input's: 256 for 224."""
SMALL_QUALITY = 90
WORTH = 1.2
"""Times as large as that images must be for it to be tried."""
KEPT = 16
"""Decoded images that are held."""
T = TypeVar("T")


def image_stages(job: TrialRun, clock: StageClock, folder: Path) -> Iterator[Stage]:
    """Measure reading, decoding and rendering, each on one core; `folder` is for images that are tried smaller."""
    keys = next(iter(job.keys(TRIES)))
    source, views = job.train, job.training_views()
    yield clock.take("read", "read", each(keys, lambda key: source.raw(key.index)))
    yield clock.take(
        "decode", "read and decode", each(keys, lambda key: _decode(source, key.index))
    )
    yield clock.take("augment", "augment", _augmenting(job, keys))
    yield clock.take(
        "view", "training view", each(keys, lambda key: _require_read(views[key].error))
    )
    side = small_side(job)
    if (small := smaller(source, keys, side, folder)) is not None:
        few = [
            SampleKey(key.epoch, n % len(small.labels), key.repeat) for n, key in enumerate(keys)
        ]
        stored = job.training_views(small)
        title = f"the same, stored at {side}"
        yield clock.take(
            "small_view", title, each(few, lambda key: _require_read(stored[key].error))
        )
    shown = EvalViews(job.val, [job.plan.preprocessing])
    positions = range(min(TRIES, len(job.val.labels)))
    yield clock.take(
        "eval_transform",
        "evaluation view",
        each(positions, lambda n: _require_read(shown[n].error)),
    )


def small_side(job: TrialRun) -> int:
    """Return the short side, in pixels, at which images are tried smaller."""
    return round(SMALL_SIDE * job.img_size)


def loader_stage(job: TrialRun, clock: StageClock) -> Stage:
    """Measure the stream that training takes its batches from, as fast as it comes; processes are started and ended."""
    stream: list[Iterator[object]] = []
    size, turn = (
        job.plan.recipe.batch_size,
        max(1, job.workers),
    )  # processes take turns, so a sample is a whole turn

    def work() -> int:
        if not stream:
            stream.append(job.batches())
        for _ in range(turn):
            next(stream[0])
        return turn * size

    try:
        return clock.take("loader", f"loader, --workers {job.workers}", work)
    finally:
        stream.clear()


def each(keys: Sequence[T], do: Callable[[T], object]) -> Callable[[], int]:
    """Return work that does the next `CHUNK` of `keys`, round and round, and counts those that could be read."""
    ring = cycle(keys)

    def work() -> int:
        done, errors = 0, list[DataError]()
        for key in islice(ring, CHUNK):
            try:
                do(key)
                done += 1
            except DataError as error:
                errors.append(error)
        if not done:
            raise errors[0]
        return done

    return work


def _require_read(error: str) -> None:
    """Raise what a view says of an image that could not be read."""
    if error:
        raise DataError(error)


def _decode(source: Source, index: int) -> None:
    """Decode all of an image, as a training view of its whole would."""
    image = source.open(index)
    if isinstance(image, LazyJpeg):
        image.cut((0, 0, *image.size))


def _decoded(source: Source, keys: Sequence[SampleKey]) -> list[tuple[SampleKey, Image.Image]]:
    """Return the first `KEPT` of the images that can be read."""
    found: list[tuple[SampleKey, Image.Image]] = []
    for key in keys:
        with suppress(DataError):
            found.append((key, source.read(key.index)))
        if len(found) == KEPT:
            break
    return found


def _augmenting(job: TrialRun, keys: Sequence[SampleKey]) -> Callable[[], int]:
    augment, seed, repeats = job.plan.recipe.augment, job.views.seed, job.views.repeats

    def do(item: tuple[SampleKey, Image.Image]) -> None:
        key, image = item
        view = view_of(key, views=job.views.views, repeats=repeats)
        train_transform(image, augment, job.img_size, seed, view, key.index)

    return each(_decoded(job.train, keys), do)


def smaller(
    source: Source, keys: Sequence[SampleKey], side: int, folder: Path
) -> FileSource | None:
    """Store some images again with a short side of `side` pixels; None where they are not much larger than that."""
    images = [image for _, image in _decoded(source, keys)]
    if not images or np.median([min(image.size) for image in images]) < WORTH * side:
        return None
    paths = []
    for number, image in enumerate(images):
        scale = min(1.0, side / min(image.size))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        paths.append(str(folder / f"small-{number}.jpg"))
        image.resize(size, Image.Resampling.BICUBIC).save(paths[-1], "JPEG", quality=SMALL_QUALITY)
    return FileSource(paths, np.zeros(len(paths), np.int64), source.class_names)

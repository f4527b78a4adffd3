"""Batches of uint8 images, decoded and augmented by worker processes.

The same for any number of workers.

Letters: B images of a batch, S and T pixels of the student's and the teacher's input side, M images
for the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from deitctl.config import AugmentConfig
from deitctl.data.batch_table import BatchTable, TableDraws, draw_table
from deitctl.data.collation import Label, get_label, stack_images, stack_labels
from deitctl.data.dataset import ImageDataset
from deitctl.data.eval_transform import Pixels, to_channels, to_chw
from deitctl.data.eval_views import EvalBatch, EvalViews
from deitctl.data.loader_pool import LoaderPool
from deitctl.data.loader_process import Loading
from deitctl.data.samplers import SampleKey, TrainBatches, view_of
from deitctl.data.stream import batched_range, stream_from
from deitctl.data.transforms import render_view
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.models.model_config import Preprocessing
from deitctl.sizes import ImageSize, make_size

AnyBatch = TypeVar("AnyBatch", "Batch", "EvalBatch")
Key = TypeVar("Key")

AHEAD = 4
"""Training batches that a loader prepares before they are needed."""


class Sample(NamedTuple):
    """A training image as a worker returns it.

    `pixels` is None if it is unreadable, and `error` has the reason.
    """

    pixels: Pixels | None
    label: Label
    key: SampleKey
    error: str
    teacher_pixels: tuple[Pixels | None, ...] = ()
    """The same view as each teacher's input, None where its targets are cached."""


class Batch(NamedTuple):
    """The readable images of a training batch."""

    images: Tensor
    """uint8 [B,C,H,W]."""
    labels: Tensor
    """int64 [B], or of several labels an image bool [B,K]; -1, or int8 rows of it, where there is none."""
    keys: list[SampleKey]
    slots: list[int]
    """Place of each image in the batch as sampled, where unreadable images have places too."""
    unreadable: list[tuple[SampleKey, str]]
    """Key and reason."""
    teacher_images: list[Tensor]
    """For each of the teachers' inputs (`ViewPlan.teacher_views`) the views whose targets are not cached,
    uint8 [M,3,T,T]."""
    teacher_rows: list[list[int]]
    """Likewise the row of each of them in the batch."""
    table: BatchTable | None = None
    """What is drawn for each image; None where it is not drawn yet."""

    @property
    def errors(self) -> list[tuple[int, str]]:
        """Index in the dataset of each unreadable image, and the reason."""
        return [(key.index, why) for key, why in self.unreadable]

    def split(self, size: int) -> Iterator[Batch]:
        """Yield micro-batches of `size` slots (0: all).

        `size` must be even, so that mixed pairs stay together.
        """
        if not size or size >= max(self.slots, default=0) + 1:
            yield self
            return
        # By slot, not by row: an unreadable image then moves no other into another micro-batch.
        groups: dict[int, list[int]] = {}
        for row, slot in enumerate(self.slots):
            groups.setdefault(slot // size, []).append(row)
        for rows in groups.values():
            new_rows = {row: n for n, row in enumerate(rows)}
            teacher = [
                [n for n, row in enumerate(rows_of) if row in new_rows]
                for rows_of in self.teacher_rows
            ]
            table = self.table
            yield Batch(
                table=None if table is None else BatchTable(table.values[rows], table.seeds[rows]),
                images=self.images[rows],
                labels=self.labels[rows],
                keys=[self.keys[r] for r in rows],
                slots=[self.slots[r] for r in rows],
                unreadable=[],
                teacher_images=[
                    images[chosen]
                    for images, chosen in zip(self.teacher_images, teacher, strict=True)
                ],
                teacher_rows=[
                    [new_rows[rows_of[n]] for n in chosen]
                    for rows_of, chosen in zip(self.teacher_rows, teacher, strict=True)
                ],
            )


@dataclass(frozen=True)
class TeacherView:
    """The input of a teacher, for which a view is rendered once more."""

    size: ImageSize
    """In pixels."""
    in_chans: int = 3
    """Channels of it."""
    is_cached: tuple[Callable[[int, int], bool], ...] | None = None
    """Whether each teacher that sees it has its target of (view, image) cached; None: one of them caches
    nothing."""

    def has_targets(self, view: int, index: int) -> bool:
        """Return whether it need not be rendered."""
        return self.is_cached is not None and all(has(view, index) for has in self.is_cached)

    def is_same_input(self, other: TeacherView) -> bool:
        """Return whether the same pixels serve both."""
        return (self.size, self.in_chans) == (other.size, other.in_chans)

    def join(self, other: TeacherView) -> TeacherView:
        """Return the view of the teachers of both, which have the same input."""
        if self.is_cached is None or other.is_cached is None:
            return replace(self, is_cached=None)
        return replace(self, is_cached=self.is_cached + other.is_cached)


@dataclass(frozen=True)
class ViewPlan:
    """Which view each sample shows, at which sizes."""

    seed: int
    """Of the views."""
    views: int = 0
    """Views per image, cycled over the epochs; 0: fresh views every epoch."""
    repeats: int = 1
    """Views of an image in an epoch, see `view_of`."""
    teacher_views: tuple[TeacherView, ...] = ()
    """The distinct inputs of the teachers that see views."""
    early_epochs: int = 0
    """Epochs of progressive resizing."""
    early_size: ImageSize = 0
    """The student's input size during these, in pixels."""
    in_chans: int = 3
    """Channels of the student's input."""
    draws: TableDraws | None = None
    """How the batches' tables are drawn; None: they are not."""


class TrainViews:
    """Augmented views by key, at the student's size.

    At the teacher's too, where the teacher must compute targets.
    """

    def __init__(
        self, dataset: ImageDataset, augment: AugmentConfig, img_size: ImageSize, plan: ViewPlan
    ) -> None:
        self.dataset, self.augment, self.img_size, self.plan = dataset, augment, img_size, plan

    def __eq__(self, other: object) -> bool:
        """Return whether the other's batches are the same."""
        return (
            isinstance(other, TrainViews)
            and self.dataset is other.dataset
            and (self.augment, self.img_size, self.plan)
            == (other.augment, other.img_size, other.plan)
        )

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, key: SampleKey) -> Sample:
        plan, label = self.plan, get_label(self.dataset, key.index)
        view = view_of(key, views=plan.views, repeats=plan.repeats)
        img_size = plan.early_size if key.epoch < plan.early_epochs else self.img_size
        seen = [
            None if teacher.has_targets(view, key.index) else teacher
            for teacher in plan.teacher_views
        ]
        sizes = {img_size, *(teacher.size for teacher in seen if teacher is not None)}
        try:
            # Opened, not decoded: the crop decides at which scale a JPEG is decoded.
            image = self.dataset.open(key.index)
            images = {
                size: render_view(
                    image,
                    self.augment,
                    size,
                    plan.seed,
                    view,
                    key.index,
                    self.dataset.augmentation,
                )
                for size in sizes
            }
        except DataError as error:
            return Sample(None, label, key, str(error))
        # Of the same view: a teacher of RGB sees the colors of what its gray student sees.
        inputs = {(img_size, plan.in_chans)}
        inputs |= {(teacher.size, teacher.in_chans) for teacher in seen if teacher is not None}
        pixels = {(size, chans): to_chw(to_channels(images[size], chans)) for size, chans in inputs}
        return Sample(
            pixels[img_size, plan.in_chans],
            label,
            key,
            "",
            tuple(None if t is None else pixels[t.size, t.in_chans] for t in seen),
        )

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack the readable samples, and draw what the device transforms them by."""
        batch = collate(samples)
        if self.plan.draws is None:
            return batch
        size = make_size(*batch.images.shape[-2:])
        return batch._replace(table=draw_table(batch.keys, self.augment, size, self.plan.draws))

    def prefetch(self, keys: Sequence[SampleKey]) -> None:
        """Start reading the images of these keys."""
        self.dataset.prefetch([key.index for key in keys])


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack the readable samples; unreadable ones are reported, never replaced by another image."""
    slots = [slot for slot, s in enumerate(samples) if s.pixels is not None]
    good = [samples[slot] for slot in slots]
    # One list for each of the teachers' inputs; unreadable samples have none of them.
    teacher = list(zip(*(s.teacher_pixels for s in good), strict=True))
    return Batch(
        images=stack_images([s.pixels for s in good if s.pixels is not None]),
        labels=stack_labels([s.label for s in samples], [s.pixels is not None for s in samples]),
        keys=[s.key for s in good],
        slots=slots,
        unreadable=[(s.key, s.error) for s in samples if s.pixels is None],
        teacher_images=[stack_images([p for p in pixels if p is not None]) for pixels in teacher],
        teacher_rows=[[r for r, p in enumerate(pixels) if p is not None] for pixels in teacher],
    )


def build_train_loader(
    dataset: ImageDataset,
    augment: AugmentConfig,
    img_size: ImageSize,
    batches: TrainBatches,
    *,
    workers: int,
    pin_memory: bool,
    plan: ViewPlan | None = None,
    shard: slice = slice(None),
    pool: LoaderPool | None = None,
    pause: Callable[[], None] = lambda: None,
    reporter: Reporter | None = None,
) -> Generator[Batch]:
    """Iterate over the training batches from `batches.first_step` to the last epoch.

    Without a break between epochs.

    Args:
        plan: default: fresh views every epoch, of the batches' seed.
        shard: of each batch, for one of several processes.
        pool: processes that are used, instead of `workers` of its own, if they make these batches.
        pause: called about once a second while no batch comes; may raise to stop.
        reporter: gets a warning when none comes for a minute.
    """
    plan = plan or ViewPlan(batches.seed, repeats=batches.repeats)
    views = TrainViews(dataset, augment, img_size, plan)
    # Every process draws the global batch and takes a slice of it, so results do not depend on the
    # number of processes.
    keys = (keys[shard] for keys in batches)
    return _stream(
        views,
        keys,
        pool=pool,
        workers=workers,
        ahead=AHEAD,
        pin=pin_batch if pin_memory else None,
        pause=pause,
        reporter=reporter,
    )


def build_view_loader(
    dataset: ImageDataset,
    augment: AugmentConfig,
    img_size: ImageSize,
    view_seed: int,
    batches: Iterable[list[SampleKey]],
    *,
    in_chans: int = 3,
    workers: int,
    pin_memory: bool,
    pause: Callable[[], None] = lambda: None,
    reporter: Reporter | None = None,
) -> Generator[Batch]:
    """Iterate over the views of batches of keys, in which `epoch` is the number of a view.

    `pause` and `reporter` are as for `build_train_loader`.
    """
    return _stream(
        TrainViews(dataset, augment, img_size, ViewPlan(view_seed, in_chans=in_chans)),
        batches,
        workers=workers,
        ahead=AHEAD,
        pin=pin_batch if pin_memory else None,
        pause=pause,
        reporter=reporter,
    )


def build_eval_loader(
    dataset: ImageDataset,
    preprocessings: Sequence[Preprocessing],
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    shard: slice = slice(None),
    pool: LoaderPool | None = None,
    pause: Callable[[], None] = lambda: None,
    reporter: Reporter | None = None,
) -> Generator[EvalBatch]:
    """Iterate over every image of a dataset once, in order.

    `shard` selects positions for one of several processes; `pool`, `pause` and `reporter` are as for
    `build_train_loader`.
    """
    positions, views = range(len(dataset.labels))[shard], EvalViews(dataset, preprocessings)
    return _stream(
        views,
        (positions[part.start : part.stop] for part in batched_range(len(positions), batch_size)),
        pool=pool,
        # Starting workers takes longer than one batch.
        workers=workers if len(positions) > batch_size else 0,
        pin=pin_batch if pin_memory else None,
        pause=pause,
        reporter=reporter,
    )


def _stream(
    views: Loading[Key, Any, AnyBatch],
    batches: Iterable[Sequence[Key]],
    *,
    pool: LoaderPool | None = None,
    workers: int,
    **options: Any,
) -> Generator[AnyBatch]:
    """Yield batches of views, from a pool that makes such, else from processes that end with the generator."""
    if pool is not None and views in pool:
        yield from stream_from(pool, views, batches, **options)
        return
    with closing(LoaderPool([views], workers)) as own:
        yield from stream_from(own, views, batches, **options)


def pin_batch(batch: AnyBatch) -> AnyBatch:
    """Return a batch whose tensors are in page-locked memory, from which copies to CUDA do not block."""
    return batch._replace(**{name: _pin(value) for name, value in batch._asdict().items()})


def _pin(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, BatchTable):
        return BatchTable(*(tensor.pin_memory() for tensor in value))
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [tensor.pin_memory() for tensor in value]
    return value

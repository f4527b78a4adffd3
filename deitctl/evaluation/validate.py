"""One pass over a dataset for one or several models: each image is read once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deitctl.data.dataset import ImageDataset
from deitctl.data.eval_views import EvalBatch
from deitctl.data.loader import build_eval_loader
from deitctl.data.loader_pool import LoaderPool
from deitctl.device import Device
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.errors import DataError, ModelError
from deitctl.evaluation.accumulator import MAX_LOGITS, EvalAccumulator
from deitctl.evaluation.batch_size import choose_batch_size
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.late_reads import LateReads
from deitctl.evaluation.multilabel_accumulator import MultilabelAccumulator
from deitctl.evaluation.multilabel_result import Result
from deitctl.events import Reporter
from deitctl.models.model_config import Preprocessing
from deitctl.pieces import Pieces

Accumulator = EvalAccumulator | MultilabelAccumulator


@torch.no_grad()
def validate(
    eval_models: Sequence[EvalModel],
    dataset: ImageDataset,
    *,
    device: Device,
    batch_size: int | None = None,
    workers: int,
    reporter: Reporter,
    label: str = "evaluate",
    world: World = SINGLE_PROCESS,
    pause: Callable[[], None] = lambda: None,
    stop_on_bad_image: bool = False,
    store_logits: bool = False,
    require_finite: bool = False,
    pool: LoaderPool | None = None,
) -> list[Result]:
    """Evaluate models on every readable image of a dataset, by the kind of its labels.

    With several processes each evaluates a share, and all return the results of all images.

    Args:
        eval_models: the models, on `device`; put into eval mode.
        dataset: the images.
        device: device and precision of the forward passes.
        batch_size: images per batch, halved where memory runs out; None: see `choose_batch_size`. The results
            do not depend on it, apart from rounding.
        workers: loader processes.
        reporter: shows progress.
        label: name of the progress.
        world: processes that share the images.
        pause: called before every batch, and about once a second while none comes; may raise to stop.
        stop_on_bad_image: whether an image that cannot be read is an error; else it is left out.
        store_logits: whether the results have logits, at most `MAX_LOGITS` for all models together;
            of several labels an image they have all, whatever this says.
        require_finite: whether an infinite or NaN logit is an error; else its prediction counts.
        pool: loader processes that are used, instead of `workers` of its own, if they load these images.

    Raises:
        ModelError: a logit is not finite, with `require_finite`.
        DataError: no image can be read; or one cannot, with `stop_on_bad_image`.
    """
    for eval_model in eval_models:
        if isinstance(eval_model.model, nn.Module):
            eval_model.model.eval()
    # Pixels are normalized on the device: models that differ in mean and std only share one view.
    views = [m.preprocessing.without_normalization for m in eval_models]
    unique_views = list(dict.fromkeys(views))
    start = time.monotonic()
    positions = range(len(dataset.labels))[world.rank :: world.size]
    if batch_size is None:
        batch_size = choose_batch_size(eval_models, device, len(positions), workers)
    accumulators = _start_accumulators(eval_models, dataset, device, store_logits=store_logits)
    largest = min(batch_size, len(positions))
    pieces, reads = Pieces(device, largest), LateReads()
    scorer = _Scorer(accumulators, views, unique_views, pieces, require_finite)
    batches = build_eval_loader(
        dataset,
        unique_views,
        batch_size=batch_size,
        workers=workers,
        pin_memory=device.pins_memory,
        shard=slice(world.rank, None, world.size),
        pool=pool,
        pause=pause,
        reporter=reporter,
    )
    with device.computing(), closing(batches), reporter.task(label, len(dataset.labels)) as task:
        for batch in batches:
            pause()
            if batch.errors and stop_on_bad_image:
                raise DataError(batch.errors[0][1], "--on-bad-image skip leaves such images out.")
            for accumulator in accumulators:
                accumulator.read_errors += batch.errors
            # Added once a part is done for all models: where memory runs out in it, it is computed again.
            for scores in pieces.compute(len(batch.indices), partial(scorer.score, batch)):
                for accumulator, score in zip(accumulators, scores, strict=True):
                    if score.is_finite is not None:
                        check = partial(_require_finite, score.indices, dataset)
                        reads.add(accumulator.device, score.is_finite, check)
                    accumulator.append(score.columns, reads)
            reads.end_batch(device)
            task.advance(world.size * (len(batch.indices) + len(batch.errors)))
    reads.finish()
    for accumulator in accumulators:
        accumulator.read()
        accumulator.gather(world)
    if accumulators[0].is_empty:
        errors = accumulators[0].read_errors
        raise DataError(f"None of {len(errors)} images can be read; the first: {errors[0][1]}")
    seconds = time.monotonic() - start
    return [accumulator.compute(seconds, dataset.name) for accumulator in accumulators]


def _start_accumulators(
    eval_models: Sequence[EvalModel],
    dataset: ImageDataset,
    device: Device,
    *,
    store_logits: bool,
) -> Sequence[Accumulator]:
    """Return what accumulates the outputs of each model, where they are: exported ones run on the CPU."""
    homes = [None if m.is_exported else device for m in eval_models]
    if dataset.is_multilabel:
        return [
            MultilabelAccumulator(m, dataset.class_names, home)
            for m, home in zip(eval_models, homes, strict=True)
        ]
    max_logits = MAX_LOGITS // len(eval_models) if store_logits else 0
    return [
        EvalAccumulator(m, len(dataset.labels), max_logits=max_logits, device=home)
        for m, home in zip(eval_models, homes, strict=True)
    ]


class _Score(NamedTuple):
    """What is added for some images to what a model's outputs were."""

    columns: dict[str, Tensor]
    indices: Tensor
    """Of the images in the dataset, [B] on the host."""
    is_finite: Tensor | None
    """Whether all logits of each image are, [B] on the device; None where nobody needs to know."""


@dataclass(frozen=True)
class _Scorer:
    """Scores the outputs of every model for the images of a batch."""

    accumulators: Sequence[Accumulator]
    views: Sequence[Preprocessing]
    """Of each model, of which several may be equal."""
    unique_views: Sequence[Preprocessing]
    pieces: Pieces
    require_finite: bool

    def score(self, batch: EvalBatch, part: slice) -> list[_Score]:
        """Return the scores of some rows of a batch by each model, without waiting for the device."""
        host = dict(zip(self.unique_views, batch.images, strict=True))
        moved = dict[tuple[Preprocessing, Device], Tensor]()
        labels, indices, scores = batch.labels[part], batch.indices[part], []
        for accumulator, view in zip(self.accumulators, self.views, strict=True):
            device = accumulator.device
            if (view, device) not in moved:  # once for all models that see it
                moved[view, device] = device.to_device(host[view][part])
            heads = accumulator.eval_model.forward_in_pieces(
                moved[view, device], device, self.pieces.size
            )
            cls, dist = heads.cls.float(), None if heads.dist is None else heads.dist.float()
            is_finite = None
            if self.require_finite:
                is_finite = (cls if dist is None else cls + dist).isfinite().all(1)
            scores.append(_Score(accumulator.score(cls, dist, labels, indices), indices, is_finite))
        return scores


def _require_finite(indices: Tensor, dataset: ImageDataset, is_finite: Tensor) -> None:
    if not is_finite.all():
        name = dataset.name(int(indices[~is_finite][0]))
        raise ModelError(
            f"The model's logits for {name} are not finite.",
            "Try --precision fp32, or other weights.",
        )

"""One pass over a dataset for one or several models: each image is read once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing

import torch
from torch import Tensor, nn

from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import build_eval_loader
from deitctl.data.loader_pool import LoaderPool
from deitctl.device import Device
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.errors import DataError, ModelError
from deitctl.evaluation.accumulator import MAX_LOGITS, EvalAccumulator
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.multilabel_accumulator import MultilabelAccumulator
from deitctl.evaluation.multilabel_result import Result
from deitctl.events import Reporter


@torch.no_grad()
def validate(
    eval_models: Sequence[EvalModel],
    dataset: ImageDataset,
    *,
    device: Device,
    batch_size: int,
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
        batch_size: images per batch; the results do not depend on it.
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
    accumulators = _start_accumulators(eval_models, dataset, store_logits=store_logits)
    start = time.monotonic()
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
            pixels = {
                view: device.to_device(images)
                for view, images in zip(unique_views, batch.images, strict=True)
            }
            for eval_model, view, accumulator in zip(eval_models, views, accumulators, strict=True):
                accumulator.read_errors += batch.errors
                if len(batch.indices):
                    cls, dist = _run_forward(eval_model, pixels[view], device)
                    if require_finite:
                        _require_finite(cls if dist is None else cls + dist, batch.indices, dataset)
                    accumulator.add(cls, dist, batch.labels, batch.indices)
            task.advance(world.size * (len(batch.indices) + len(batch.errors)))
    for accumulator in accumulators:
        accumulator.gather(world)
    if accumulators[0].is_empty:
        errors = accumulators[0].read_errors
        raise DataError(f"None of {len(errors)} images can be read; the first: {errors[0][1]}")
    seconds = time.monotonic() - start
    return [accumulator.compute(seconds, dataset.name) for accumulator in accumulators]


def _start_accumulators(
    eval_models: Sequence[EvalModel], dataset: ImageDataset, *, store_logits: bool
) -> Sequence[EvalAccumulator | MultilabelAccumulator]:
    if dataset.is_multilabel:
        return [MultilabelAccumulator(m, dataset.class_names) for m in eval_models]
    max_logits = MAX_LOGITS // len(eval_models) if store_logits else 0
    return [EvalAccumulator(m, len(dataset.labels), max_logits=max_logits) for m in eval_models]


def _run_forward(
    eval_model: EvalModel, pixels: Tensor, device: Device
) -> tuple[Tensor, Tensor | None]:
    """Return the logits of both heads, float32 [B,K] on the CPU."""
    cls, dist = eval_model.forward_in_pieces(pixels, device)
    return cls.float().cpu(), None if dist is None else dist.float().cpu()


def _require_finite(logits: Tensor, indices: Tensor, dataset: ImageDataset) -> None:
    bad = ~logits.isfinite().all(1)
    if bad.any():
        name = dataset.name(int(indices[bad][0]))
        raise ModelError(
            f"The model's logits for {name} are not finite.",
            "Try --precision fp32, or other weights.",
        )

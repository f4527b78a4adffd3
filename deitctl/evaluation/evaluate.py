"""One pass over the images for one or several contenders: each image is read once and shown to all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from deitctl.data.dataset import ImageDataset
from deitctl.data.loader import build_eval_loader
from deitctl.device import Device, ran_out_of_memory
from deitctl.distributed import SINGLE_PROCESS, World
from deitctl.errors import DataError, ModelError
from deitctl.evaluation.accumulator import MAX_KEPT, EvalAccumulator, EvalModel
from deitctl.evaluation.result import Evaluation
from deitctl.events import Reporter
from deitctl.models.introspect import compute_max_activation_bytes
from deitctl.models.model_config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from deitctl.models.vit import HeadLogits


def evaluate(
    model: nn.Module,
    dataset: ImageDataset,
    preprocessing: Preprocessing,
    *,
    rows: tuple[int, ...],
    head: str,
    device: Device,
    batch_size: int,
    workers: int,
    reporter: Reporter,
    label: str = "evaluate",
    teacher: Tensor | None = None,
    world: World = SINGLE_PROCESS,
    pause: Callable[[], None] = lambda: None,
    stop_on_bad_image: bool = False,
) -> Evaluation:
    """Score one model; the arguments are those of `EvalModel` and of `evaluate_all`."""
    contender = EvalModel(
        model=model, preprocessing=preprocessing, rows=rows, head=head, teacher=teacher
    )
    (result,) = evaluate_all(
        [contender],
        dataset,
        device=device,
        batch_size=batch_size,
        workers=workers,
        reporter=reporter,
        label=label,
        world=world,
        pause=pause,
        stop_on_bad_image=stop_on_bad_image,
    )
    return result


@torch.no_grad()
def evaluate_all(
    contenders: Sequence[EvalModel],
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
    keep_logits: bool = False,
    only_numbers: bool = False,
) -> list[Evaluation]:
    """Score models on every readable image of a source, each once; of several processes all get the whole result.

    Args:
        contenders: the models, already on `device`; put into eval mode.
        source: the images.
        device: where, and in which precision.
        batch_size: images at a time; the result does not depend on it.
        workers: loader processes.
        reporter: shows progress.
        label: what the progress is called.
        world: the processes that share the images.
        pause: called between two batches, where it may stop the work.
        stop_on_bad_image: whether an image that cannot be read ends it.
        keep_logits: whether the results carry logits, see `Evaluation`; contenders share the room.
        only_numbers: whether an answer that is infinite or not a number ends it; else it is as wrong as any.

    Raises:
        ModelError: an answer is not a number, with `only_numbers`.
        DataError: not one image can be read; or one cannot, with `stop_on_bad_image`.
    """
    for contender in contenders:
        if isinstance(contender.model, nn.Module):
            contender.model.eval()
    shown = [_pixels_of(c.preprocessing) for c in contenders]
    views = list(dict.fromkeys(shown))
    room = MAX_KEPT // len(contenders) if keep_logits else 0
    tallies = [EvalAccumulator(c, len(dataset.labels), room=room) for c in contenders]
    start = time.monotonic()
    batches = build_eval_loader(
        dataset,
        views,
        batch_size=batch_size,
        workers=workers,
        pin_memory=device.pins_memory,
        share=slice(world.rank, None, world.size),
    )
    with reporter.task(label, len(dataset.labels)) as task:
        for batch in batches:
            pause()
            if batch.errors and stop_on_bad_image:
                raise DataError(batch.errors[0][1], "It was to stop there (--on-bad-image stop).")
            pixels = {
                view: device.to_device(images)
                for view, images in zip(views, batch.images, strict=True)
            }
            for contender, view, tally in zip(contenders, shown, tallies, strict=True):
                tally.unreadable += batch.errors
                if len(batch.indices):
                    heads = _answers(contender, pixels[view], device)
                    cls, dist = (None if x is None else x.float().cpu() for x in heads)
                    assert cls is not None
                    if only_numbers:
                        _require_numbers(
                            cls if dist is None else cls + dist, batch.indices, dataset
                        )
                    tally.add(cls, dist, batch.labels, batch.indices)
            task.advance(world.size * (len(batch.indices) + len(batch.errors)))
    for tally in tallies:
        tally.join(world)
    if tallies[0].empty:
        bad = tallies[0].unreadable
        raise DataError(f"Not one of {len(bad)} images can be read; the first: {bad[0][1]}")
    return [tally.result(time.monotonic() - start) for tally in tallies]


def _require_numbers(logits: Tensor, indices: Tensor, dataset: ImageDataset) -> None:
    bad = ~logits.isfinite().all(1)
    if bad.any():
        name = dataset.name(int(indices[bad][0]))
        raise ModelError(
            f"The model answers {name} with values that are not numbers.",
            "Try --precision fp32, or other weights.",
        )


def _pixels_of(preprocessing: Preprocessing) -> Preprocessing:
    """Return the part of a preprocessing that pixels depend on: models that differ in the rest look at the same view."""
    return replace(preprocessing, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _answers(contender: EvalModel, pixels: Tensor, device: Device) -> HeadLogits:
    """Return a contender's logits, so many images at a time as pay on the device; where memory runs out, in two halves."""
    model = contender.model
    most = (
        device.preferred_micro_batch_size(compute_max_activation_bytes(model, device.dtype))
        if isinstance(model, nn.Module)
        else 0
    )
    size = most or len(pixels)
    if len(pixels) <= size:
        try:
            with device.autocast():
                return contender.answer(pixels)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error) or len(pixels) == 1:
                raise
        device.empty_cache()
        size = len(pixels) // 2
    cls, dist = zip(
        *(_answers(contender, part, device) for part in torch.split(pixels, size)), strict=True
    )
    return HeadLogits(torch.cat(cls), None if dist[0] is None else torch.cat(dist))

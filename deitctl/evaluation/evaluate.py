"""Scores of a classifier on a source, per picture, for each head and each way to join them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deitctl.card import HEADS, Preprocessing
from deitctl.data.loader import eval_batches
from deitctl.data.mixing import normalise
from deitctl.data.sources import Source
from deitctl.device import Device, ran_out_of_memory
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.metrics import expected_calibration_error, topk_correct
from deitctl.models.heads import forward_heads, fuse_heads
from deitctl.models.vit import HeadLogits
from deitctl.world import ALONE, World


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured, by picture where it is needed further; accuracies in percent."""

    images: int
    top1: float
    top5: float
    loss: float
    ece: float
    heads: dict[str, float] | None
    """Top-1 of each head rule, None for a model with one head."""
    top1_among: float | None
    """Top-1 among the data's classes alone, where the model knows more."""
    top5_among: float | None
    agreement: float | None
    """Percent of pictures on which the two heads agree (100 - DeiT Table 4's disagreement)."""
    teacher_agreement: dict[str, float] | None
    """Percent of pictures on which each head rule agrees with the teacher, None without one (DeiT Table 4)."""
    images_per_second: float
    predictions: Tensor = field(repr=False)
    """The model's class of each picture, [N], in the model's numbering."""
    among: Tensor = field(repr=False)
    """The likeliest of the data's classes of each picture, [N], in the data's numbering."""
    confidences: Tensor = field(repr=False)
    """Its probability, [N]."""
    correct: Tensor = field(repr=False)
    """Whether it is right, [N]."""
    indices: list[int] = field(repr=False)
    """Position of each picture in the source."""
    unreadable: list[tuple[int, str]] = field(repr=False)
    """Position and reason of the pictures left out."""


@torch.no_grad()
def evaluate(
    model: nn.Module, source: Source, preprocessing: Preprocessing, *, rows: tuple[int, ...], head: str,
    device: Device, batch_size: int, workers: int, reporter: Reporter, label: str = "evaluate",
    teacher: Tensor | None = None, world: World = ALONE, pause: Callable[[], None] = lambda: None,
    stop_on_bad_image: bool = False,
) -> Evaluation:  # fmt: skip
    """Score a model on every readable picture of a source, each once; of several processes all get the whole result.

    Args:
        model: a classifier, already on `device`; put into eval mode.
        source: the pictures.
        preprocessing: what the model expects.
        rows: for each class of the source, its logit.
        head: the rule whose answer is the model's (see `fuse_heads`).
        device: where, and in which precision.
        batch_size: pictures at a time; the result does not depend on it.
        workers: loader processes.
        reporter: shows progress.
        label: what the progress is called.
        teacher: a teacher's class of each picture of the source, [N], in the source's classes; -1 where it has none.
        world: the processes that share the pictures.
        pause: called between two batches, where it may stop the work.
        stop_on_bad_image: whether a picture that cannot be read ends it.

    Raises:
        DataError: not one picture can be read; or one cannot, with `stop_on_bad_image`.
    """
    model.eval()
    tally = _Tally(torch.tensor(rows), head, teacher)
    start = time.monotonic()
    batches = eval_batches(
        source, preprocessing, batch_size=batch_size, workers=workers, pin_memory=device.pins_memory,
        share=slice(world.rank, None, world.size),
    )  # fmt: skip
    with reporter.task(label, len(source.labels)) as task:
        for batch in batches:
            pause()
            tally.unreadable += batch.errors
            if batch.errors and stop_on_bad_image:
                raise DataError(batch.errors[0][1], "It was to stop there (--on-bad-image stop).")
            if batch.keys:
                cls, dist = _answers(model, normalise(device.move(batch.images), preprocessing), device)
                indices = [key.index for key in batch.keys]
                tally.add(cls.float().cpu(), dist.float().cpu() if dist is not None else None, batch.labels, indices)
            task.advance(world.size * (len(batch.keys) + len(batch.errors)))
    tally.join(world)
    if not tally.indices:
        raise DataError(f"Not one of {len(tally.unreadable)} pictures can be read; the first: {tally.unreadable[0][1]}")
    return tally.result(time.monotonic() - start)


def _answers(model: nn.Module, images: Tensor, device: Device) -> HeadLogits:
    """Return a model's logits; where memory runs out, in two halves."""
    try:
        with device.autocast():
            return forward_heads(model, images)
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error) or len(images) == 1:
            raise
    device.forget_cached_memory()
    half = len(images) // 2
    first, second = _answers(model, images[:half], device), _answers(model, images[half:], device)
    dist = None if first.dist is None or second.dist is None else torch.cat([first.dist, second.dist])
    return HeadLogits(torch.cat([first.cls, second.cls]), dist)


class _Tally:
    """Collects a few numbers a picture, not the logits, so that any data set fits."""

    def __init__(self, rows: Tensor, head: str, teacher: Tensor | None) -> None:
        self.rows, self.head, self.teacher = rows, head, teacher
        self.with_teacher: dict[str, list[Tensor]] = {}
        self.top1: dict[str, list[Tensor]] = {}
        self.columns: dict[str, list[Tensor]] = {
            k: [] for k in ("top5", "loss", "confidence", "prediction", "among", "among5", "agree", "label")
        }
        self.indices: list[int] = []
        self.unreadable: list[tuple[int, str]] = []
        self.one_head, self.subset = True, False

    def add(self, cls: Tensor, dist: Tensor | None, labels: Tensor, indices: list[int]) -> None:
        self.indices += indices
        targets = self.rows[labels]
        self.one_head = dist is None
        rules = ("cls",) if dist is None else HEADS
        fused = {rule: fuse_heads(HeadLogits(cls, dist), rule) for rule in rules}
        for rule, logits in fused.items():
            self.top1.setdefault(rule, []).append(topk_correct(logits, targets, 1))
            if self.teacher is not None:
                said = self.teacher[indices]
                agrees = logits[:, self.rows].argmax(1) == said
                if (said >= 0).any():
                    self.with_teacher.setdefault(rule, []).append(agrees[said >= 0])
        main = fused["cls" if dist is None else self.head]
        self.subset = main.shape[1] > len(self.rows)
        confidence, prediction = main.softmax(1).max(1)
        add = {
            "top5": topk_correct(main, targets, 5),
            "loss": F.cross_entropy(main, targets, reduction="none"),
            "confidence": confidence,
            "prediction": prediction,
            "among": main[:, self.rows].argmax(1),
            "among5": topk_correct(main[:, self.rows], labels, 5),
            "label": labels,
            "agree": cls.argmax(1) == (cls if dist is None else dist).argmax(1),
        }
        for name, values in add.items():
            self.columns[name].append(values)

    def join(self, world: World) -> None:
        """Take in what the other processes collected."""
        if world.size == 1:
            return
        others = world.gather(self)
        self.columns = _joined([other.columns for other in others])
        self.top1 = _joined([other.top1 for other in others])
        self.with_teacher = _joined([other.with_teacher for other in others])
        self.indices = [index for other in others for index in other.indices]
        self.unreadable = sorted(bad for other in others for bad in other.unreadable)
        found = next((other for other in others if other.indices), self)  # one with pictures knows the model's shape
        self.one_head, self.subset = found.one_head, found.subset

    def result(self, seconds: float) -> Evaluation:
        order = sorted(range(len(self.indices)), key=self.indices.__getitem__)  # as one process has it
        self.indices = [self.indices[n] for n in order]
        column = {name: torch.cat(values)[order] for name, values in self.columns.items()}
        labels = column["label"]
        top1 = {rule: torch.cat(values)[order] for rule, values in self.top1.items()}
        correct = top1["cls" if self.one_head else self.head]
        return Evaluation(
            images=len(self.indices),
            top1=_percent(correct),
            top5=_percent(column["top5"]),
            loss=float(column["loss"].double().mean()),
            ece=expected_calibration_error(column["confidence"], correct),
            heads=None if self.one_head else {rule: _percent(values) for rule, values in top1.items()},
            top1_among=_percent(column["among"] == labels) if self.subset else None,
            top5_among=_percent(column["among5"]) if self.subset else None,
            agreement=None if self.one_head else _percent(column["agree"]),
            teacher_agreement={rule: _percent(torch.cat(a)) for rule, a in self.with_teacher.items()} or None,
            images_per_second=len(self.indices) / max(seconds, 1e-9),
            predictions=column["prediction"],
            among=column["among"],
            confidences=column["confidence"],
            correct=correct,
            indices=self.indices,
            unreadable=self.unreadable,
        )


def _joined(dictionaries: list[dict[str, list[Tensor]]]) -> dict[str, list[Tensor]]:
    names = list(dict.fromkeys(name for d in dictionaries for name in d))
    return {name: [value for d in dictionaries for value in d.get(name, [])] for name in names}


def _percent(correct: Tensor) -> float:
    return 100.0 * float(correct.double().mean())

"""Accumulates the outputs of an evaluation: some sixty bytes an image, and logits up to a limit.

What is computed of a batch stays on its device until the end of the pass; logits are read meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from deitctl.device import Device, choose_device
from deitctl.distributed import World
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.intervals import percent_interval
from deitctl.evaluation.late_reads import LateReads
from deitctl.evaluation.metrics import (
    expected_calibration_error,
    mean_percent,
    score_evenly,
    topk_correct,
)
from deitctl.evaluation.result import EvalResult
from deitctl.models.heads import fuse_heads
from deitctl.models.model_config import HEADS
from deitctl.models.vit import HeadLogits

# Logits stored at most: 64 MiB, or 16,777 images with 1,000 classes, which fit a temperature.
MAX_LOGITS = 2**24
TOPK = 5
LOGITS = ("logits/0", "logits/1")
"""Columns of stored logits."""


class ImageColumns:
    """What is known of the images of one model so far, a column per quantity."""

    def __init__(self, eval_model: EvalModel, device: Device | None = None) -> None:
        """Start empty.

        Args:
            eval_model: the model whose outputs are added.
            device: where its outputs are; None: the CPU.
        """
        self.eval_model, self.device = eval_model, device or choose_device("cpu", "fp32")
        self.rows = torch.tensor(eval_model.rows)
        self.columns: dict[str, list[Tensor]] = {}
        """On the host."""
        self.columns_on_device: dict[str, list[Tensor]] = {}
        self.read_errors: list[tuple[int, str]] = []
        self.num_heads, self.num_logits = 0, 0

    def append(self, columns: Mapping[str, Tensor], reads: LateReads | None = None) -> None:
        """Add values of some images to their columns; logits on a device go through `reads`."""
        for name, values in columns.items():
            if values.device.type == "cpu":
                # A copy of what is page-locked, which the loaders' next batches take.
                self._append(name, values.clone() if self.device.pins_memory else values)
            elif name in LOGITS and reads is not None:
                reads.add(self.device, values, partial(self._append, name))
            else:
                self.columns_on_device.setdefault(name, []).append(values)

    def _append(self, name: str, values: Tensor) -> None:
        self.columns.setdefault(name, []).append(values)

    def read(self) -> None:
        """Bring the columns to the host, at the end of the pass: the first wait for the device."""
        reads = {
            name: self.device.read_later(torch.cat(values))
            for name, values in self.columns_on_device.items()
        }
        self.columns_on_device = {}
        for name, read in reads.items():
            self._append(name, read.get())

    @cached_property
    def device_rows(self) -> Tensor:
        """For each class of the data its index in the logits, on the device."""
        return self.to_device(self.rows)

    def to_device(self, values: Tensor) -> Tensor:
        """Move values to the device of the outputs, without waiting."""
        if self.device.is_synchronous:
            return values
        return self.device.to_device(self.device.pin(values))

    @property
    def rules(self) -> tuple[str, ...]:
        """The head rules that are scored."""
        return HEADS if self.num_heads == 2 else (self.head,)

    @property
    def head(self) -> str:
        """The head rule of the predictions."""
        has_rule = self.num_heads == 2 or self.eval_model.is_exported
        return self.eval_model.head if has_rule else "cls"

    @property
    def is_empty(self) -> bool:
        """Whether no image was added."""
        return not self.columns

    def gather(self, world: World) -> None:
        """Take over what the other processes accumulated."""
        if world.size == 1:
            return
        columns = {name: [torch.cat(values)] for name, values in self.columns.items()}
        gathered = world.all_gather_object(
            (columns, self.read_errors, self.num_heads, self.num_logits)
        )
        self.columns = {}
        for columns, *_ in gathered:
            for name, values in columns.items():
                self.columns.setdefault(name, []).extend(values)
        self.read_errors = sorted(error for _, errors, *_ in gathered for error in errors)
        # A process without a readable image knows neither.
        self.num_heads = max(heads for *_, heads, _ in gathered)
        self.num_logits = max(logits for *_, logits in gathered)


class EvalAccumulator(ImageColumns):
    """The images of one model so far, of one label each."""

    def __init__(
        self,
        eval_model: EvalModel,
        num_images: int,
        *,
        max_logits: int = 0,
        device: Device | None = None,
    ) -> None:
        """Start empty.

        Args:
            eval_model: the model whose outputs are added.
            num_images: size of the dataset.
            max_logits: limit on the number of stored logits, over all images.
            device: where the model's outputs are; None: the CPU.
        """
        super().__init__(eval_model, device)
        self.num_images, self.max_logits = num_images, max_logits
        self._stores_logits: Tensor | None = None

    @cached_property
    def _to_data_class(self) -> Tensor:
        """For each of the model's classes that of the data, on the device; above them all for others."""
        num_classes = len(self.rows)
        classes = torch.full((self.num_logits,), num_classes)
        return self.to_device(classes.scatter(0, self.rows, torch.arange(num_classes)))

    @cached_property
    def _teacher_preds(self) -> Tensor | None:
        """See `EvalModel.teacher_preds`, on the device."""
        preds = self.eval_model.teacher_preds
        return None if preds is None else self.to_device(preds)

    def score(
        self, cls: Tensor, dist: Tensor | None, labels: Tensor, indices: Tensor
    ) -> dict[str, Tensor]:
        """Return what is added to the columns for some images, without waiting for the device.

        Args:
            cls: logits of the class head, float32 [B,K] on the device.
            dist: likewise of the distillation head; None for a model of one head.
            labels: of the images, [B] on the host.
            indices: of the images in the dataset, [B] on the host.
        """
        heads = HeadLogits(cls, dist)
        self.num_heads, self.num_logits = (1 if dist is None else 2), cls.shape[1]
        own_labels = self.to_device(labels)
        targets = self.device_rows[own_labels]
        fused = {rule: cls if dist is None else fuse_heads(heads, rule) for rule in self.rules}
        scaled = fused[self.head] / self.eval_model.temperature
        # argmax and a stable sort, not topk, which takes any of equal logits: the lowest class
        # index wins everywhere.
        preds = {rule: logits.argmax(1) for rule, logits in fused.items()}
        topk = fused[self.head].sort(dim=1, descending=True, stable=True).indices[:, :TOPK]
        among_classes = scaled.index_select(1, self.device_rows)
        columns = {
            "index": indices,
            "label": labels,
            "topk_preds": topk.int(),
            "data_preds": self._to_data_class[topk[:, 0]],
            "loss": F.cross_entropy(scaled, targets, reduction="none"),
            "confidence": scaled.softmax(1).amax(1),
            "preds_among_classes": among_classes.argmax(1),
            "top5_among_classes": topk_correct(among_classes, own_labels, TOPK),
        }
        columns |= {f"correct/{rule}": pred == targets for rule, pred in preds.items()}
        if dist is not None:
            columns["heads_differ"] = preds["cls"] != preds["dist"]
        if self._teacher_preds is not None:
            teacher = self._teacher_preds[self.to_device(indices)]
            columns["has_teacher"] = teacher >= 0
            columns |= {
                f"as_teacher/{rule}": logits.index_select(1, self.device_rows).argmax(1) == teacher
                for rule, logits in fused.items()
            }
        if self.max_logits:
            stored = self.to_device(self._select_logits()[indices].nonzero()[:, 0])
            columns |= {
                name: logits.index_select(0, stored)
                for name, logits in zip(LOGITS, heads, strict=True)
                if logits is not None
            }
        return columns

    def _select_logits(self) -> Tensor:
        """Return whether each image of the dataset stores its logits, [num_images]."""
        if self._stores_logits is None:
            limit = max(1, self.max_logits // (self.num_logits * self.num_heads))
            # A random sample, as the data may be sorted by class; drawn alike in every process.
            draw = torch.Generator().manual_seed(0)
            self._stores_logits = torch.randperm(self.num_images, generator=draw) < limit
        return self._stores_logits

    def compute(self, seconds: float, name_of: Callable[[int], str] = str) -> EvalResult:
        """Return the metrics, and the results of all images in the order of the dataset.

        Args:
            seconds: duration of the pass.
            name_of: returns the name of an image by its index in the dataset.
        """
        column, logits, logit_rows = self._take_columns()
        correct_by_head = {rule: column[f"correct/{rule}"] for rule in self.rules}
        correct, targets = correct_by_head[self.head], self.rows[column["label"]]
        # Of five classes or fewer every image is right, so that the figure would say nothing.
        correct_top5 = (column["topk_preds"] == targets[:, None]).any(1)
        has_top5, has_heads = self.num_logits > TOPK, self.num_heads == 2
        top1_among_classes, top5_among_classes = self._score_among_classes(column)
        balanced_accuracy, macro_f1 = score_evenly(
            column["label"].numpy(), column["data_preds"].numpy(), len(self.rows)
        )
        read_errors = [(name_of(index), reason) for index, reason in self.read_errors]
        return EvalResult(
            num_images=len(targets),
            unreadable=[name for name, _ in read_errors],
            top1=mean_percent(correct),
            top1_interval=percent_interval(correct),
            top5=mean_percent(correct_top5) if has_top5 else None,
            top5_interval=percent_interval(correct_top5) if has_top5 else None,
            loss=float(column["loss"].double().mean()),
            ece=expected_calibration_error(column["confidence"], correct),
            balanced_accuracy=100 * balanced_accuracy,
            macro_f1=100 * macro_f1,
            num_classes=len(self.rows),
            top1_among_classes=top1_among_classes,
            top5_among_classes=top5_among_classes,
            head=self.head,
            heads={rule: mean_percent(x) for rule, x in correct_by_head.items()}
            if has_heads
            else None,
            head_intervals={rule: percent_interval(x) for rule, x in correct_by_head.items()}
            if has_heads
            else None,
            head_agreement=100 - mean_percent(column["heads_differ"]) if has_heads else None,
            teacher_agreement=self._score_teacher(column),
            temperature=self.eval_model.temperature,
            images_per_second=len(targets) / max(seconds, 1e-9),
            read_errors=read_errors,
            indices=column["index"],
            labels=column["label"],
            targets=targets,
            topk_preds=column["topk_preds"],
            data_preds=column["data_preds"],
            preds_among_classes=column["preds_among_classes"],
            confidences=column["confidence"],
            losses=column["loss"],
            correct_by_head=correct_by_head,
            heads_differ=column.get("heads_differ"),
            logits=logits,
            logit_rows=logit_rows,
        )

    def _take_columns(self) -> tuple[dict[str, Tensor], HeadLogits | None, Tensor]:
        """Return the columns of all images in the order of the dataset, the stored logits, and of which of
        these images they are, [L]; the accumulator keeps no logits."""
        # Popped first: the logits are concatenated once, not with the columns and again in order.
        logits = [torch.cat(self.columns.pop(name)) for name in LOGITS if name in self.columns]
        column = {name: torch.cat(values) for name, values in self.columns.items()}
        arrival = column["index"]
        order = arrival.argsort()
        column = {name: values[order] for name, values in column.items()}
        if not logits:
            return column, None, torch.zeros(0).long()
        has_logits = self._select_logits()
        logit_order = arrival[has_logits[arrival]].argsort()
        logits = [values[logit_order] for values in logits]
        heads = HeadLogits(logits[0], logits[1] if len(logits) == 2 else None)
        return column, heads, torch.nonzero(has_logits[arrival[order]])[:, 0]

    def _score_among_classes(
        self, column: Mapping[str, Tensor]
    ) -> tuple[float | None, float | None]:
        """Return top-1 and top-5 among the data's classes, percent; None where the model has no others, or
        the data five or fewer."""
        if self.num_logits <= len(self.rows):
            return None, None
        top1 = mean_percent(column["preds_among_classes"] == column["label"])
        has_top5 = len(self.rows) > TOPK
        return top1, mean_percent(column["top5_among_classes"]) if has_top5 else None

    def _score_teacher(self, column: Mapping[str, Tensor]) -> dict[str, float] | None:
        """Return the agreement of each head rule with the teacher, percent; None without one."""
        taught = column.get("has_teacher")
        if taught is None or not taught.any():
            return None
        return {rule: mean_percent(column[f"as_teacher/{rule}"][taught]) for rule in self.rules}

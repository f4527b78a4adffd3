"""Collects an evaluation batch by batch: some sixty bytes an image, and on request so many logits as memory has room for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from deitctl.data.eval_transform import Pixels
from deitctl.data.batch_transforms import normalize
from deitctl.distributed import World
from deitctl.evaluation.metrics import expected_calibration_error, percent, topk_correct
from deitctl.evaluation.result import Evaluation
from deitctl.models.heads import forward_heads, fuse_heads
from deitctl.models.model_config import HEADS, Preprocessing
from deitctl.models.vit import HeadLogits

MAX_KEPT = 2**24
"""Logits that are kept at most, 64 MiB, of 16,777 images with 1,000 classes: one temperature does not need more."""
BEST = 5


class ExportedNetwork(Protocol):
    """A network that an exported file holds, with its normalization and its head rule."""

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Answer images, uint8 [B,3,S,S]: joined logits [B,K], before the temperature."""


@dataclass(frozen=True, kw_only=True)
class EvalModel:
    """A model, and the way its answers are taken."""

    model: nn.Module | ExportedNetwork
    """On the device, in eval mode."""
    preprocessing: Preprocessing
    rows: tuple[int, ...]
    """For each class of the source, its logit."""
    head: str
    """The rule whose answer is the model's (see `fuse_heads`)."""
    temperature: float = 1.0
    """What the rule's logits are divided by."""
    teacher: Tensor | None = None
    """A teacher's class of each image of the source, [N], in the source's classes; -1 where it has none."""

    @property
    def is_joined(self) -> bool:
        """Whether the heads are joined inside, by the rule `head`, so that there is one answer and no other rule."""
        return not isinstance(self.model, nn.Module)

    def answer(self, pixels: Tensor) -> HeadLogits:
        """Return the logits of images, uint8 [B,3,S,S] on the device; joined ones as those of the class head."""
        if isinstance(self.model, nn.Module):
            return forward_heads(self.model, normalize(pixels, self.preprocessing))
        return HeadLogits(torch.from_numpy(self.model.logits(pixels.cpu().numpy())), None)


class EvalAccumulator:
    """What one contender answered so far."""

    def __init__(self, contender: EvalModel, num_images: int, *, room: int = 0) -> None:
        """Begin; of `images` images so many keep their logits that there are at most `room` numbers."""
        self.contender, self.num_images, self.room = contender, num_images, room
        self.rows = torch.tensor(contender.rows)
        self.columns: dict[str, list[Tensor]] = {}
        self.unreadable: list[tuple[int, str]] = []
        self.heads, self.classes = 0, 0
        self._kept: Tensor | None = None

    def add(self, cls: Tensor, dist: Tensor | None, labels: Tensor, indices: Tensor) -> None:
        """Take in the logits [B,K] of a batch, its labels [B] and its places in the source [B]."""
        logits = HeadLogits(cls, dist)
        self.heads, self.classes = (1 if dist is None else 2), cls.shape[1]
        targets = self.rows[labels]
        fused = (
            {self._head(): cls}
            if dist is None
            else {rule: fuse_heads(logits, rule) for rule in HEADS}
        )
        main = fused[self._head()] / self.contender.temperature
        first = {
            rule: scores.argmax(1) for rule, scores in fused.items()
        }  # of equal scores the first, everywhere
        inverse = torch.full((self.classes,), len(self.rows)).scatter(
            0, self.rows, torch.arange(len(self.rows))
        )
        best = fused[self._head()].sort(dim=1, descending=True, stable=True).indices[:, :BEST]
        columns = {
            "index": indices,
            "label": labels,
            "best": best.int(),
            "answer": inverse[best[:, 0]],
            "loss": F.cross_entropy(main, targets, reduction="none"),
            "confidence": main.softmax(1).amax(1),
            "among": main[:, self.rows].argmax(1),
            "top5 among": topk_correct(main[:, self.rows], labels, 5),
        }
        columns |= {f"correct by {rule}": answers == targets for rule, answers in first.items()}
        if dist is not None:
            columns["disagree"] = first["cls"] != first["dist"]
        if (teacher := self.contender.teacher) is not None:
            said = teacher[indices]
            columns["teacher spoke"] = said >= 0
            columns |= {
                f"as teacher by {rule}": s[:, self.rows].argmax(1) == said
                for rule, s in fused.items()
            }
        if self.room:
            kept = self._keeps()[indices]
            columns |= {f"logits {n}": x[kept] for n, x in enumerate(logits) if x is not None}
        for name, values in columns.items():
            self.columns.setdefault(name, []).append(values)

    def _rules(self) -> tuple[str, ...]:
        return HEADS if self.heads == 2 else (self._head(),)

    def _head(self) -> str:
        return self.contender.head if self.heads == 2 or self.contender.is_joined else "cls"

    def _keeps(self) -> Tensor:
        """Say of each image of the source whether its logits are kept: drawn, whatever the order of the data."""
        if self._kept is None:
            most = max(1, self.room // (self.classes * self.heads))
            draw = torch.Generator().manual_seed(0)  # the same in every process
            self._kept = torch.randperm(self.num_images, generator=draw) < most
        return self._kept

    @property
    def empty(self) -> bool:
        return not self.columns

    def join(self, world: World) -> None:
        """Take in what the other processes collected."""
        if world.size == 1:
            return
        others = world.all_gather_object((self.columns, self.unreadable, self.heads, self.classes))
        self.columns = {}
        for columns, *_ in others:
            for name, values in columns.items():
                self.columns.setdefault(name, []).extend(values)
        self.unreadable = sorted(bad for _, unreadable, *_ in others for bad in unreadable)
        self.heads, self.classes = max(o[2] for o in others), max(o[3] for o in others)

    def result(self, seconds: float) -> Evaluation:
        """Return the averages, the images in the order in which one process has them."""
        logits = [
            torch.cat(self.columns.pop(n)) for n in ("logits 0", "logits 1") if n in self.columns
        ]
        column = {name: torch.cat(values) for name, values in self.columns.items()}
        seen = column["index"]  # the order in which logits were kept
        order = seen.argsort()
        if logits:
            kept = seen[self._keeps()[seen]].argsort()
            logits = [values[kept] for values in logits]
        column = {name: values[order] for name, values in column.items()}
        correct_by = {rule: column[f"correct by {rule}"] for rule in self._rules()}
        correct, subset = correct_by[self._head()], self.classes > len(self.rows)
        targets = self.rows[column["label"]]
        spoke = column.get("teacher spoke", torch.zeros(0, dtype=torch.bool))
        return Evaluation(
            num_images=len(order),
            top1=percent(correct),
            top5=percent((column["best"] == targets[:, None]).any(1)),
            loss=float(column["loss"].double().mean()),
            ece=expected_calibration_error(column["confidence"], correct),
            heads={rule: percent(values) for rule, values in correct_by.items()}
            if self.heads == 2
            else None,
            top1_among=percent(column["among"] == column["label"]) if subset else None,
            top5_among=percent(column["top5 among"]) if subset else None,
            agreement=100 - percent(column["disagree"]) if self.heads == 2 else None,
            teacher_agreement={
                rule: percent(column[f"as teacher by {rule}"][spoke]) for rule in self._rules()
            }
            if spoke.any()
            else None,
            images_per_second=len(order) / max(seconds, 1e-9),
            indices=column["index"],
            labels=column["label"],
            targets=targets,
            best=column["best"],
            answers=column["answer"],
            among=column["among"],
            confidences=column["confidence"],
            losses=column["loss"],
            correct_by=correct_by,
            head=self._head(),
            disagree=column.get("disagree"),
            logits=HeadLogits(logits[0], logits[1] if len(logits) > 1 else None)
            if logits
            else None,
            kept=torch.nonzero(self._keeps()[column["index"]])[:, 0]
            if logits
            else torch.zeros(0).long(),
            unreadable=self.unreadable,
        )

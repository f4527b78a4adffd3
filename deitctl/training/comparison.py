"""Compares a training with the record of another, value by value and to the last bit."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import deitctl
from deitctl.errors import ConfigError
from deitctl.records import to_json
from deitctl.settings import flatten

if TYPE_CHECKING:
    from deitctl.training.recorded_run import RecordedRun
    from deitctl.training.trainer import Trainer

PLACE = ("kind", "step", "epoch")
MISSING = "missing"
TIMES = ("seconds", "images_per_second")
"""What no two runs have in common."""
OF_RESULT = (*TIMES, "run", "schema_version", "teacher.folder")
"""The same of a result."""


class EnoughCompared(BaseException):
    """A repetition has gone far enough. No `Exception`: it is no failure, and nothing may recover from it."""


@dataclass(frozen=True, kw_only=True)
class Parting:
    """A value in which two trainings differ."""

    where: str
    """`step`, `epoch`, `weights` or `result`."""
    epoch: int
    """Epoch, from 1, that the value is of."""
    step: int | None
    """Step, from 0, that it is of; null for what is not of a step."""
    name: str
    """Metric, or tensor with the weights that it is of."""
    recorded: float | str | None
    """In the run; null where JSON has no number for it, and for a tensor of more values than one."""
    reproduced: float | str | None
    """In its repetition; null likewise."""
    difference: float | None
    """Size of the difference, of a tensor the largest; null where it is no number."""
    num_different: int
    """Values that differ: of a metric 1."""
    num_values: int
    """Values that there are."""

    @property
    def place(self) -> str:
        """Where it is, in words."""
        if self.step is not None:
            return f"step {self.step} (epoch {self.epoch})"
        what = {"epoch": "metrics", "weights": "weights", "result": "result"}[self.where]
        return f"the {what} of epoch {self.epoch}"


class Comparison:
    """Compares a training with a run while it goes on."""

    def __init__(
        self,
        recorded: RecordedRun,
        *,
        to_end: bool = False,
        last_step: int | None = None,
        last_epoch: int | None = None,
    ) -> None:
        """Begin a comparison.

        Args:
            recorded: the run.
            to_end: whether it goes on after the first parting.
            last_step: steps after which it ends; None: no such end.
            last_epoch: the same in epochs.
        """
        self.recorded, self.to_end = recorded, to_end
        self.last_step, self.last_epoch = last_step, last_epoch
        self.partings: list[Parting] = []
        self.num_steps = self.num_epochs = self.num_tensors = 0
        """Logged steps, epochs and tensors that were compared."""
        self.has_begun = self.has_result = False
        versions = {session.deitctl for session in recorded.sessions}
        self.allow_missing = versions != {deitctl.__version__}
        """Whether a value may be on one side alone, because another version wrote the run."""
        self.is_whole = False
        """Whether all that the run has was compared."""
        self.equal_steps = 0
        """Steps up to which all was equal."""

    def attach(self, trainer: Trainer) -> None:
        """Compare each record of a trainer when it is logged, and its weights when the run has them."""
        self.trainer = trainer
        self._require_records()
        self.has_begun = True
        trainer.run.on_record = self.compare_record
        trainer.on_step_boundary = self.compare_state

    def _require_records(self) -> None:
        """Raise `ConfigError` where the run has nothing of the beginning that is to be compared."""
        recorded, per_epoch = self.recorded, self.trainer.context.steps_per_epoch
        if self.last_step is not None:
            count, unit, end = self.last_step, "steps", (self.last_step, False)
        elif self.last_epoch is not None:
            count, unit, end = self.last_epoch, "epochs", (self.last_epoch * per_epoch, True)
        else:
            return
        # Steps done, and whether the epoch that they end is too.
        moments = [(step + 1, False) for step in recorded.steps]
        moments += [(epoch * per_epoch, True) for epoch in recorded.epochs]
        for saved in recorded.weights:
            done = saved.epoch * per_epoch
            step = done if saved.step is None else saved.step
            moments.append((step, step == done))
        if not any(moment <= end for moment in moments):
            raise ConfigError(
                f"{recorded.root} has nothing recorded of its first {count} {unit}.",
                f"Compare more of it: leave out --{unit}.",
            )

    def compare_record(self, record: Mapping[str, Any]) -> None:
        """Compare a record of metrics.jsonl with the run's of the same step or epoch."""
        is_step = record["kind"] == "step"
        earlier = (
            self.recorded.steps.get(record["step"])
            if is_step
            else self.recorded.epochs.get(record["epoch"])
        )
        if earlier is None:
            return
        self.num_steps, self.num_epochs = self.num_steps + is_step, self.num_epochs + (not is_step)
        self._add(compare_records(earlier, record, allow_missing=self.allow_missing))
        if not self.partings:
            self.equal_steps = int(record["step"]) + is_step

    def compare_state(self) -> None:
        """Compare the weights that the run has of this moment.

        Raises:
            EnoughCompared: everything is, or the first parting has come.
        """
        progress = self.trainer.state.progress
        epoch_end = progress.epoch * self.trainer.context.steps_per_epoch
        for saved in self.recorded.weights:
            step = epoch_end if saved.step is None else saved.step
            is_wanted = self.to_end or not self.partings
            if is_wanted and (saved.epoch, step) == (progress.epoch, progress.step):
                tensors = self.trainer.state.weights(saved.kind)
                self.num_tensors += len(tensors)
                epoch = progress.epoch + (progress.step > epoch_end)
                self._add(compare_tensors(saved.tensors, tensors, what=saved.what, epoch=epoch))
        if self.is_over() or (self.partings and not self.to_end):
            raise EnoughCompared

    def is_over(self) -> bool:
        """Return whether the training has come to the end of what is to be compared."""
        progress, last, end = self.trainer.state.progress, self.recorded, self.last_epoch
        if last.result is None:  # ends where its record does
            self.is_whole = progress.step >= last.last_step and progress.epoch >= last.last_epoch
        if self.last_step is not None and progress.step >= self.last_step:
            return True
        # The last epoch is followed by the evaluation that a finished run has.
        is_last = progress.epoch >= self.trainer.context.recipe.epochs or progress.stopped
        return self.is_whole or (end is not None and progress.epoch >= end and not is_last)

    def compare_result(self, result: Any) -> None:
        """Compare what the run ended with."""
        if self.recorded.result is not None:
            self.has_result = bool(self.recorded.result)
            self._add(
                compare_results(
                    self.recorded.result,
                    result,
                    result.epochs,
                    allow_missing=self.allow_missing,
                )
            )
        self.is_whole = True

    def _add(self, partings: Iterable[Parting]) -> None:
        """Keep partings, without `to_end` those of the first record alone."""
        if self.to_end or not self.partings:
            self.partings.extend(partings)


def compare_records(
    recorded: Mapping[str, Any], reproduced: Mapping[str, Any], *, allow_missing: bool = False
) -> Iterator[Parting]:
    """Yield the values in which two records of metrics.jsonl differ.

    Args:
        recorded: of the run.
        reproduced: of its repetition.
        allow_missing: whether values that only one has, as of another version, are passed over.
    """
    was, now = flatten(dict(recorded)), flatten(to_json(dict(reproduced)))
    where = str(now["kind"])
    step = now.get("step") if where == "step" else None
    for name, *both in _list_different(was, now, (*PLACE, *TIMES), allow_missing):
        yield _part(where, int(now["epoch"]), step, name, *both)


def compare_results(
    recorded: Mapping[str, Any], reproduced: Any, epoch: int, *, allow_missing: bool = False
) -> Iterator[Parting]:
    """Yield the values in which two results of runs differ, as `compare_records`."""
    was, now = flatten(dict(recorded)), flatten(to_json(reproduced))
    for name, *both in _list_different(was, now, OF_RESULT, allow_missing):
        yield _part("result", epoch, None, name, *both)


def _list_different(
    was: Mapping[str, Any], now: Mapping[str, Any], without: Container[str], allow_missing: bool
) -> Iterator[tuple[str, Any, Any]]:
    """Yield name and both values of what differs; `missing` is the value of a side without the name."""
    for name in dict.fromkeys((*now, *was)):
        is_missing = name not in was or name not in now
        if name in without or (is_missing and allow_missing):
            continue
        both = was.get(name, MISSING), now.get(name, MISSING)
        if is_missing or not _is_same(*both):
            yield name, *both


def compare_tensors(
    recorded: Mapping[str, Tensor], reproduced: Mapping[str, Tensor], *, what: str, epoch: int
) -> Iterator[Parting]:
    """Yield the tensors in which two sets of weights differ, in the order of the model.

    Args:
        recorded: of the run, on the CPU.
        reproduced: of its repetition, on any device.
        what: the weights in words.
        epoch: that they are of, counted from 1.
    """
    for name in dict.fromkeys((*reproduced, *recorded)):
        label = f"{what}: {name}"
        if name not in recorded or name not in reproduced:
            here, there = (
                "present" if name in side else MISSING for side in (recorded, reproduced)
            )
            yield _part("weights", epoch, None, label, here, there)
            continue
        was, now = recorded[name], reproduced[name].detach().cpu()
        if was.shape != now.shape or was.dtype != now.dtype:
            yield _part("weights", epoch, None, label, _describe(was), _describe(now))
        elif num_different := _count_different(was, now):
            gap = (was.double() - now.double()).abs().max()
            is_single = was.numel() == 1
            yield Parting(
                where="weights",
                epoch=epoch,
                step=None,
                name=label,
                recorded=float(was) if is_single else None,
                reproduced=float(now) if is_single else None,
                difference=float(gap),
                num_different=num_different,
                num_values=was.numel(),
            )


def _is_same(one: Any, other: Any) -> bool:
    # 1 == True, and 0.0 == -0.0
    return type(one) is type(other) and repr(one) == repr(other)


def _part(where: str, epoch: int, step: int | None, name: str, was: Any, now: Any) -> Parting:
    both = (was, now)
    are_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in both)
    was, now = (v if v is None or isinstance(v, int | float) else str(v) for v in both)
    return Parting(
        where=where,
        epoch=epoch,
        step=step,
        name=name,
        recorded=was,
        reproduced=now,
        difference=abs(was - now) if are_numbers else None,
        num_different=1,
        num_values=1,
    )


def _count_different(one: Tensor, other: Tensor) -> int:
    """Return how many values of two tensors of one shape and type have other bits."""
    size = one.element_size()
    bits = [t.contiguous().reshape(-1).view(torch.uint8).reshape(-1, size) for t in (one, other)]
    return 0 if torch.equal(*bits) else int((bits[0] != bits[1]).any(1).sum())


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

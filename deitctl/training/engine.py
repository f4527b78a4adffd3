"""How a step runs in one process or in several: who computes which images, and how their gradients become one.

A step asks its engine and knows nothing of processes; `step.py` has the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from deitctl.distillation.targets import TeacherTargets
from deitctl.distributed import Patience, Room
from deitctl.training.context import TrainContext
from deitctl.training.device_batch import DeviceBatch
from deitctl.training.freezing import is_batch_norm
from deitctl.training.state import TrainState
from deitctl.training.student_losses import StudentLosses


class Share(NamedTuple):
    """What each process says of its part of a batch before the forward pass."""

    num_images: int
    num_unreadable: int
    signum: int
    """The signal by which it is to stop, 0 for none."""
    save_requested: bool
    has_diverged: bool
    """Whether it has read a step that the run must not continue with."""

    @staticmethod
    def of(numbers: Sequence[int]) -> Share:
        """Return the share that a process sent as integers."""
        num_images, num_unreadable, signum, save_requested, has_diverged = numbers
        return Share(num_images, num_unreadable, signum, bool(save_requested), bool(has_diverged))


class Outcome(IntEnum):
    """How an attempt at a step ended, from the best to the worst."""

    DONE = 0
    BROKEN = 1
    """Gradients that were expected did not come: the batch is taken again, otherwise."""
    OUT_OF_MEMORY = 2


class Engine(Protocol):
    """Runs the forward and backward passes of a step, and makes its gradients those of the global batch."""

    context: TrainContext
    state: TrainState

    def exchange(self, share: Share, batch: DeviceBatch, patience: Patience) -> list[Share]:
        """Return the share of every process, by rank."""

    def begin(self) -> None:
        """Prepare an attempt at the step; may run out of memory."""

    def forward(self, batch: DeviceBatch, cached: TeacherTargets | None) -> dict[str, Tensor]:
        """Return the losses of a micro-batch, see `StudentLosses`."""

    def accumulate(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Return a context for forward and backward pass of a micro-batch, the last one of the step or not."""

    def prepare_sum(self, losses: dict[str, Tensor]) -> None:
        """Allocate what `reduce` needs; may run out of memory, as all before it."""

    def agree(self, *, out_of_memory: bool, patience: Patience) -> Outcome:
        """Return how the attempt ended in the process where it went worst."""

    def recover(self) -> None:
        """Be ready to take the batch again after an attempt that was not done in every process."""

    def reduce(self, losses: dict[str, Tensor], shares: Sequence[Share]) -> None:
        """Make gradients, `losses` and batch statistics those of the global batch."""

    def compute_grad_norm(self) -> Tensor:
        """Return the norm of all gradients."""


class SingleProcess:
    """The engine of a run of one process, and what others have in common with it."""

    def __init__(self, context: TrainContext, state: TrainState) -> None:
        self.context, self.state = context, state
        self.losses = StudentLosses(context, state)

    def exchange(self, share: Share, batch: DeviceBatch, patience: Patience) -> list[Share]:
        """Return the one share that there is."""
        return [share]

    def begin(self) -> None:
        """Do nothing: there is nothing to prepare."""

    def forward(self, batch: DeviceBatch, cached: TeacherTargets | None) -> dict[str, Tensor]:
        """Return the losses of a micro-batch."""
        losses: dict[str, Tensor] = self.losses(batch, cached)
        return losses

    def accumulate(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Return a context that does nothing: gradients add up by themselves."""
        return nullcontext()

    def prepare_sum(self, losses: dict[str, Tensor]) -> None:
        """Do nothing: there is nothing to sum."""

    def agree(self, *, out_of_memory: bool, patience: Patience) -> Outcome:
        """Return how the attempt of this process ended."""
        return Outcome.OUT_OF_MEMORY if out_of_memory else Outcome.DONE

    def recover(self) -> None:
        """Do nothing: a backward pass that broke off leaves gradients alone, which the step drops."""

    def reduce(self, losses: dict[str, Tensor], shares: Sequence[Share]) -> None:
        """Do nothing: they are those of the global batch."""

    def compute_grad_norm(self) -> Tensor:
        """Return the norm of all gradients."""
        grads = [p.grad for _, p in self.state.named_parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads)


class SummedAfterwards(SingleProcess):
    """Several processes whose gradients are summed after the backward pass.

    What a step of `Overlapped` falls back to, and what it is compared with.
    """

    _room: Room | None = None
    """Memory for the sum of this step."""

    def exchange(self, share: Share, batch: DeviceBatch, patience: Patience) -> list[Share]:
        """Return the share of every process, by rank."""
        gathered = self.context.world.all_gather_ints([int(number) for number in share], patience)
        return [Share.of(numbers) for numbers in gathered]

    def prepare_sum(self, losses: dict[str, Tensor]) -> None:
        """Allocate what the sum of gradients and losses is copied to, unless this process has no image."""
        self._room = None
        if losses:
            values = torch.empty(len(losses), device=self.context.device.torch_device)
            self._room = self.context.world.reserve([*self._list_grads(), values])

    def agree(self, *, out_of_memory: bool, patience: Patience) -> Outcome:
        """Return how the attempt ended in the process where it went worst."""
        own = super().agree(out_of_memory=out_of_memory, patience=patience)
        gathered = self.context.world.all_gather_ints([own], patience)
        return Outcome(max(number for (number,) in gathered))

    def reduce(self, losses: dict[str, Tensor], shares: Sequence[Share]) -> None:
        """Sum gradients and losses over the processes, and average the statistics of batch norms.

        Args:
            losses: of this process; replaced by those of the global batch.
            shares: of each process.
        """
        named = list(self.state.named_parameters())
        if any(share.num_images == 0 for share in shares):
            # A process without an image has no gradients, and must still join the sum.
            self._join_without_images(losses, named)
            self._room = None  # there may be other gradients now
        self._reduce_losses(losses, self._list_grads(), self._room)
        self._room = None
        self._average_batch_stats()

    def _list_grads(self) -> list[Tensor]:
        return [p.grad for _, p in self.state.named_parameters() if p.grad is not None]

    def _reduce_losses(
        self, losses: dict[str, Tensor], grads: Sequence[Tensor] = (), room: Room | None = None
    ) -> None:
        """Sum losses and gradients."""
        order = sorted(losses)
        values = torch.stack([losses[name].float() for name in order])
        self.context.world.all_reduce_([*grads, values], room)
        losses.update(zip(order, values, strict=True))

    def _average_batch_stats(self) -> None:
        world = self.context.world
        batch_norms = [m for m in self.state.model.modules() if is_batch_norm(m) and m.training]
        if stats := [b for m in batch_norms for b in m.buffers() if b.is_floating_point()]:
            world.all_reduce_(stats)
            torch._foreach_div_(stats, world.size)

    def _join_without_images(
        self, losses: dict[str, Tensor], named: Sequence[tuple[str, torch.nn.Parameter]]
    ) -> None:
        world = self.context.world
        with_grad = [name for name, p in named if p.grad is not None]
        trained = {name for names in world.all_gather_object(with_grad) for name in names}
        for name, parameter in named:
            if name in trained and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        # The longest list of names is that of a process with images.
        for name in max(world.all_gather_object(list(losses)), key=len):
            losses.setdefault(name, torch.zeros((), device=self.context.device.torch_device))


def build_engine(context: TrainContext, state: TrainState) -> Engine:
    """Return the engine of a run."""
    if context.compiler is not None and context.compiler.uses_cuda_graphs:
        from deitctl.training.graphed_engine import Graphed  # which builds on this module, as below

        return Graphed(context, state)
    if context.world.size == 1:
        return SingleProcess(context, state)
    if state.sharding is not None:
        from deitctl.training.fsdp_engine import Sharded  # which builds on this module

        return Sharded(context, state)
    from deitctl.training.ddp_engine import Overlapped  # which builds on this module

    return Overlapped(context, state)


def add_losses(sums: dict[str, Tensor], losses: Mapping[str, Tensor], weight: float) -> None:
    """Add the losses of a micro-batch to those of a batch, by its share of the images."""
    for name, value in losses.items():
        value = value.detach() * weight
        sums[name] = sums[name] + value if name in sums else value

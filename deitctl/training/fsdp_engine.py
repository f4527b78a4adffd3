"""Several processes that each hold a part of the weights, their gradients and moments, by FSDP2's `fully_shard`.

A block's weights are gathered before its passes and dropped behind them. So every process must run as many passes
as the others; one that has fewer micro-batches runs passes of weight zero first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from deitctl.distributed import Patience, World
from deitctl.errors import ConfigError, DeitctlError
from deitctl.models.vit import VisionTransformer
from deitctl.training.context import TrainContext
from deitctl.training.device_batch import DeviceBatch
from deitctl.training.engine import Outcome, Share, SummedAfterwards
from deitctl.training.state import TrainState


def shard_model(model: VisionTransformer, world: World, device_type: str) -> None:
    """Divide a model's parameters among the processes, in place; before its optimizer is built."""
    mesh = init_device_mesh(device_type, (world.size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are weighted by the images of all processes: gradients are summed, not averaged.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


class Sharded(SummedAfterwards):
    """Sums each block's gradients into the processes that hold them, in a step's last micro-batch."""

    def __init__(self, context: TrainContext, state: TrainState) -> None:
        """Train `state`, whose model `shard_model` has divided.

        Raises:
            ConfigError: the model is not divided, or features are distilled.
        """
        super().__init__(context, state)
        if not isinstance(state.model, FSDPModule):
            raise ConfigError("The model is not divided among the processes.")
        if state.projector is not None:
            raise ConfigError("Features cannot be distilled into a model that is divided.")
        self._model = state.model
        self._images = torch.empty(0)
        self._num_empty = self._num_own = 0
        """Passes of weight zero, and passes of this process's images, in this step."""

    def exchange(self, share: Share, batch: DeviceBatch, patience: Patience) -> list[Share]:
        """Return the share of every process, and agree on the number of passes."""
        size = self.context.micro_batch_size(self.state)
        self._num_own = len(list(batch.split(size)))
        numbers = [*map(int, share), self._num_own]
        gathered = self.context.world.all_gather_ints(numbers, patience)
        self._num_empty = max(own for *_, own in gathered) - self._num_own
        self._images = batch.images
        return [Share.of(own) for *own, _ in gathered]

    def begin(self) -> None:
        """Run the passes that this process has fewer of than others."""
        for number in range(1, self._num_empty + 1):
            is_last = not self._num_own and number == self._num_empty
            with self.accumulate(is_last=is_last):
                self._run_empty_pass()

    def _run_empty_pass(self) -> None:
        channels = self.context.preprocessing.in_chans
        shape = (1, channels, *self._images.shape[-2:])
        images = torch.zeros(shape, device=self.context.device.torch_device)
        with self.context.device.autocast():
            outputs = self.state.model(images)
        total = sum(o.float().sum() for o in outputs if isinstance(o, Tensor))
        (total * 0.0).backward()  # type: ignore[union-attr, no-untyped-call]

    @contextmanager
    def accumulate(self, *, is_last: bool) -> Iterator[None]:
        """Sum gradients over the processes in the last micro-batch alone."""
        self._model.set_requires_gradient_sync(is_last)
        yield

    def agree(self, *, out_of_memory: bool, patience: Patience) -> Outcome:
        """Return that the attempt went well.

        Raises:
            DeitctlError: memory ran out. Others wait in the middle of a pass, so the batch cannot be
            taken again.
        """
        if out_of_memory:
            raise DeitctlError(
                "Memory runs out in a model that is divided among processes.",
                "Resume with a smaller micro-batch.",
            )
        return Outcome.DONE

    def reduce(self, losses: dict[str, Tensor], shares: Sequence[Share]) -> None:
        """Sum losses over the processes; gradients are summed by then."""
        if any(share.num_images == 0 for share in shares):
            for name in max(self.context.world.all_gather_object(list(losses)), key=len):
                losses.setdefault(name, torch.zeros((), device=self.context.device.torch_device))
        self._reduce_losses(losses)
        self._average_batch_stats()

    def compute_grad_norm(self) -> Tensor:
        """Return the norm of all gradients."""
        norm = super().compute_grad_norm()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

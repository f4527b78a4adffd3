"""Several processes that each hold a part of the weights, their gradients and moments, by FSDP2's `fully_shard`.

A block's weights are gathered before its passes and dropped behind them. So every process must run as many passes
as the others; one that has fewer micro-batches runs passes of weight zero. Gradients are divided after every
micro-batch, so that no process ever holds all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from deitctl.device import ran_out_of_memory
from deitctl.distributed import (
    SETUP_TIMEOUT_S,
    STEP_TIMEOUT_S,
    Patience,
    announce_failure,
    translate_lost_process,
)
from deitctl.errors import DeitctlError
from deitctl.training.context import MIN_MICRO_BATCH, TrainContext
from deitctl.training.device_batch import DeviceBatch
from deitctl.training.engine import Outcome, Share, SummedAfterwards
from deitctl.training.state import TrainState


class Sharded(SummedAfterwards):
    """Sums each block's gradients into the processes that hold them, in every micro-batch."""

    def __init__(self, context: TrainContext, state: TrainState) -> None:
        """Train `state`, whose model is divided, see `Sharding`."""
        super().__init__(context, state)
        self._num_passes = self._num_done = 0
        """Passes of this step, the same in every process, and those that this one has done."""
        self._is_within = False
        """Whether a pass of this process has begun that others wait for."""
        self._num_steps = 0
        self._num_slots: list[int] = []
        """Of the batch's images, readable or not, in each process."""
        # Before the hook that gathers weights.
        state.model.register_forward_pre_hook(self._note_begin, prepend=True)
        context.world.set_timeout(SETUP_TIMEOUT_S)

    def exchange(self, share: Share, batch: DeviceBatch, patience: Patience) -> list[Share]:
        """Return the share of every process, by rank."""
        numbers = [*map(int, share), max(batch.slots, default=-1) + 1]
        gathered = self.context.world.all_gather_ints(numbers, patience)
        self._num_slots = [own[-1] for own in gathered]
        return [Share.of(own) for *own, _ in gathered]

    def begin(self) -> None:
        """Count the passes of the process that has most of them."""
        size = self.context.micro_batch_size(self.state)
        self._num_passes = max(-(-slots // (size or slots or 1)) for slots in self._num_slots)
        self._num_done, self._is_within = 0, False

    @contextmanager
    def accumulate(self, *, is_last: bool) -> Iterator[None]:
        """Count a pass, and say why if another process is gone in the middle of it."""
        with translate_lost_process():
            yield
        self._num_done += 1
        self._is_within = False

    def prepare_sum(self, losses: dict[str, Tensor]) -> None:
        """Do nothing: gradients are summed by then."""

    def agree(self, *, out_of_memory: bool, patience: Patience) -> Outcome:
        """Run the passes that others have more of, and return how the attempt ended where it went worst.

        Memory that runs out before a pass, in the teacher or the transforms, is that of a batch that can
        be taken again.

        Raises:
            DeitctlError: it ran out within a pass, in the middle of which the others wait.
        """
        if out_of_memory and not self._is_within:
            self.context.device.empty_cache()
        try:
            while self._num_done < self._num_passes and not self._is_within:
                with self.accumulate(is_last=False):
                    self._run_empty_pass()
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
        if self._is_within:
            raise self._give_up()
        return super().agree(out_of_memory=out_of_memory, patience=patience)

    def _give_up(self) -> DeitctlError:
        size = self.context.largest_micro_batch(self.state)
        smaller = max(MIN_MICRO_BATCH, size // 4 * 2)
        failure = DeitctlError(
            f"Memory runs out in process {self.context.world.rank} with micro-batches of {size} images; the weights "
            "are divided among the processes, so that the others cannot take the batch again without it.",
            f"Use --micro-batch-size {smaller}, --grad-checkpointing, or more processes.",
        )
        announce_failure(failure)
        return failure

    def _note_begin(self, module: nn.Module, args: object) -> None:
        self._is_within = self._is_within or torch.is_grad_enabled()

    def _run_empty_pass(self) -> None:
        preprocessing = self.context.preprocessing
        images = torch.zeros(
            1, preprocessing.in_chans, *preprocessing.hw, device=self.context.device.torch_device
        )
        with self.context.device.autocast():
            outputs = self.state.model(images)
        total = torch.stack([o.float().sum() for o in outputs if isinstance(o, Tensor)]).sum()
        (total * 0.0).backward()  # type: ignore[no-untyped-call]

    def reduce(self, losses: dict[str, Tensor], shares: Sequence[Share]) -> None:
        """Sum losses over the processes; gradients are summed by then."""
        if any(share.num_images == 0 for share in shares):
            for name in max(self.context.world.all_gather_object(list(losses)), key=len):
                losses.setdefault(name, torch.zeros((), device=self.context.device.torch_device))
        self._reduce_losses(losses)
        self._num_steps += 1
        if self._num_steps == 1:
            self.context.world.set_timeout(STEP_TIMEOUT_S)

    def compute_grad_norm(self) -> Tensor:
        """Return the norm of all gradients."""
        norm = super().compute_grad_norm()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

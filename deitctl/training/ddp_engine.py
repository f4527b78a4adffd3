"""Several processes whose gradients are summed while the backward pass goes on, by DistributedDataParallel.

Memory that runs out in the middle of such a pass must leave nobody waiting: the process sends zeros for the buckets
that it did not come to, all drop what they summed, and take the batch again with smaller micro-batches. So every
process must know the sizes of all buckets before it begins; and a step is overlapped only after one of its shape went
well without, so that memory mostly runs out where nothing is under way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

from deitctl.distillation.targets import TeacherTargets
from deitctl.distributed import (
    SETUP_TIMEOUT_S,
    STEP_TIMEOUT_S,
    Patience,
    close_before_leaving,
    translate_lost_process,
)
from deitctl.training.context import TrainContext
from deitctl.training.device_batch import DeviceBatch
from deitctl.training.engine import Outcome, Share, SummedAfterwards
from deitctl.training.state import TrainState

BUCKET_MB = 25


class Overlapped(SummedAfterwards):
    """Sums buckets of gradients during the backward pass of a step's last micro-batch, where that is proven."""

    def __init__(self, context: TrainContext, state: TrainState) -> None:
        super().__init__(context, state)
        self._buckets: Buckets | None = None
        self._trained: tuple[str, ...] = ()
        """Names of the parameters that require gradients; others are trained after a thaw."""
        self._used = frozenset[str]()
        """Those that got one in the last step that was summed afterwards."""
        self._proven = set[tuple[int, ...]]()
        """Sizes of images and micro-batches whose steps went well."""
        self._shape: tuple[int, ...] = ()
        self._all_proven = False
        """Whether this step's shape is proven in every process."""
        self._is_overlapped = self._is_last = False
        self._may_overlap = True
        """Not in a run whose steps use other parameters now and then."""
        self._num_steps = 0
        context.world.set_timeout(SETUP_TIMEOUT_S)
        close_before_leaving(self)

    def exchange(self, share: Share, batch: DeviceBatch, patience: Patience) -> list[Share]:
        """Return the share of every process, and agree on whether the step is to be overlapped."""
        self._follow_thaw()
        self._shape = self._describe_shape(batch)
        is_proven = self._may_overlap and share.num_images > 0 and self._shape in self._proven
        numbers = [*map(int, share), int(is_proven)]
        gathered = self.context.world.all_gather_ints(numbers, patience)
        self._all_proven = all(proven for *_, proven in gathered)
        return [Share.of(own) for *own, _ in gathered]

    def begin(self) -> None:
        """Decide how an attempt at the step is summed; make the buckets, whose memory may run out too.

        An attempt that makes buckets is not overlapped, so that nobody waits for one that cannot make them.
        """
        self._is_overlapped = False
        if not self._all_proven:
            return
        if self._buckets is None:
            self._buckets = Buckets(self)
        elif self._buckets.is_to_be_rebuilt:
            with translate_lost_process():
                self._buckets.rebuild()
        else:
            self._is_overlapped = True
            self._buckets.num_sent = 0

    @contextmanager
    def accumulate(self, *, is_last: bool) -> Iterator[None]:
        """Sum during the backward pass of the last micro-batch; the others add up in this process."""
        self._is_last = is_last
        with translate_lost_process():
            yield

    def prepare_sum(self, losses: dict[str, Tensor]) -> None:
        """Allocate what is summed afterwards."""
        if not self._is_overlapped:
            super().prepare_sum(losses)

    def forward(self, batch: DeviceBatch, cached: TeacherTargets | None) -> dict[str, Tensor]:
        """Return the losses of a micro-batch."""
        # Beside the wrapper its hooks are silent, as under `no_sync`.
        if not (self._is_overlapped and self._is_last and self._buckets is not None):
            return super().forward(batch, cached)
        losses: dict[str, Tensor] = self._buckets.ddp(batch, cached)
        return losses

    def agree(self, *, out_of_memory: bool, patience: Patience) -> Outcome:
        """Return how the attempt ended in the process where it went worst."""
        outcome = Outcome.OUT_OF_MEMORY if out_of_memory else Outcome.DONE
        if self._is_overlapped and self._buckets is not None:
            with translate_lost_process():
                is_cut_short = self._buckets.send_rest()
            # A parameter without a gradient when the shape was proven is in no bucket.
            if is_cut_short or self._list_used() != self._used:
                outcome = max(outcome, Outcome.BROKEN)
        gathered = self.context.world.all_gather_ints([outcome], patience)
        worst = Outcome(max(number for (number,) in gathered))
        if worst is Outcome.BROKEN:
            self._may_overlap = False
        return worst

    def recover(self) -> None:
        """Drop the buckets, of which some may wait for a backward pass that broke off."""
        self._all_proven = False
        self.close()

    def reduce(self, losses: dict[str, Tensor], shares: Sequence[Share]) -> None:
        """Make gradients, `losses` and batch statistics those of the global batch."""
        if self._is_overlapped:
            self._reduce_losses(losses)
            self._average_batch_stats()
        else:
            super().reduce(losses, shares)
            used = self._list_used()
            if used != self._used:
                self.close()
            self._used = used
        if all(share.num_images for share in shares):
            self._proven.add(self._shape)
        self._num_steps += 1
        if self._num_steps == 1:  # in which kernels are chosen and compiled, for minutes
            self.context.world.set_timeout(STEP_TIMEOUT_S)

    def _list_used(self) -> frozenset[str]:
        """Return names of the parameters that have a gradient."""
        return frozenset(n for n, p in self.state.named_parameters() if p.grad is not None)

    def list_ignored(self) -> list[str]:
        """Return names within `losses` of buffers, and of the parameters that get no gradient."""
        names = {id(parameter): name for name, parameter in self.state.named_parameters()}
        return [
            *(
                name
                for name, p in self.losses.named_parameters()
                if names.get(id(p)) not in self._used
            ),
            *(name for name, _ in self.losses.named_buffers()),
        ]

    def close(self) -> None:
        """Let go of the process group."""
        if self._buckets is not None:
            self._buckets.close()
            self._buckets = None

    def _follow_thaw(self) -> None:
        """Begin anew, without buckets, where other parameters are trained than before."""
        trained = tuple(name for name, p in self.state.named_parameters() if p.requires_grad)
        if trained != self._trained:
            self._trained = trained
            self._proven.clear()
            self.close()

    def _describe_shape(self, batch: DeviceBatch) -> tuple[int, ...]:
        height, width = batch.images.shape[-2:]
        return height, width, self.context.largest_micro_batch(self.state)


class Buckets:
    """A DistributedDataParallel that sums without dividing, and that can be left in the middle of a pass."""

    def __init__(self, engine: Overlapped) -> None:
        """Wrap the engine's losses; allocates as much memory as the gradients have."""
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
            engine.losses, engine.list_ignored()
        )
        self.ddp = DistributedDataParallel(engine.losses, init_sync=False, bucket_cap_mb=BUCKET_MB)
        # torch compares annotations with classes, and they are strings here.
        self.ddp.register_comm_hook(self, lambda buckets, bucket: _sum_bucket(buckets, bucket))
        self.num_sent = 0
        """Buckets of this pass whose sum this process has begun."""
        self.is_to_be_rebuilt = False
        """Whether the order of a first pass is known, by which torch makes buckets once more."""
        self._was_rebuilt = False
        self._likes = self._describe()

    def rebuild(self) -> None:
        """Make the buckets by the order in which gradients came; collective."""
        # torch would do it within the next forward pass, which not every process may come to.
        self.ddp.reducer._rebuild_buckets()
        self._was_rebuilt, self.is_to_be_rebuilt = True, False
        self._likes = self._describe()

    def send_rest(self) -> bool:
        """Send zeros for the buckets that this process did not come to; return whether there were any."""
        rest = self._likes[self.num_sent :]
        for numel, like in rest:
            dist.all_reduce(like.new_zeros(numel))
        self.is_to_be_rebuilt = not self._was_rebuilt
        return bool(rest)

    def close(self) -> None:
        """Take the hooks off the parameters."""
        self.ddp.reducer._remove_autograd_hooks()
        del self.ddp

    def _describe(self) -> list[tuple[int, Tensor]]:
        """Return length, and an empty tensor of dtype and device, of each bucket in the order of sums."""
        buffers = [b.buffer() for b in self.ddp.reducer._get_zeros_like_grad_buckets()]
        return [(buffer.numel(), buffer.new_empty(0)) for buffer in buffers]


def _sum_bucket(buckets: Buckets, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """Begin to sum a bucket over the processes."""
    buckets.num_sent += 1
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None  # as for a process that is not of the group
    return work.get_future().then(lambda future: future.value()[0])

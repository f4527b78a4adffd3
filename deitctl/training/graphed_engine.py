"""One process whose micro-batches are CUDA graphs: a step is replayed from memory that the next replay writes to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from deitctl.training.engine import SingleProcess


class Graphed(SingleProcess):
    """The engine of `--cuda-graphs`: what outlives a replay is copied out of its memory."""

    _owns_grads = False
    """Whether the gradients are copies, to which later micro-batches add."""

    def begin(self) -> None:
        """Begin a step, whose parameters have no gradients."""
        self._owns_grads = False

    @contextmanager
    def accumulate(self, *, is_last: bool) -> Iterator[None]:
        """Release the memory of the replay before; copy the gradients of a micro-batch that others follow."""
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        yield
        if is_last or self._owns_grads:
            return  # the optimizer uses them before the next replay
        self._owns_grads = True
        for _, parameter in self.state.named_parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()

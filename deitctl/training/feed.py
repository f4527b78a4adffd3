"""Batches of the loader on their way to the device."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import NamedTuple

from deitctl.data.loader import Batch
from deitctl.device import Device, ran_out_of_memory
from deitctl.training.context import TrainContext
from deitctl.training.device_batch import DeviceBatch, place_batch
from deitctl.training.state import TrainState
from deitctl.transfers import CopyStream, Event


def feed(
    context: TrainContext, state: TrainState, batches: Iterable[Batch]
) -> Generator[DeviceBatch]:
    """Yield batches on the device, for the steps from the state's on.

    On CUDA the next batch is copied while a step is computed. The state knows nothing of it: it counts when it is
    trained.
    """
    numbered = enumerate(batches, state.progress.step)

    def place(step: int, batch: Batch) -> DeviceBatch:
        return place_batch(context, state, batch, step)

    copies = context.device.open_copy_stream()
    if copies is not None:
        yield from _FeedAhead(context.device, copies, place).feed(numbered)
        return
    for step, batch in numbered:
        yield place(step, batch)


class _Ahead(NamedTuple):
    """What came after a batch whose turn it is."""

    batch: DeviceBatch | None
    """None: no other came."""
    end: Event | None
    """Of its copies."""
    error: Exception | None
    """Raised in its place."""


class _FeedAhead(NamedTuple):
    """Batches, each of which is copied while the step before it is computed."""

    device: Device
    copies: CopyStream
    place: Callable[[int, Batch], DeviceBatch]

    def feed(self, batches: Iterator[tuple[int, Batch]]) -> Generator[DeviceBatch]:
        """Yield each batch when the copies of the next one have been issued."""
        own = self._issue_next(batches)
        while own.batch is not None and own.end is not None:
            ahead = self._issue_next(batches)
            self.copies.receive(own.batch.tensors, own.end)
            yield own.batch
            own = ahead
        if own.error is not None:
            raise own.error

    def _issue_next(self, batches: Iterator[tuple[int, Batch]]) -> _Ahead:
        try:
            # Beside the queue of copies: while no batch comes the state may be saved, which must follow the steps.
            numbered = next(batches, None)
            if numbered is None:
                return _Ahead(None, None, None)
            batch, end = self._issue(*numbered)
        except Exception as error:  # is that batch's; a signal, which is none, ends the run at once
            return _Ahead(None, None, error)
        return _Ahead(batch, end, None)

    def _issue(self, step: int, batch: Batch) -> tuple[DeviceBatch, Event]:
        try:
            return self.copies.issue(lambda: self.place(step, batch))
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
        # The step that is being computed may need what it leaves free at its end.
        self.device.synchronize()
        self.device.empty_cache()
        return self.copies.issue(lambda: self.place(step, batch))

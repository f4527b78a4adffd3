"""Batches of the loader on their way to the device."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

from deitctl.data.loader import Batch
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
    first = state.progress.step
    placed = (place_batch(context, state, b, step) for step, b in enumerate(batches, first))
    copies = context.device.open_copy_stream()
    yield from placed if copies is None else _feed_ahead(copies, placed)


class _Ahead(NamedTuple):
    """What came after a batch whose turn it is."""

    batch: DeviceBatch | None
    """None: no other came."""
    end: Event | None
    """Of its copies."""
    error: Exception | None
    """Raised in its place."""


def _feed_ahead(copies: CopyStream, placed: Iterator[DeviceBatch]) -> Generator[DeviceBatch]:
    """Yield each batch when the copies of the next one have been issued."""
    own = _issue_next(copies, placed)
    while own.batch is not None and own.end is not None:
        ahead = _issue_next(copies, placed)
        copies.receive(own.batch.tensors, own.end)
        yield own.batch
        own = ahead
    if own.error is not None:
        raise own.error


def _issue_next(copies: CopyStream, placed: Iterator[DeviceBatch]) -> _Ahead:
    try:
        batch, end = copies.issue(lambda: next(placed, None))
    except Exception as error:  # is that batch's; a signal, which is none, ends the run at once
        return _Ahead(None, None, error)
    return _Ahead(batch, end, None)

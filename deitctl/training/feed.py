"""Batches of the loader on their way to the device."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from deitctl.data.loader import Batch
from deitctl.training.context import TrainContext
from deitctl.training.device_batch import DeviceBatch, place_batch
from deitctl.training.state import TrainState


def feed(
    context: TrainContext, state: TrainState, batches: Iterable[Batch]
) -> Generator[DeviceBatch]:
    """Yield batches on the device, for the steps from the state's on."""
    for step, batch in enumerate(batches, state.progress.step):
        yield place_batch(context, state, batch, step)

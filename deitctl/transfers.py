"""Copies between the host and a device that neither of them waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Event(Protocol):
    """A mark in a device's queue, as `torch.cuda.Event`."""

    def query(self) -> bool:
        """Return whether the device has come to it."""

    def synchronize(self) -> Any:
        """Wait until it has."""


class PendingRead:
    """Values on their way to the host."""

    def __init__(self, values: Tensor, event: Event | None) -> None:
        """Hold the copy on the host, which has arrived when the device comes to `event`; None: it is there."""
        self._values, self._event = values, event

    @property
    def is_ready(self) -> bool:
        """Whether getting the values makes nobody wait."""
        return self._event is None or self._event.query()

    def get(self) -> Tensor:
        """Return the values on the host; wait for them if they have not arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._values


class CopyStream:
    """A queue of copies to a CUDA device, which go on while the kernels of its current queue run."""

    def __init__(self, device: torch.device) -> None:
        """Make a queue beside the device's others."""
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def issue(self, copy: Callable[[], T]) -> tuple[T, Event]:
        """Return what `copy` returns, whose copies are queued here, and the mark at their end."""
        with torch.cuda.stream(self._stream):
            return copy(), self._stream.record_event()

    def receive(self, tensors: Iterable[Tensor], end: Event) -> None:
        """Let the kernels that are queued from now on wait for the copies before `end`, and use `tensors`."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(end)  # type: ignore[arg-type]  # one of CUDA, by `issue`
        for tensor in tensors:
            # Its memory is this queue's, and would be reused while kernels of the other still read it.
            tensor.record_stream(current)

"""Copies between the host and a device that neither of them waits for."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


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

"""Values of a pass on their way from the device to the host, which nobody waits for between batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from deitctl.device import Device
from deitctl.transfers import PendingRead

MAX_BATCHES_AHEAD = 4
"""Of the host: it then waits for the oldest, because what they need of its memory is freed when they are done."""

Use = Callable[[Tensor], None]


class LateReads:
    """Values that are used on the host once they have come, in the order in which they were added."""

    def __init__(self) -> None:
        self._pending = deque[tuple[Device, PendingRead, Use | None]]()
        self._num_batches = 0

    def add(self, device: Device, values: Tensor, use: Use) -> None:
        """Begin to read values; `use` is called with them, in memory that is not page-locked."""
        self._pending.append((device, device.read_later(values), use))

    def end_batch(self, device: Device) -> None:
        """Use what has come, and wait if the host is too far ahead of the device."""
        if not device.is_synchronous:
            mark = device.read_later(torch.empty(0, device=device.torch_device))
            self._pending.append((device, mark, None))
            self._num_batches += 1
        while self._pending and (
            self._pending[0][1].is_ready or self._num_batches > MAX_BATCHES_AHEAD
        ):
            self._use_next()

    def finish(self) -> None:
        """Wait for all values, and use them."""
        while self._pending:
            self._use_next()

    def _use_next(self) -> None:
        device, read, use = self._pending.popleft()
        values = read.get()
        if use is None:
            self._num_batches -= 1
        else:
            use(values.clone() if device.pins_memory else values)

"""Batches computed in pieces that memory has room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from deitctl.device import Device, ran_out_of_memory

T = TypeVar("T")


class Pieces:
    """Computes batches whole until memory runs out, then in halves, as it does those that follow."""

    def __init__(self, device: Device, size: int = 0) -> None:
        """Begin with parts of `size` images, 0: whole batches; `device` is where memory may run out."""
        self.device, self.size = device, size

    def compute(self, count: int, compute: Callable[[slice], T]) -> Iterator[T]:
        """Yield the results of the parts of a batch, each image in one of them.

        Args:
            count: images of the batch.
            compute: called with the rows of a part; it must leave nothing behind where memory runs out in it,
                because it is called again with half of these rows.

        Raises:
            RuntimeError: memory ran out for one image; `MemoryError` likewise.
        """
        first = 0
        while first < count:
            part = slice(first, min(count, first + (self.size or count)))
            num_images, result = part.stop - first, None
            try:
                result = compute(part)
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error) or num_images == 1:
                    raise
            if result is None:  # here, where the error does not hold the activations any more
                self.size = num_images // 2
                self.device.empty_cache()
                continue
            yield result
            first = part.stop

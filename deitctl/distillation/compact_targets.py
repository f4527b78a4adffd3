"""Teacher targets on their way to a device, as the bits of their records, and from it into the cache.

Letters: B images, W 16-bit numbers of a record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deitctl.device import Device
from deitctl.distillation.joint_targets import JointCodec
from deitctl.distillation.targets import Records, to_numbers
from deitctl.errors import TeacherError
from deitctl.transfers import PendingRead

Key = tuple[int, int]
"""View and image."""
FINE, BAD_LOGITS, BAD_FEATURES = 0, 1, 2
"""What a device says of a target that it computed, and of which nothing may be stored."""
FAULTS = {
    BAD_LOGITS: "The teacher's logits of {} are not finite.",
    BAD_FEATURES: "The teacher's features of {} are not finite, or larger than float16 holds.",
}


class CompactTargets(NamedTuple):
    """What a cache holds of a batch's targets, for a device and for the host."""

    keys: list[Key]
    records: Records
    """[B,W]; of kinds that are not stored anything."""
    stored: NDArray[np.bool_]
    """Whether each kind of target is stored, [B, kinds]."""
    numbers: Tensor | None
    """The records on the device, int16 [B,W]; None where none is stored."""
    is_stored: Tensor | None
    """`stored` on the device; None where all or none are."""

    @property
    def is_complete(self) -> bool:
        """Whether the teacher need not be run."""
        return bool(self.stored.all())

    def find_missing(self) -> list[int]:
        """Return the rows that lack a kind of target."""
        rows: list[int] = np.flatnonzero(~self.stored.all(axis=1)).tolist()
        return rows

    def take(self, rows: slice) -> CompactTargets:
        """Return those of some rows."""
        return CompactTargets(
            self.keys[rows],
            self.records[rows],
            self.stored[rows],
            None if self.numbers is None else self.numbers[rows],
            None if self.is_stored is None else self.is_stored[rows],
        )


def place_targets(
    keys: list[Key], records: Records, stored: NDArray[np.bool_], device: Device
) -> CompactTargets:
    """Begin to copy what is stored to a device; arguments as `CompactTargets` has them."""

    def send(tensor: Tensor) -> Tensor:
        return device.to_device(device.pin(tensor))

    numbers = send(to_numbers(records)) if stored.any() else None
    is_partial = numbers is not None and not stored.all()
    is_stored = send(torch.from_numpy(np.array(stored))) if is_partial else None
    return CompactTargets(keys, records, stored, numbers, is_stored)


def complete_targets(compact: CompactTargets, computed: Tensor, codec: JointCodec) -> Tensor:
    """Return the numbers of all targets, int16 [B,W]: those that are stored, else those computed."""
    if compact.numbers is None:
        return computed
    assert compact.is_stored is not None  # where all are, none is computed
    return codec.merge(compact.numbers, computed, compact.is_stored)


class PendingTargets:
    """Targets that a device has computed or will have, which are stored once they come to the host, in order."""

    def __init__(self) -> None:
        self._entries = deque[_Entry]()
        self._last = 0

    @property
    def last(self) -> int:
        """The number of the newest, counted from 1."""
        return self._last

    def add(
        self, read: PendingRead, keys: Collection[Key], store: Callable[[Tensor], None]
    ) -> None:
        """Add targets on their way, and store those that are there.

        Args:
            read: brings them.
            keys: of them.
            store: called with what was read; raises `TeacherError` if it may not be stored.
        """
        self._last += 1
        self._entries.append(_Entry(self._last, read, frozenset(keys), store))
        while self._entries and self._entries[0].read.is_ready:
            self._store_first()

    def holds_any(self, keys: Sequence[Key]) -> bool:
        """Return whether a target of these is on its way."""
        return any(not entry.keys.isdisjoint(keys) for entry in self._entries)

    def flush(self, number: int | None = None) -> None:
        """Store the targets up to the one of a number, or all; wait for those that are not there.

        Raises:
            TeacherError: one of them is not finite; it and later ones are never stored.
        """
        while self._entries and (number is None or self._entries[0].number <= number):
            self._store_first()

    def _store_first(self) -> None:
        entry = self._entries[0]
        entry.store(entry.read.get())
        self._entries.popleft()  # stays if it may not be stored, so that whoever looks again meets it


class _Entry(NamedTuple):
    number: int
    read: PendingRead
    keys: frozenset[Key]
    store: Callable[[Tensor], None]


def refuse_fault(faults: Tensor, names: Callable[[int], str]) -> None:
    """Raise `TeacherError` if a target cannot be used.

    Args:
        faults: of each image, on the host, [B].
        names: returns what an image is called, by its row.
    """
    for row, fault in enumerate(faults.tolist()):
        if fault != FINE:
            message = FAULTS[fault].format(names(row))
            raise TeacherError(message, "Check its weights; or --precision fp32.")

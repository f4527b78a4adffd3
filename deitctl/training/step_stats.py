"""The figures of a step, which an accelerator sends while the host goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from deitctl.device import Device

GRAD_NORM = "grad_norm"


class Reading:
    """Losses and gradient norm of a step, on their way from the device in one tensor."""

    def __init__(
        self,
        losses: Mapping[str, Tensor],
        grad_norm: Tensor,
        device: Device,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to read scalars; on a CPU they are read when they are looked at.

        Args:
            losses: of the step.
            grad_norm: of the step.
            device: that computes them.
            check: called before they are looked at; raises where what they were computed of is bad.
        """
        self._check = check
        self._names = [*losses, GRAD_NORM]
        values = [*losses.values(), grad_norm]
        stacked = torch.stack([value.detach().float() for value in values])
        self._values = device.read_later(stacked)

    @property
    def is_ready(self) -> bool:
        """Whether looking at it makes nobody wait."""
        return self._values.is_ready

    def read(self) -> dict[str, float]:
        """Return the losses by name, and the norm as `grad_norm`; wait for them if they are not there.

        Raises:
            TeacherError: the teacher's outputs, of which they were computed, are not finite.
        """
        values = self._values.get()
        self._check()
        return dict(zip(self._names, values.tolist(), strict=True))


class StepStats(NamedTuple):
    """What a step leaves besides the gradients; the same in every process."""

    losses: dict[str, Tensor]
    """Means over the images of the global batch: `loss`, `task_loss` and so on."""
    grad_norm: Tensor
    """Of all gradients, before clipping."""
    reading: Reading
    """The same for the host."""
    num_images: int
    """Images of the global batch that could be read."""
    unreadable: list[tuple[int, str]]
    """Index and reason of each of the others."""
    signum: int
    """The signal by which any process is to stop, 0 for none."""
    save_requested: bool
    """Whether any process is to save, after a signal."""
    has_diverged: bool
    """Whether any process has read an earlier step that the run must not continue with."""

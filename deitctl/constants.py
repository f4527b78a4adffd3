"""Constants that a device gets once: a copy to it makes the host wait, so that a step must not repeat it."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_ON_DEVICE: dict[tuple[Hashable, torch.device], Tensor] = {}


def place_once(key: Hashable, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
    """Return a constant on a device, which `make` returns on the CPU the first time."""
    constant = _ON_DEVICE.get((key, device))
    if constant is not None:
        return constant
    with torch.inference_mode(False):  # it may be part of a training later
        constant = make().to(device)
    # Not while torch traces a graph, whose tensors have no values.
    if not torch.compiler.is_compiling() and not isinstance(constant, FakeTensor):
        _ON_DEVICE[key, device] = constant
    return constant

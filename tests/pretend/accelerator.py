"""A pretended accelerator: its tensors have real values, and each operation that a real one would wait for, copy slowly
or refuse is recorded with the line of deitctl that did it.

Torch's Python backend for PrivateUse1 is for a whole process and for good: only programs of their own import this.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from deitctl.device import Device

NAME = "pretended"
_setup_privateuseone_for_python_backend(NAME)
getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
DEVICE = torch.device(NAME, 0)
aten = torch.ops.aten

WAIT, UNPINNED, MISMATCH, FLOAT64 = "wait", "unpinned copy", "device mismatch", "float64"
KINDS = (WAIT, UNPINNED, MISMATCH, FLOAT64)

READS = {
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.nonzero_numpy, aten.masked_select,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.repeat_interleave,
    aten._is_all_true, aten._is_any_true, aten.allclose,
}  # fmt: skip
"""Operators whose result the host must have: a value, or a shape that depends on values."""
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
SHARING = {aten.set_, aten.detach, aten.alias}


class PretendedTensor(torch.Tensor):
    """A tensor on the pretended device, whose values `content` holds."""

    content: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> PretendedTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            real.shape,
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=DEVICE,
            requires_grad=False,
        )
        tensor.content = real
        return tensor

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendedTensor({self.content!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a pretended tensor outside of `Accelerator`")


class Finding(NamedTuple):
    """What was recorded, and where."""

    kind: str
    operation: str
    line: str
    """file:line of deitctl, or of what called torch."""


class Accelerator(TorchDispatchMode):
    """Within this context tensors can be on `DEVICE`; within `watch` what happens to them is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.findings = Counter[Finding]()
        self.operators = Counter[Any]()
        """Calls of each operator on the device."""
        self.first_lines = dict[Any, str]()
        """Where each of them was called first."""
        self.is_watching = False
        self._pinned: list[torch.Tensor] = []
        self._pinned_storages = set[int]()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Record what happens in the block."""
        self.is_watching = True
        try:
            yield
        finally:
            self.is_watching = False

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy in memory that counts as page-locked."""
        pinned = tensor.clone()
        self._pinned.append(pinned)  # so that its memory is never another tensor's
        self._pinned_storages.add(pinned.untyped_storage().data_ptr())
        return pinned

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor, or what it is a part of, was pinned."""
        return not tensor.numel() or tensor.untyped_storage().data_ptr() in self._pinned_storages

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and each operator would pay for it

    def __enter__(self) -> Accelerator:
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        self._pin_memory = torch.Tensor.pin_memory
        torch.Tensor.pin_memory = lambda tensor, *_: self.pin(tensor)  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        torch.Tensor.pin_memory = self._pin_memory  # type: ignore[method-assign]
        torch._C._set_only_lift_cpu_tensors(self._lifted)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = dict(kwargs or {}), func.overloadpacket
        if packet is aten._to_copy:
            return self._copy_to(func, args[0], kwargs)
        if packet is aten.copy_:
            return self._copy_into(func, args, kwargs)
        return self._compute(func, packet, args, kwargs)

    def _copy_to(self, func: Any, source: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        target, is_async = kwargs.pop("device", None), kwargs.pop("non_blocking", False)
        was_there = isinstance(source, PretendedTensor)
        is_there = was_there if target is None else torch.device(target).type == NAME
        if was_there and not is_there and not is_async:
            self._record(WAIT, "copy to the host")
        elif is_there and not was_there:
            self._check_upload(source, is_async)
        if was_there or is_there:
            self._count(func)
        copy = func(unwrap(source), device=torch.device("cpu"), **kwargs)
        return PretendedTensor(copy) if is_there else copy

    def _copy_into(self, func: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        target, source = args[:2]
        is_async = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        goes_up = isinstance(target, PretendedTensor) and not isinstance(source, PretendedTensor)
        goes_down = isinstance(source, PretendedTensor) and not isinstance(target, PretendedTensor)
        if goes_up:
            self._check_upload(source, is_async)
        elif goes_down and not (is_async and self.is_pinned(target)):
            self._record(WAIT, "copy into the host's memory")
        if isinstance(target, PretendedTensor) or goes_down:
            self._count(func)
        func(unwrap(target), unwrap(source))
        return target

    def _check_upload(self, source: torch.Tensor, is_async: bool) -> None:
        if not is_async:
            self._record(WAIT, "blocking copy to the device")
        elif not self.is_pinned(source):
            self._record(UNPINNED, "copy to the device")

    def _compute(self, func: Any, packet: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        device = kwargs.get("device")
        kind = None if device is None else torch.device(device).type
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
        there = [t for t in tensors if isinstance(t, PretendedTensor)]
        here = [t for t in tensors if not isinstance(t, PretendedTensor)]
        if there or kind == NAME:
            self._count(func)
            self._check(packet, args, there, here, kwargs.get("dtype"))
        if kind == NAME:
            kwargs["device"] = torch.device("cpu")
        result = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
        if packet is aten._local_scalar_dense or not (kind == NAME or (there and kind != "cpu")):
            return result
        # Operations in place, and into `out`, return what they were called with.
        originals = {id(unwrap(t)): t for t in tensors}
        return tree_map(lambda t: originals.get(id(t)) if id(t) in originals else wrap(t), result)

    def _check(
        self,
        packet: Any,
        args: Any,
        there: list[PretendedTensor],
        here: list[torch.Tensor],
        dtype: torch.dtype | None,
    ) -> None:
        name = packet.__name__
        if torch.float64 in {dtype, *(t.dtype for t in there)}:
            self._record(FLOAT64, name)
        if packet in READS:
            self._record(WAIT, name)
        if packet in INDEXING:
            for index in args[1]:
                if index is None:
                    continue
                if index.dtype in (torch.bool, torch.uint8):
                    self._record(WAIT, f"{name} by a mask")
                elif not isinstance(index, PretendedTensor):
                    self._record(WAIT, f"{name} by indices of the host")
        elif there and any(t.dim() for t in here) and packet not in SHARING:
            self._record(MISMATCH, name)

    def _count(self, func: Any) -> None:
        if self.is_watching:
            self.operators[func] += 1
            if func not in self.first_lines:
                self.first_lines[func] = find_line()

    def _record(self, kind: str, operation: str) -> None:
        if self.is_watching:
            self.findings[Finding(kind, operation, find_line())] += 1

    def list_operators(self) -> dict[str, str]:
        """Return the name of each operator that was called, and the line that called it first."""
        return dict(sorted((str(func), line) for func, line in self.first_lines.items()))

    def count(self, kind: str) -> int:
        """Return how often a kind was found."""
        return sum(number for finding, number in self.findings.items() if finding.kind == kind)


def wrap(value: Any) -> Any:
    return PretendedTensor(value) if isinstance(value, torch.Tensor) else value


def unwrap(value: Any) -> Any:
    return value.content if isinstance(value, PretendedTensor) else value


def find_line() -> str:
    """Return the innermost line of deitctl that is running, else of anything but torch."""
    frame, outside = sys._getframe(1), ""
    while frame is not None:
        file = frame.f_code.co_filename
        if "/deitctl/" in file and "site-packages" not in file:
            return f"{file.rpartition('/deitctl/')[2]}:{frame.f_lineno} {frame.f_code.co_name}"
        if not outside and file != __file__ and "/torch/" not in file:
            outside = f"{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return outside or "autograd"


class PretendedDevice(Device):
    """A device of deitctl on which tensors are pretended ones; pinned as CUDA's."""

    def __init__(self) -> None:
        super().__init__(DEVICE, torch.float32, "pretended")

    def autocast(self) -> AbstractContextManager[object]:
        return nullcontext()

    def grad_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", enabled=False)

    def empty_cache(self) -> None:
        pass

    @property
    def pins_memory(self) -> bool:
        return True

    def record_event(self) -> Passed:
        return Passed()


class Passed:
    """An event that has come: what is pretended is computed at once."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

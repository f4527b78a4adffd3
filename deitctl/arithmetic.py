"""Torch's switches of arithmetic for the whole process: TF32, and kernels that repeat their bits."""

from __future__ import annotations

import functools
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from deitctl.errors import ConfigError

WORKSPACE_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")
"""Values with which cuBLAS repeats its bits (docs.nvidia.com/cuda/cublas, "Results reproducibility")."""
NO_KERNEL = re.compile(r"(\S+) does not have a deterministic implementation")
NUM_OF_CUDA = 3  # of the switches of fp32
CUBLAS_STARTED = "it uses CuBLAS"  # of torch's message where the variable was not set in time


@dataclass
class _Level:
    """Switches that are in force, and those that come back after them."""

    tf32: bool
    deterministic: bool
    before: _Switches
    num_users: int = 1


@dataclass(frozen=True)
class _Switches:
    """All that `set_arithmetic` changes."""

    fp32: tuple[str, ...]
    matmul: str
    convolution: bool
    deterministic: bool
    warn_only: bool
    fills_memory: bool
    benchmark: bool


_lock = threading.Lock()
_levels: list[_Level] = []


@contextmanager
def set_arithmetic(*, tf32: bool, deterministic: bool) -> Iterator[None]:
    """Set torch's switches for a block, and then set those of the caller's program back.

    Threads that ask for the same share them; blocks that differ are to be nested.

    Args:
        tf32: whether CUDA rounds the factors of fp32 products to 10 bits; else fp32 is fp32, on CPUs too.
        deterministic: whether operators take kernels that repeat their bits; else as the program has it.

    Raises:
        ConfigError: an operator has no such kernel, or `CUBLAS_WORKSPACE_CONFIG` allows none.
    """
    if deterministic:
        prepare_cublas()
    level = _enter(tf32, deterministic)
    try:
        yield
    except RuntimeError as error:
        if (explained := explain_nondeterminism(error)) is None:
            raise
        raise explained from error
    finally:
        _leave(level)


def prepare_cublas() -> None:
    """Let cuBLAS repeat its bits; it reads the variable when it starts, and never again.

    Raises:
        ConfigError: the variable has another value.
    """
    value = os.environ.setdefault(WORKSPACE_VARIABLE, WORKSPACES[0])
    if value not in WORKSPACES:
        raise ConfigError(
            f"{WORKSPACE_VARIABLE} is {value!r}, with which cuBLAS does not repeat its bits.",
            f"Unset it, or set it to {WORKSPACES[0]}.",
        )


def explain_nondeterminism(error: BaseException) -> ConfigError | None:
    """Return what torch's refusal of an operator means; None for other errors."""
    message = str(error) if isinstance(error, RuntimeError) else ""
    if (operator := NO_KERNEL.search(message)) is not None:
        return ConfigError(
            f"{operator[1]} has no kernel that repeats its bits on this device.",
            "Another model may do without it; --no-deterministic trains this one.",
        )
    if CUBLAS_STARTED in message and WORKSPACE_VARIABLE in message:
        return ConfigError(
            "cuBLAS has started before --deterministic could set it up.",
            f"Set {WORKSPACE_VARIABLE}={WORKSPACES[0]} before the program starts.",
        )
    return None


def _enter(tf32: bool, deterministic: bool) -> _Level:
    with _lock:
        last = _levels[-1] if _levels else None
        if last is not None and (last.tf32, last.deterministic) == (tf32, deterministic):
            last.num_users += 1
            return last
        level = _Level(tf32, deterministic, _read_switches())
        _levels.append(level)
        _set_fp32("high" if tf32 else "highest", convolution=tf32)
        for place, switch in enumerate(_list_fp32_switches()):
            switch.fp32_precision = "tf32" if tf32 and place < NUM_OF_CUDA else "ieee"
        if deterministic:
            # Filling memory would show a kernel that reads what nobody wrote. None does, and it
            # costs a pass over every new tensor.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = False  # would choose kernels by their time
            torch.use_deterministic_algorithms(True)
        return level


def _leave(level: _Level) -> None:
    with _lock:
        level.num_users -= 1
        if level.num_users:
            return
        place = next(n for n, other in enumerate(_levels) if other is level)
        del _levels[place]
        if place < len(_levels):  # of another thread, which began later
            _levels[place].before = level.before
        else:
            _restore(level.before)


def _read_switches() -> _Switches:
    fp32 = tuple(str(switch.fp32_precision) for switch in _list_fp32_switches())
    _silence_deprecation()
    return _Switches(
        fp32,
        _read_matmul_precision("high" if fp32[0] == "tf32" else "highest"),
        fp32[1] == "tf32",
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark,
    )


def _restore(before: _Switches) -> None:
    _set_fp32(before.matmul, convolution=before.convolution)
    for switch, precision in zip(_list_fp32_switches(), before.fp32, strict=True):
        switch.fp32_precision = precision
    torch.utils.deterministic.fill_uninitialized_memory = before.fills_memory  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = before.benchmark
    if torch.are_deterministic_algorithms_enabled() != before.deterministic:
        torch.use_deterministic_algorithms(before.deterministic, warn_only=before.warn_only)


def _list_fp32_switches() -> list[Any]:
    """Return the owners of torch's switches `fp32_precision` (`ieee`, `tf32`, `none`), CUDA's first."""
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    return [cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]


def _set_fp32(matmul: str, *, convolution: bool) -> None:
    """Set the former switches, which torch's compiler reads and which must agree with the others."""
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution


def _read_matmul_precision(otherwise: str) -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the program has set the newer switch alone
        return otherwise


@functools.cache
def _silence_deprecation() -> None:
    """Use the former switches unseen once: torch 2.9 warns of each the first time in a process."""
    with warnings.catch_warnings(), suppress(RuntimeError):
        warnings.simplefilter("ignore")
        torch.set_float32_matmul_precision(torch.get_float32_matmul_precision())
        torch.backends.cudnn.allow_tf32 = bool(torch.backends.cudnn.allow_tf32)

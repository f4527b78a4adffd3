"""The one place that knows CUDA, MPS and CPU apart; beside it distributed.py names a process's GPU, and rng.py seeds it."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from deitctl.cores import available_cores
from deitctl.distributed import is_distributed, local_rank
from deitctl.errors import ConfigError

OUT_OF_MEMORY = (
    "ALLOC_FAILED",
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
)
"""What MPS's and the CPU's allocators say."""
NO_MEMORY_FOR_ONEDNN = ("could not create a primitive", "could not create a memory object")
"""All that the library of the CPU's matrix products says where memory runs out in it; with more words it means another."""
COMPILERS = ("g++", "clang++", "c++")
LARGEST_KEPT_BLOCK = 32 * 2**20
"""Bytes: glibc's DEFAULT_MMAP_THRESHOLD_MAX on 64-bit systems."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def ran_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out: CUDA has a class for it, the others only words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = str(error).strip() if isinstance(error, RuntimeError) else ""
    return said in NO_MEMORY_FOR_ONEDNN or any(words in said for words in OUT_OF_MEMORY)


@dataclass(frozen=True)
class Device:
    """A torch device, the arithmetic to use on it for training, and why."""

    torch_device: torch.device
    dtype: torch.dtype
    reason: str

    def autocast(self) -> AbstractContextManager[object]:
        """Run the block's matrix work in `dtype`."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.torch_device.type, self.dtype)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Return a loss scaler, which does nothing except in fp16."""
        return torch.amp.GradScaler(self.torch_device.type, enabled=self.dtype is torch.float16)

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model here, convolutions channels-last, which oneDNN and tensor cores work in."""
        has_convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules()) > 1
        model = model.to(self.torch_device)
        return model.to(memory_format=torch.channels_last) if has_convolutions else model

    def move(self, tensor: Tensor) -> Tensor:
        """Copy a batch here; on CUDA without waiting, if it is pinned."""
        return tensor.to(self.torch_device, non_blocking=self.pins_memory)

    @property
    def pins_memory(self) -> bool:
        """Whether loaders should pin their batches."""
        return self.torch_device.type == "cuda"

    @property
    def precision(self) -> str:
        """Return the name of its arithmetic, as --precision takes it."""
        return next(name for name, dtype in PRECISIONS.items() if dtype is self.dtype)

    @property
    def is_synchronous(self) -> bool:
        """Whether reading a number costs nothing, because there is no queue of work to wait for."""
        return self.torch_device.type == "cpu"

    def empty_cache(self) -> None:
        """Give back what the backend keeps for later, so that smaller pieces can be cut from it."""
        gc.collect()
        if self.torch_device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.torch_device.type == "mps":
            torch.mps.empty_cache()
        elif (
            sys.platform == "linux"
        ):  # else glibc keeps what was freed, and oneDNN finds no room for its code
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)

    @property
    def keeps_freed_memory(self) -> bool:
        """Whether glibc is told to keep memory: not for accelerators, and not where the environment says how malloc is to be."""
        said = "malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
            n.startswith("MALLOC_") for n in os.environ
        )
        return self.torch_device.type == "cpu" and sys.platform == "linux" and not said

    def tune_malloc(self) -> None:
        """Have glibc keep what is freed, in this process and those forked from it, for the next batch.

        By itself it gives the end of its heap back to the system, and the next step pays for every page of its activations
        again, up to a tenth of its CPU time. `empty_cache` gives it back; blocks above 32 MiB still go at once.
        """
        if self.keeps_freed_memory:
            with suppress(OSError, AttributeError):  # another malloc
                malloc = ctypes.CDLL(None)
                malloc.mallopt(M_TRIM_THRESHOLD, -1)
                malloc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK)

    def synchronize(self) -> None:
        """Wait for the work that was queued, where there is a queue."""
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize(self.torch_device)
        elif self.torch_device.type == "mps":
            torch.mps.synchronize()

    def peak_memory_bytes(self) -> int | None:
        """Return the most memory that tensors took, where the backend counts it."""
        return (
            torch.cuda.max_memory_allocated(self.torch_device)
            if self.torch_device.type == "cuda"
            else None
        )

    def images_at_a_time(self, largest: int) -> int:
        """Return the images of a micro-batch that pay here, 0 for any: `largest` is the bytes of one's largest activation.

        glibc gives blocks above 32 MiB back to the system when they are freed, and the next step pays for every page
        again: a step of deit_small with 64 images at once took twice the CPU time an image that one with 32 did.
        """
        if self.torch_device.type != "cpu" or not largest:
            return 0
        most = LARGEST_KEPT_BLOCK // largest
        return max(2, 1 << max(1, most.bit_length() - 1))

    def compile(self, model: nn.Module) -> None:
        """Have torch compile a model in place, block by block where it has `blocks`, which is compiled once for all.

        Raises:
            ConfigError: nothing that compiles for this device is here.
        """
        if self.torch_device.type == "cpu" and not any(
            map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))
        ):
            raise ConfigError(
                "--compile needs a C++ compiler.",
                f"Install one ({', '.join(COMPILERS)}), or leave it out.",
            )
        if self.torch_device.type == "cuda" and find_spec("triton") is None:
            raise ConfigError(
                "--compile needs triton, which is not here.", "pip install triton, or leave it out."
            )
        blocks = getattr(model, "blocks", None)
        for part in blocks if isinstance(blocks, nn.ModuleList | nn.Sequential) else [model]:
            part.compile()

    def habits(self) -> dict[str, str]:
        """Say what is done on this kind of device besides its precision, and why."""
        kind = self.torch_device.type
        convolutions = "channels-last, which oneDNN and tensor cores work in"
        if kind == "cpu":
            attention = "in bf16 training with a backward pass of matrix products (benchmarks/attention.py), else torch's"
            images = "micro-batches whose activations stay below 32 MiB a layer, so that memory is used again"
            compiling = "off: it takes a minute or more before the first step, and little is gained; --compile"
        else:
            attention, images = (
                "torch's fused one",
                "the whole batch at once, halved where memory runs out",
            )
            compiling = "off; --compile compiles each kind of block once"
        transfer = "pinned, uint8, without waiting" if kind == "cuda" else "uint8"
        return {
            "convolutions": convolutions,
            "attention": attention,
            "a step takes": images,
            "optimizer": "AdamW, fused",
            "compiling": compiling,
            "images travel": transfer,
            "freed memory": "kept for the next step"
            if self.keeps_freed_memory
            else "as the allocator has it",
            "stochastic depth": "skips what it drops"
            if kind == "cpu"
            else "multiplies by zero: to skip, it would wait",
        }

    def restart_peak_memory(self) -> int | None:
        """Begin to count the peak anew; return what tensors take now, where the backend counts it."""
        if self.torch_device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        return torch.cuda.memory_allocated(self.torch_device)

    def free_memory_bytes(self) -> int | None:
        """Return the memory of its own that tensors may still take; None for a CPU, whose memory is the system's."""
        if self.torch_device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.torch_device)
            kept = torch.cuda.memory_reserved(self.torch_device) - torch.cuda.memory_allocated(
                self.torch_device
            )
            return int(free) + kept
        if self.torch_device.type == "mps":
            return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return None

    def loader_workers(self, requested: int) -> int:
        """Return how many loader processes to start: `requested`, or with -1 what the machine can feed.

        Without an accelerator the training itself needs the cores, so one loader in every two.
        """
        if requested >= 0:
            return requested
        cores = available_cores()
        return min(8, cores if self.torch_device.type == "cuda" else cores // 2)


def choose_device(name: str = "auto", precision: str = "auto") -> Device:
    """Choose a device and its training precision.

    Args:
        name: `auto` (CUDA, then MPS, then CPU), `cpu`, `mps`, `cuda` or `cuda:N`.
        precision: `auto` (bf16 where the hardware computes in it, fp16 on older CUDA, else fp32), or one of them.

    Raises:
        ConfigError: an unknown name, or a device that is not here.
    """
    device = _find(name)
    if (
        device == torch.device("cuda") and is_distributed()
    ):  # of several processes each takes the GPU of its number
        device = torch.device("cuda", local_rank() % torch.cuda.device_count())
    if precision != "auto":
        if precision not in PRECISIONS:
            raise ConfigError(
                f"There is no precision {precision!r}.",
                f"There are: auto, {', '.join(PRECISIONS)}.",
            )
        if precision == "fp16" and device.type == "cpu":
            raise ConfigError(
                "fp16 is not for CPUs: nothing there computes in it.", "Use bf16 or fp32."
            )
        return Device(device, PRECISIONS[precision], "as asked")
    dtype, reason = _best_dtype(device)
    return Device(device, dtype, reason)


def _find(name: str) -> torch.device:
    kind, _, index = name.partition(":")
    if kind == "auto":
        kind = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    if kind not in ("cpu", "mps", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise ConfigError(
            f"There is no device {name!r}.", "There are: auto, cpu, mps, cuda, cuda:N."
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "No CUDA device is available to this torch.",
            "`deitctl doctor` says what is; or --device cpu.",
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            "MPS is not available here.", "`deitctl doctor` says what is; or --device cpu."
        )
    if index and int(index) >= torch.cuda.device_count():
        raise ConfigError(
            f"There is no {name}: {torch.cuda.device_count()} CUDA device(s) are here."
        )
    return torch.device(f"{kind}:{index}" if index else kind)


def _best_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16, f"compute capability {major}.{minor} has bf16 tensor cores"
        return (
            torch.float16,
            f"compute capability {major}.{minor} is older than bf16 (8.0): fp16 with loss scaling",
        )
    if device.type == "mps":
        return torch.float32, "MPS autocast is not relied on"
    if cpu_has_bf16():
        return torch.bfloat16, "the CPU multiplies bf16 natively (AVX512-BF16, AMX or SVE)"
    return torch.float32, "the CPU has no bf16 instructions"


def cpu_has_bf16() -> bool:
    """Say whether this CPU multiplies bf16 in hardware, so that autocast gains instead of losing."""
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(
        found.get(k, False) for k in ("avx512_bf16", "amx_bf16", "sve_bf16", "arm_bf16", "bf16")
    )


INFERENCE_PRECISION = (
    "fp32"  # answers are compared to the last digit; speed there is asked for with --precision
)

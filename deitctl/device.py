"""Device and training precision: the only file that branches on CUDA, MPS and CPU."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from deitctl.arithmetic import prepare_cublas, set_arithmetic
from deitctl.config import TrainConfig
from deitctl.cores import count_cores
from deitctl.distributed import is_distributed, local_rank
from deitctl.errors import ConfigError
from deitctl.transfers import CopyStream, Event, PendingRead

OUT_OF_MEMORY = (  # in messages of the allocators of MPS and the CPU
    "ALLOC_FAILED",
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
)
# oneDNN's out-of-memory messages. Match them exactly: longer ones are other errors.
ONEDNN_OUT_OF_MEMORY = ("could not create a primitive", "could not create a memory object")
CPP_COMPILERS = ("g++", "clang++", "c++")
MAX_HEAP_BLOCK = 32 * 2**20  # bytes: glibc's DEFAULT_MMAP_THRESHOLD_MAX on 64-bit systems
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# Predictions must agree with timm's to the last digit; --precision chooses faster ones.
INFERENCE_PRECISION = "fp32"

T = TypeVar("T", Tensor, nn.Module)


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out."""
    # CUDA has an exception class for it; other backends only have messages.
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    message = str(error).strip() if isinstance(error, RuntimeError) else ""
    return message in ONEDNN_OUT_OF_MEMORY or any(part in message for part in OUT_OF_MEMORY)


@dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """What training does on a kind of device, besides the precision."""

    attention: str
    """`torch`: its fused kernels; `cpu_backward`: our faster backward pass for bf16 on CPUs."""
    channels_last: str
    """Models whose images lie channels-last: `convnets`, of several convolutions; a ViT has one."""
    max_activation_mib: int | None
    """Limit on a layer's activation, which sets the micro-batch size; null: no limit."""
    pins_memory: bool
    """Whether loaders pin their batches, so that copies to the device do not block."""
    keeps_freed_memory: bool
    """Whether malloc keeps freed memory for the next step."""
    skips_dropped_branches: bool
    """Whether stochastic depth skips a dropped branch; else it multiplies it by zero."""


@dataclass(frozen=True)
class Device:
    """A torch device, the autocast dtype of training on it, and the reason for that dtype."""

    torch_device: torch.device
    dtype: torch.dtype
    reason: str
    tf32: bool = False
    """Whether CUDA rounds the factors of fp32 products to 10 bits."""
    deterministic: bool = False
    """Whether all kernels are to repeat their bits."""

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Let torch compute on the device and as it says, for a block; what the program had set comes back.

        Raises:
            ConfigError: an operator has no kernel that repeats its bits.
        """
        # What is current is what is seeded, timed and waited for.
        is_cuda = self.torch_device.type == "cuda"
        with (
            torch.cuda.device(self.torch_device) if is_cuda else nullcontext(),
            set_arithmetic(tf32=self.tf32, deterministic=self.deterministic),
        ):
            yield

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which matrix products run in `dtype`."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.torch_device.type, self.dtype)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Return a loss scaler, which is enabled only in fp16."""
        return torch.amp.GradScaler(self.torch_device.type, enabled=self.dtype is torch.float16)

    def to_device(self, item: T) -> T:
        """Move a tensor or a model to the device; a pinned tensor goes to CUDA without waiting."""
        if isinstance(item, Tensor):
            return item.to(self.torch_device, non_blocking=self.pins_memory)
        item = item.to(self.torch_device)
        # Convolutions go channels-last, in which oneDNN and tensor cores work. A ViT has one, the
        # patch embedding, and gains nothing by it.
        has_convolutions = sum(isinstance(m, nn.Conv2d) for m in item.modules()) > 1
        return item.to(memory_format=torch.channels_last) if has_convolutions else item

    def pin(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the host in memory from which a copy to the device does not block."""
        return tensor.pin_memory() if self.pins_memory else tensor

    def read_later(self, values: Tensor) -> PendingRead:
        """Begin to copy values of the device to the host; nobody waits before they are looked at."""
        if self.is_synchronous:
            return PendingRead(values, None)
        if (
            not self.pins_memory
        ):  # MPS, whose copies that do not block are not waited for by anything
            return PendingRead(values.cpu(), None)
        host = self.pin(torch.empty(values.shape, dtype=values.dtype))
        host.copy_(values, non_blocking=True)
        return PendingRead(host, self.record_event())

    def open_copy_stream(self) -> CopyStream | None:
        """Return a queue for copies to the device beside its kernels; None where nothing is copied meanwhile."""
        return CopyStream(self.torch_device) if self.torch_device.type == "cuda" else None

    def record_event(self) -> Event:
        """Mark the present end of the device's queue."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.torch_device))
        return event

    @property
    def pins_memory(self) -> bool:
        """Whether loaders pin their batches."""
        return self.torch_device.type == "cuda"

    @property
    def precision(self) -> str:
        """The name of `dtype`, as --precision takes it."""
        if self.tf32:
            return "tf32"
        return next(name for name, dtype in PRECISIONS.items() if dtype is self.dtype)

    @property
    def is_synchronous(self) -> bool:
        """Whether `.item()` is free, because there is no queue of kernels to wait for."""
        return self.torch_device.type == "cpu"

    @property
    def compiles_by_default(self) -> bool:
        """Whether a run is compiled where a measurement says that it pays; CPUs gain little, MPS is not measured."""
        return self.torch_device.type == "cuda"

    def empty_cache(self) -> None:
        """Release the memory that the allocator caches."""
        gc.collect()
        if self.torch_device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.torch_device.type == "mps":
            torch.mps.empty_cache()
        elif sys.platform == "linux":
            # glibc keeps what was freed, and oneDNN then finds no room for the code it generates
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)

    @property
    def keeps_freed_memory(self) -> bool:
        """Whether `tune_malloc` applies: on CPUs, unless the environment configures malloc itself."""
        is_configured = "malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
            name.startswith("MALLOC_") for name in os.environ
        )
        return self.torch_device.type == "cpu" and sys.platform == "linux" and not is_configured

    def tune_malloc(self) -> None:
        """Let glibc keep freed memory for the next batch, also in forked processes."""
        # By default it returns the end of its heap to the system, and the next step pays for every
        # page of its activations again, up to a tenth of its CPU time. `empty_cache` releases it;
        # blocks above 32 MiB are returned at once all the same.
        if self.keeps_freed_memory:
            with suppress(OSError, AttributeError):  # another malloc than glibc's
                malloc = ctypes.CDLL(None)
                malloc.mallopt(M_TRIM_THRESHOLD, -1)
                malloc.mallopt(M_MMAP_THRESHOLD, MAX_HEAP_BLOCK)

    def synchronize(self) -> None:
        """Wait for all queued kernels."""
        if self.torch_device.type == "cuda":
            torch.cuda.synchronize(self.torch_device)
        elif self.torch_device.type == "mps":
            torch.mps.synchronize()

    def read_peak_memory(self) -> int | None:
        """Return the peak of memory allocated by tensors, None if the backend does not count it."""
        if self.torch_device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.torch_device)

    def reset_peak_memory(self) -> int | None:
        """Reset the peak; return the memory allocated now, None if the backend does not count it."""
        if self.torch_device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        return torch.cuda.memory_allocated(self.torch_device)

    def read_free_memory(self) -> int | None:
        """Return the device memory that is free for tensors; None on CPUs."""
        if self.torch_device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.torch_device)
            allocated = torch.cuda.memory_allocated(self.torch_device)
            return int(free) + torch.cuda.memory_reserved(self.torch_device) - allocated
        if self.torch_device.type == "mps":
            return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return None

    def preferred_micro_batch_size(self, largest_activation: int) -> int:
        """Return the images of a micro-batch that run fastest, 0 for any number.

        Args:
            largest_activation: bytes of the largest activation of one image.
        """
        # glibc returns blocks above 32 MiB to the system when they are freed, and the next step
        # pays for every page again: deit_small took twice the CPU time an image with micro-batches
        # of 64 images as with 32.
        if self.torch_device.type != "cpu" or not largest_activation:
            return 0
        fitting = MAX_HEAP_BLOCK // largest_activation
        # a power of two, even for mixing pairs
        return max(2, 1 << max(1, fitting.bit_length() - 1))

    def choose_num_workers(self, requested: int, *, in_memory: bool = False) -> int:
        """Return the number of loader processes: `requested`, or with -1 by the cores.

        Args:
            requested: as configured.
            in_memory: whether the images are in memory, decoded.
        """
        if requested >= 0:
            return requested
        # A view of a digit takes 0.1 ms. A process that loads them cost 0.1 s of CPU time in every
        # validation of 0.2 s, to start and to pass on the images, and took a core from the network.
        if in_memory and self.torch_device.type == "cpu":
            return 0
        # Training on the CPU needs cores itself, so one loader for every two.
        cores = count_cores()
        # A core renders some 390 views of ImageNet a second, and a GPU of 2022 takes 4,500.
        if self.torch_device.type == "cuda":
            return min(16, cores)
        return min(8, cores if self.torch_device.type == "mps" else cores // 2)

    def describe_settings(self) -> DeviceSettings:
        """Return what differs between kinds of devices, besides the precision."""
        is_cpu = self.torch_device.type == "cpu"
        return DeviceSettings(
            attention="cpu_backward" if is_cpu and self.dtype is torch.bfloat16 else "torch",
            channels_last="convnets",
            max_activation_mib=MAX_HEAP_BLOCK // 2**20 if is_cpu else None,
            pins_memory=self.pins_memory,
            keeps_freed_memory=self.keeps_freed_memory,
            skips_dropped_branches=is_cpu,
        )


def choose_run_device(config: TrainConfig) -> Device:
    """Return the device of a training run; raises as `choose_device`."""
    return choose_device(config.device, config.precision, deterministic=config.deterministic)


def choose_device(
    name: str = "auto", precision: str = "auto", *, deterministic: bool = False
) -> Device:
    """Choose a device and its training precision.

    Args:
        name: `auto` (CUDA, then MPS, then CPU), `cpu`, `mps`, `cuda` or `cuda:N`.
        precision: `auto` (bf16 where the hardware has it, fp16 on older CUDA, else fp32), `fp32`,
            `tf32` (fp32 with rounded products), `bf16` or `fp16`.
        deterministic: whether kernels are to repeat their bits.

    Raises:
        ConfigError: an unknown name, or a device that is not available.
    """
    if deterministic:
        prepare_cublas()  # before anything starts CUDA
    device = _find_device(name)
    if device == torch.device("cuda") and is_distributed():  # one GPU a process
        device = torch.device("cuda", local_rank() % torch.cuda.device_count())
    if precision == "auto":
        return Device(device, *_choose_dtype(device), deterministic=deterministic)
    if precision not in PRECISIONS:
        raise ConfigError(
            f"There is no precision {precision!r}.", f"There are: auto, {', '.join(PRECISIONS)}."
        )
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("fp16 is not for CPUs, which do not compute in it.", "Use bf16 or fp32.")
    if precision == "tf32":
        _require_tf32(device)
    return Device(
        device,
        PRECISIONS[precision],
        "chosen with --precision",
        tf32=precision == "tf32",
        deterministic=deterministic,
    )


def _require_tf32(device: torch.device) -> None:
    if device.type != "cuda":
        raise ConfigError(
            f"TF32 is NVIDIA's, and this device is {device.type}.", "Use fp32 or bf16."
        )
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise ConfigError(
            f"This GPU's compute capability is {major}.{minor}, and TF32 begins at 8.0.",
            "Use fp32 or fp16.",
        )


def _find_device(name: str) -> torch.device:
    kind, _, index = name.partition(":")
    if kind == "auto" and torch.cuda.is_available():
        kind = "cuda"
    elif kind == "auto":
        kind = "mps" if torch.backends.mps.is_available() else "cpu"
    if kind not in ("cpu", "mps", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise ConfigError(
            f"There is no device {name!r}.", "There are: auto, cpu, mps, cuda, cuda:N."
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "No CUDA device is available to this torch.",
            "See `deitctl doctor`, or use --device cpu.",
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("MPS is not available.", "See `deitctl doctor`, or use --device cpu.")
    if index and int(index) >= torch.cuda.device_count():
        raise ConfigError(
            f"There is no {name}: this machine has {torch.cuda.device_count()} CUDA device(s)."
        )
    return torch.device(f"{kind}:{index}" if index else kind)


def _choose_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """Return the autocast dtype of training with `--precision auto`, and the reason."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16, f"compute capability {major}.{minor} has bf16 tensor cores"
        reason = f"compute capability {major}.{minor} is older than bf16 (8.0): fp16, loss scaling"
        return torch.float16, reason
    if device.type == "mps":
        return torch.float32, "MPS: autocast only with --precision bf16 or fp16"
    if cpu_has_bf16():
        return torch.bfloat16, "the CPU multiplies bf16 natively (AVX512-BF16, AMX or SVE)"
    return torch.float32, "the CPU has no bf16 instructions"


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bf16 in hardware; if not, autocast is slower."""
    flags: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(
        flags.get(name, False)
        for name in ("avx512_bf16", "amx_bf16", "sve_bf16", "arm_bf16", "bf16")
    )

"""The accelerators of this machine, and what torch computes with there: GPUs, attention kernel, compiler, NCCL."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import distributed as dist
from torch.nn.attention import SDPBackend

from deitctl.device import CPP_COMPILERS, Device

MIB = 2**20
ATTENTION_SHAPE = (2, 3, 198, 64)
"""Images, heads, tokens and numbers a head of deit_tiny at 224 pixels, [B,A,N,D]."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A CUDA device of this machine."""

    name: str
    """As NVIDIA calls it."""
    memory_mib: int
    """All that it has."""
    capability: str
    """Compute capability: bf16 and TF32 begin at 8.0."""


def list_gpus() -> list[Gpu]:
    """Return the CUDA devices by their numbers: cuda:0, cuda:1 ..."""
    if not torch.cuda.is_available():
        return []
    gpus = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [
        Gpu(name=g.name, memory_mib=g.total_memory // MIB, capability=f"{g.major}.{g.minor}")
        for g in gpus
    ]


def find_attention_kernel(device: Device) -> str:
    """Return what torch computes a ViT's attention with in training: `flash`, `cudnn`, `efficient` or `math`."""
    if device.torch_device.type == "mps":
        return "math"  # torch chooses between kernels on CPUs and CUDA alone
    query = torch.zeros(ATTENTION_SHAPE, dtype=device.dtype, device=device.torch_device)
    query.requires_grad_()
    with device.computing():
        choice = SDPBackend(torch._fused_sdp_choice(query, query, query))
    return choice.name.removesuffix("_ATTENTION").lower()


def find_compiler(device: Device) -> str | None:
    """Return what `--compile` compiles with on a device: a C++ compiler, `triton` or `metal`; None: it is missing."""
    kind = device.torch_device.type
    if kind == "cuda":
        return "triton" if find_spec("triton") is not None else None
    if kind == "mps":
        return "metal"
    return next(filter(shutil.which, filter(None, (os.environ.get("CXX"), *CPP_COMPILERS))), None)


def read_nccl_version() -> str | None:
    """Return the version of NCCL, by which several GPUs sum; None where torch has none."""
    if not (torch.cuda.is_available() and dist.is_nccl_available()):
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]

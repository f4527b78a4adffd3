"""The environment that `deitctl doctor` reports: versions, device, precision, weights."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import deitctl
from deitctl.cores import count_cores
from deitctl.data.lazy_jpeg import load_jpeg_decoder
from deitctl.data.open_file import read_max_open_files
from deitctl.device import INFERENCE_PRECISION, DeviceSettings, choose_device
from deitctl.free_memory import read_free_memory
from deitctl.home import cache_root, can_write, find_home
from deitctl.launchers import read_rank
from deitctl.models.catalog import ARCHITECTURES
from deitctl.models.weights import WEIGHTS_VARIABLE, find_local_weights
from deitctl.profiling.accelerators import (
    Gpu,
    find_attention_kernel,
    find_compiler,
    list_gpus,
    read_nccl_version,
)

PACKAGES = (
    "torch",
    "torchvision",
    "torchcodec",
    "timm",
    "pillow",
    "numpy",
    "safetensors",
    "huggingface_hub",
)
# By module: another distribution may provide it, as onnxruntime-gpu does. Those of pyproject.toml,
# which the metadata of a tree that is not installed does not have.
EXTRAS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "coreml": ("coremltools",),
    "executorch": ("executorch",),
    "transformers": ("transformers",),
    "parquet": ("pyarrow",),
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "azure": ("adlfs",),
    "http": ("fsspec",),
    "heif": ("pillow_heif",),
    "mlflow": ("mlflow",),
    "sweep": ("optuna",),
    "tensorboard": ("tensorboard",),
    "tiff": ("tifffile", "imagecodecs"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
MIB = 2**20
SHARED_MEMORY = "/dev/shm"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What is on this machine, what deitctl uses of it, and why."""

    deitctl: str
    """Version."""
    python: str
    """Version."""
    platform: str
    """Operating system."""
    packages: dict[str, str | None]
    """Versions; null: not installed."""
    jpeg_decoder: str
    """What decodes training JPEGs: `torchcodec`, `torchvision` or `pillow`."""
    device: str
    """`cpu`, `mps`, `cuda` or `cuda:N`."""
    device_name: str
    """The GPU's name, or the processor's architecture."""
    device_memory_mib: int | None
    """Of a GPU; null for others."""
    free_memory_mib: int | None
    """That tensors may take now; null where the system does not say."""
    gpus: list[Gpu]
    """All CUDA devices, by number."""
    mps_is_available: bool
    """Whether this torch computes on Apple's GPU."""
    num_processes: int
    """Processes of torchrun that share the work; 1 without it."""
    nccl: str | None
    """Version of what sums over several GPUs; null: no GPU, or a torch without it."""
    training_precision: str
    """`fp32`, `tf32`, `bf16` or `fp16`."""
    training_precision_reason: str
    """Why."""
    inference_precision: str
    """Unless --precision is passed."""
    rounds_to_tf32: bool
    """Whether CUDA rounds the factors of fp32 products to 10 bits: with --precision tf32 alone."""
    attention_kernel: str
    """Of torch for a ViT in training: `flash`, `cudnn`, `efficient` or `math`."""
    compiler: str | None
    """What --compile compiles with: a C++ compiler, `triton` or `metal`; null: missing."""
    compiles_by_default: bool
    """Whether --compile auto compiles where a measurement at the start says that it pays."""
    device_settings: DeviceSettings
    num_workers: int
    """Loader processes of a training."""
    num_cores: int
    """Cores that this process may use."""
    num_threads: int
    """Threads that torch uses."""
    missing_packages: dict[str, list[str]]
    """What is to be installed for each extra (`onnx`, `openvino` ...); empty: nothing, it works."""
    local_weights: list[str]
    """Models whose published weights are on this machine."""
    weights_dir: str | None
    """$DEITCTL_WEIGHTS."""
    free_disk_mib: int
    """In the current folder."""
    free_shared_memory_mib: int | None
    """In /dev/shm, of which a container has 64 MB by default; null: there is none."""
    max_open_files: int | None
    """File descriptors that a process may have (`ulimit -n`); null where the system has no limit."""
    home: str
    """The user's folder; `/` if the system knows none, as for `docker run --user 12345`."""
    cache_dir: str
    """Of fine-tuned teachers, their targets and indexes: $DEITCTL_CACHE, or below the home."""
    cache_is_writable: bool
    """If not, a folder below the temporary one takes what is new, and does not outlive a container."""


def collect_env(device: str = "auto", precision: str = "auto") -> Environment:
    """Describe this machine and what deitctl would use on it.

    Args:
        device: as `--device`.
        precision: as `--precision`.

    Raises:
        ConfigError: the requested device or precision is not available.
    """
    chosen = choose_device(device, precision)
    torch_device = chosen.torch_device
    cuda = torch.cuda.get_device_properties(torch_device) if torch_device.type == "cuda" else None
    # a container may allow less than the machine has
    free = read_free_memory(chosen)
    return Environment(
        deitctl=deitctl.__version__,
        python=platform.python_version(),
        platform=platform.platform(terse=True),
        packages={name: _find_version(name) for name in PACKAGES},
        jpeg_decoder=load_jpeg_decoder().name,
        device=str(torch_device),
        device_name=cuda.name if cuda else platform.machine(),
        device_memory_mib=cuda.total_memory // MIB if cuda else None,
        free_memory_mib=None if free is None else free // MIB,
        gpus=list_gpus(),
        mps_is_available=torch.backends.mps.is_available(),
        num_processes=read_rank("WORLD_SIZE"),
        nccl=read_nccl_version(),
        training_precision=chosen.precision,
        training_precision_reason=chosen.reason,
        inference_precision=INFERENCE_PRECISION,
        rounds_to_tf32=chosen.tf32,
        attention_kernel=find_attention_kernel(chosen),
        compiler=find_compiler(chosen),
        compiles_by_default=chosen.compiles_by_default,
        device_settings=chosen.describe_settings(),
        num_workers=chosen.choose_num_workers(-1),
        num_cores=count_cores(),
        num_threads=torch.get_num_threads(),
        missing_packages={
            extra: [module for module in modules if importlib.util.find_spec(module) is None]
            for extra, modules in EXTRAS.items()
        },
        local_weights=[a.alias for a in ARCHITECTURES if find_local_weights(a) is not None],
        weights_dir=os.environ.get(WEIGHTS_VARIABLE),
        free_disk_mib=shutil.disk_usage(Path.cwd()).free // MIB,
        free_shared_memory_mib=_read_free_shared_memory(),
        max_open_files=read_max_open_files(),
        home=str(find_home()),
        cache_dir=str(cache_root()),
        cache_is_writable=can_write(cache_root()),
    )


def _read_free_shared_memory() -> int | None:
    return shutil.disk_usage(SHARED_MEMORY).free // MIB if os.path.isdir(SHARED_MEMORY) else None


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

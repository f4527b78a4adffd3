"""What is on this machine, what will be used, and why."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import deitctl
from deitctl.device import INFERENCE_PRECISION, choose_device
from deitctl.models.catalog import ARCHITECTURES
from deitctl.models.weights import WEIGHTS_VARIABLE, local_weights

PACKAGES = ("torch", "torchvision", "timm", "pillow", "numpy", "safetensors", "huggingface_hub")
EXTRAS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "parquet": ("pyarrow",)}


def collect_env(device: str, precision: str) -> dict[str, str]:
    """Return findings by name: versions, device, precision and its reason, threads, weights, disk.

    Raises:
        ConfigError: the device or precision that was asked for is not here.
    """
    chosen = choose_device(device, precision)
    findings = {
        "deitctl": deitctl.__version__,
        "python": f"{platform.python_version()} on {platform.platform(terse=True)}",
        **{name: _version(name) for name in PACKAGES},
        "device": _describe(chosen.torch_device),
        "training precision": f"{str(chosen.dtype).removeprefix('torch.')}: {chosen.reason}",
        **chosen.describe(),
        "inference precision": f"{INFERENCE_PRECISION}, unless --precision says otherwise",
        "loader processes": str(chosen.loader_workers(-1)),
        "threads": str(torch.get_num_threads()),
    }
    for extra, modules in EXTRAS.items():
        absent = [m for m in modules if importlib.util.find_spec(m) is None]
        findings[f"extra {extra}"] = (
            f"pip install 'deitctl[{extra}]' (lacks {', '.join(absent)})" if absent else "installed"
        )
    here = [a.alias for a in ARCHITECTURES if local_weights(a) is not None]
    findings["weights here"] = ", ".join(here) or "none yet; they are downloaded when first used"
    findings[f"${WEIGHTS_VARIABLE}"] = os.environ.get(WEIGHTS_VARIABLE, "not set")
    findings["free disk here"] = f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB"
    return findings


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{device}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return str(device)

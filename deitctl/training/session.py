"""On what a run was trained: `sessions.jsonl` has a line for each time that it was started or resumed."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

import deitctl
from deitctl.data.fingerprint import fingerprint_model
from deitctl.data.lazy_jpeg import load_jpeg_decoder
from deitctl.device import Device
from deitctl.paths import open_regular, write_bytes

if TYPE_CHECKING:
    from deitctl.training.trainer import Trainer

FILE = "sessions.jsonl"
PACKAGES = ("timm", "numpy", "pillow")
MAX_BYTES = 1 << 26
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Session:
    """What decides the last bits of a training, beside its settings and data."""

    step: int
    """Steps done when it began."""
    deitctl: str
    """Version, as the packages below."""
    python: str
    torch: str
    timm: str
    numpy: str
    pillow: str
    jpeg_decoder: str
    """`torchcodec`, `torchvision` or `pillow`; empty where no image is a file."""
    device: str
    """torch's name of the device."""
    device_name: str
    """Of the GPU, or of the processor."""
    precision: str
    """`fp32`, `tf32`, `bf16` or `fp16`."""
    num_threads: int
    """Threads of torch."""
    num_processes: int
    """Of torchrun."""
    cpu_capability: str
    """Instructions that torch's kernels use: `AVX2` or `AVX512` for example."""
    blas: str
    """Library of the CPU's matrix products that torch was built with."""
    initial_weights: str
    """Hash of the weights before the first step, the head included; empty for a resumed session."""


MACHINE_FIELDS = tuple(f.name for f in fields(Session) if f.name not in ("step", "initial_weights"))
"""What may differ from machine to machine, and may change the last bits."""


def describe_session(trainer: Trainer) -> Session:
    """Return the session that a trainer begins, after its checkpoint was loaded."""
    step, in_memory = trainer.state.progress.step, trainer.setup.train.is_in_memory
    sharding, initial = trainer.state.sharding, ""
    if not step:
        initial = sharding.fingerprint if sharding else fingerprint_model(trainer.state.model)
    return Session(
        step=step,
        initial_weights=initial,
        **describe_machine(trainer.device, trainer.world.size, is_in_memory=in_memory),
    )


def describe_machine(device: Device, num_processes: int, *, is_in_memory: bool) -> dict[str, Any]:
    """Return the versions and properties of this machine, by the names of `MACHINE_FIELDS`.

    Args:
        device: that is trained on.
        num_processes: of torchrun.
        is_in_memory: whether no image is decoded.
    """
    is_cuda = device.torch_device.type == "cuda"
    return {
        "deitctl": deitctl.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: _find_version(name) for name in PACKAGES},
        "jpeg_decoder": "" if is_in_memory else load_jpeg_decoder().name,
        "device": str(device.torch_device),
        "device_name": torch.cuda.get_device_name(device.torch_device) if is_cuda else _name_cpu(),
        "precision": device.precision,
        "num_threads": torch.get_num_threads(),
        "num_processes": num_processes,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": _name_blas(),
    }


def write_session(root: Path, session: Session) -> None:
    """Add a session to a run's; those that began at its step or later have left nothing.

    Raises:
        DiskError: the file cannot be written.
    """
    before = [earlier for earlier in read_sessions(root) if earlier.step < session.step]
    lines = [json.dumps(asdict(each)) + "\n" for each in (*before, session)]
    write_bytes(root / FILE, "".join(lines).encode())


def read_sessions(root: Path) -> list[Session]:
    """Return the sessions of a run in their order; none where an earlier version wrote them, or nobody."""
    with (
        suppress(OSError, ValueError, RecursionError),
        open_regular(root / FILE, MAX_BYTES) as file,
    ):
        return list(_parse(file.read().decode()))
    return []


def _parse(text: str) -> Iterator[Session]:
    """Yield the sessions in a file; raise `ValueError` for what is none."""
    for line in text.splitlines():
        values: Any = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"{line!r:.80} is no session")
        # Others are a later version's.
        own = {f.name: values.get(f.name, "") for f in fields(Session)}
        if not all(type(own[n]) is int for n in ("step", "num_threads", "num_processes")):
            raise ValueError(f"{line!r:.80} is no session")
        texts = {n: v if isinstance(v, int) else str(v) for n, v in own.items()}
        yield Session(**cast(dict[str, Any], texts))


def _find_version(package: str) -> str:
    try:
        return version(package)  # without its import: a DeiT is trained without timm
    except PackageNotFoundError:
        return ""


def _name_cpu() -> str:
    with suppress(OSError):
        name = re.search(r"^model name\s*: (.+)$", CPU_INFO.read_text(), re.M)
        if name:
            return name[1].strip()
    return platform.processor() or platform.machine()


def _name_blas() -> str:
    built_with = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return built_with[1] if built_with else ""

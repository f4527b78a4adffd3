"""`.pt2` files that torch alone runs: the network as a graph, or compiled by AOTInductor."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import torch

from deitctl.errors import ExportError
from deitctl.exporters.metadata import METADATA
from deitctl.exporters.network import (
    ExportedClassifier,
    silence_warnings,
    trace,
    wrap_conversion_errors,
)
from deitctl.models.model_config import ModelConfig
from deitctl.paths import write_bytes


def export_torch(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write a network for `torch.export.load`, atomically; torch requires a path in `.pt2`.

    `torch.export.load(path, extra_files={"deitctl.json": ""})` fills in the metadata, as JSON.

    Raises:
        ExportError: the model does something that a graph cannot hold.
    """
    program = trace(network)
    buffer = io.BytesIO()
    with silence_warnings():
        torch.export.save(
            program, buffer, extra_files={METADATA: json.dumps(dict(metadata), ensure_ascii=False)}
        )
    write_bytes(path, buffer.getvalue())


def export_aoti(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Compile a network for `aoti_load_package`, for this kind of CPU and this version of torch.

    The metadata get `torch_version` and, by the compiler, `AOTI_CPU_ISA`: where the file runs.
    `aoti_load_package(path).loader.get_metadata()` returns them. Torch requires a path in `.pt2`.

    Raises:
        ExportError: the model does something that a graph cannot hold, or cannot be compiled.
    """
    from torch._inductor import aoti_compile_and_package

    program = trace(network)
    configs = {
        "aot_inductor.metadata": {**metadata, "torch_version": torch.__version__},
        "aot_inductor.precompile_headers": False,  # takes half a minute and serves one file
    }
    with tempfile.TemporaryDirectory(prefix="deitctl-aoti-") as folder:
        package = Path(folder) / "network.pt2"
        # a cache of its own: another machine's compiled code must never be found in the user's
        with (
            wrap_conversion_errors("The model cannot be compiled", "Use --to torch, which is not."),
            torch.no_grad(),
            patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"}),
        ):
            aoti_compile_and_package(program, package_path=str(package), inductor_configs=configs)
        write_bytes(path, package.read_bytes())


def require_compiler() -> None:
    """Raise `ExportError` if there is no C++ compiler."""
    # torch's choice
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(
        sys.platform, "g++"
    )
    if shutil.which(compiler) is None:
        raise ExportError(
            f"This export compiles the network, and there is no C++ compiler {compiler!r} here.",
            "Install it, or name yours in CXX.",
        )


def read_torch_metadata(path: Path) -> dict[str, str]:
    """Return what `export_torch` stored, read without torch; none of another program's file."""
    return _read_archived_json(path, f"/extra/{METADATA}")


def read_aoti_metadata(path: Path) -> dict[str, str]:
    """Return what `export_aoti` and the compiler stored, read without torch."""
    return _read_archived_json(path, ".wrapper_metadata.json")


def _read_archived_json(path: Path, ending: str) -> dict[str, str]:
    """Return the metadata in the file of an archive whose name ends so."""
    try:
        # Never torch.export.load for this: it falls back to unpickling, and evaluates expressions
        # of the file.
        with zipfile.ZipFile(path) as archive:
            # By ending, because the first folder in the archive is named after the file that it was
            # saved as.
            names = [name for name in archive.namelist() if name.endswith(ending)]
            metadata = json.loads(archive.read(names[0])) if names else {}
            return {key: str(value) for key, value in metadata.items()}
    except Exception as error:  # zipfile raises a dozen classes for a damaged archive
        raise ExportError(f"{path} is not a readable .pt2 file: {error}") from error

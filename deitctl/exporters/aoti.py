"""AOTInductor: the network compiled to machine code, for this kind of CPU and this version of torch."""

from __future__ import annotations

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
from deitctl.exporters.network import ExportedClassifier, quietly, trace
from deitctl.models.model_config import ModelConfig
from deitctl.paths import write_bytes

PINNED = "AOTI_"
"""What names begin with by which the compiler says for which machine it has compiled."""


def require_compiler() -> None:
    """Raise `ExportError` if there is no C++ compiler."""
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(
        sys.platform, "g++"
    )  # torch's choice
    if shutil.which(compiler) is None:
        raise ExportError(
            f"This export compiles the network, and there is no C++ compiler {compiler!r} here.",
            "Install it, or name yours in CXX.",
        )


def export_aoti(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write a network for `torch._inductor.aoti_load_package`, whole or not at all.

    The metadata gets `torch_version` and, by the compiler, `AOTI_CPU_ISA` and the like: where the file runs.

    Args:
        network: what to write.
        model_config: its config.
        metadata: what `aoti_load_package(PATH).loader.get_metadata()` gives back.
        path: the file; torch wants it to end in `.pt2`.

    Raises:
        ExportError: the model does something that a graph cannot hold, or cannot be compiled.
    """
    from torch._inductor import aoti_compile_and_package

    program = trace(network)
    how = {
        "aot_inductor.metadata": {**metadata, "torch_version": torch.__version__},
        "aot_inductor.precompile_headers": False,  # what takes half a minute and serves one file
    }
    with tempfile.TemporaryDirectory(prefix="deitctl-aoti-") as folder:
        package = Path(folder) / "network.pt2"
        try:
            # what the compiler leaves behind is kept out of the user's cache: another machine's must never be found in it
            with (
                quietly(),
                torch.no_grad(),
                patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"}),
            ):
                aoti_compile_and_package(program, package_path=str(package), inductor_configs=how)
        except (
            Exception
        ) as error:  # whatever the compiler's code raises, and the C++ compiler's own words
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise ExportError(
                f"The model cannot be compiled: {first}", "Use --to torch, which is not."
            ) from error
        write_bytes(path, package.read_bytes())


def read_metadata(path: Path) -> dict[str, str]:
    """Return what `export_aoti` was told to keep, and what machine it is for, read without torch.

    Raises:
        ExportError: no such file, or one that cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name for name in archive.namelist() if name.endswith(".wrapper_metadata.json")]
            return (
                {k: str(v) for k, v in json.loads(archive.read(found[0])).items()} if found else {}
            )
    except Exception as error:  # zipfile has a dozen ways to say that an archive is damaged
        raise ExportError(f"{path} is not a readable .pt2 file: {error}") from error

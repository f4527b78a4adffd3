"""Models for other programs: what can be written, by what, and what proves it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from deitctl.card import ModelCard
from deitctl.errors import ExportError
from deitctl.exporters import aoti, coreml, executorch, openvino, timm_folder, transformers_folder
from deitctl.exporters.network import ExportedClassifier, quietly
from deitctl.exporters.onnx import export_onnx
from deitctl.exporters.quantize import PRECISIONS, quantize_onnx
from deitctl.exporters.speed import speedup
from deitctl.exporters.torch_export import export_torch
from deitctl.exporters.verify import (
    COREML_TOLERANCE,
    EXECUTORCH_TOLERANCE,
    ONNX_TOLERANCE,
    OPENVINO_TOLERANCE,
    TIMM_TOLERANCE,
    TORCH_TOLERANCE,
    TRANSFORMERS_TOLERANCE,
)


@dataclass(frozen=True, kw_only=True)
class Format:
    """One thing to export to."""

    suffix: str
    """Ending of the default name."""
    write: Callable[[ExportedClassifier, ModelCard, Mapping[str, str], Path], None]
    program: str
    """The script beside this file that runs the export in a fresh process."""
    tolerance: float
    files: tuple[str, ...] = ()
    """What a folder has, beside README.md; empty for a format that is one file."""
    usage: str = ""
    """Python that loads the folder, for its README.md; `PATH` is where it is."""
    labels: Callable[[ModelCard], list[str]] | None = None
    """What the classes are called by a reader that preprocesses pictures itself, which is then proven too."""
    head: str = ""
    """The rule by which the format's own reader joins two heads, where the file does not hold ours."""
    extra: str = ""
    """The extra of `pip install 'deitctl[EXTRA]'` that has `packages`."""
    packages: tuple[str, ...] = ()
    runs_on: str = ""
    """`macOS` where that alone has its runtime: elsewhere it is written and not proved. Empty: anywhere."""
    check: Callable[[], None] | None = None
    """Raises `ExportError` where something is missing that is no package."""
    has_bare: bool = False
    """Whether it can be written without preprocessing."""
    precisions: tuple[str, ...] = ()
    """What it can be rounded to, names of `PRECISIONS`."""
    quantize: Callable[[Path, str, Path], None] | None = None
    """Writes what `write` has written anew: from where, in which precision, to where."""
    speedup: Callable[[Path, Path], float] | None = None
    """How many times as fast as a first file a second answers; None where rounding changes the size alone."""

    @property
    def is_folder(self) -> bool:
        return bool(self.files)

    @property
    def program_file(self) -> Path:
        return Path(__file__).with_name(self.program)

    @property
    def runs_here(self) -> bool:
        return self.runs_on != "macOS" or sys.platform == "darwin"

    def require(self) -> None:
        """Raise `ExportError` if a package or what else it needs is missing, before any work."""
        for package in self.packages:
            try:
                with quietly():
                    import_module(package)
            except ImportError as error:
                raise ExportError(f"This export needs {package}.", f"pip install 'deitctl[{self.extra}]'") from error
        if self.check is not None:
            self.check()


FORMATS = {
    "onnx": Format(
        suffix=".onnx", write=export_onnx, program="run_onnx.py", tolerance=ONNX_TOLERANCE,
        extra="onnx", packages=("onnx", "onnxscript", "onnxruntime"), has_bare=True,
        precisions=tuple(PRECISIONS), quantize=quantize_onnx, speedup=speedup,
    ),
    "torch": Format(suffix=".pt2", write=export_torch, program="run_torch.py", tolerance=TORCH_TOLERANCE),
    "timm": Format(
        suffix="-timm", write=timm_folder.export_timm_folder, program="run_timm.py", tolerance=TIMM_TOLERANCE,
        files=timm_folder.FILES, usage=timm_folder.USAGE, head=timm_folder.HEAD,
    ),
    "transformers": Format(
        suffix="-transformers", write=transformers_folder.export_transformers, program="run_transformers.py",
        tolerance=TRANSFORMERS_TOLERANCE, files=transformers_folder.FILES, usage=transformers_folder.USAGE,
        labels=transformers_folder.labels, head=transformers_folder.HEAD, extra="transformers", packages=("transformers",),
    ),
    "openvino": Format(
        suffix="-openvino", write=openvino.export_openvino, program="run_openvino.py", tolerance=OPENVINO_TOLERANCE,
        files=openvino.FILES, usage=openvino.USAGE, extra="openvino", packages=("openvino",),
        precisions=("fp16",), quantize=openvino.quantize_openvino,
    ),
    "coreml": Format(
        suffix=".mlpackage", write=coreml.export_coreml, program="run_coreml.py", tolerance=COREML_TOLERANCE,
        extra="coreml", packages=("coremltools",), runs_on="macOS",
    ),
    "executorch": Format(
        suffix=".pte", write=executorch.export_executorch, program="run_executorch.py", tolerance=EXECUTORCH_TOLERANCE,
        extra="executorch", packages=("executorch.exir",),
    ),
    "aoti": Format(
        suffix="-aoti.pt2", write=aoti.export_aoti, program="run_aoti.py", tolerance=TORCH_TOLERANCE,
        check=aoti.require_compiler,
    ),
}  # fmt: skip

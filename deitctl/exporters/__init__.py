"""Models for other programs: what can be written, by what, and what proves it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from deitctl.data.eval_transform import Pixels
from deitctl.errors import ExportError
from deitctl.events import Reporter
from deitctl.exporters import (
    aoti,
    coreml,
    executorch,
    onnx,
    openvino,
    timm_folder,
    torch_export,
    transformers_folder,
    web_folder,
    web_runtime,
)
from deitctl.exporters.compare_outputs import (
    COREML_TOLERANCE,
    EXECUTORCH_TOLERANCE,
    ONNX_TOLERANCE,
    OPENVINO_TOLERANCE,
    TIMM_TOLERANCE,
    TORCH_TOLERANCE,
    TRANSFORMERS_TOLERANCE,
)
from deitctl.exporters.metadata import FORMAT, read_metadata
from deitctl.exporters.network import ExportedClassifier, quietly
from deitctl.exporters.quantize import PRECISIONS, quantize_onnx
from deitctl.exporters.speed import speedup
from deitctl.models.model_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Format:
    """One thing to export to."""

    suffix: str
    """Ending of the default name."""
    write: Callable[[ExportedClassifier, ModelConfig, Mapping[str, str], Path], None]
    program: str
    """The script beside this file that runs the export in a fresh process."""
    tolerance: float
    files: tuple[str, ...] = ()
    """What a folder has, beside README.md; empty for a format that is one file."""
    usage: str = ""
    """Python that loads the folder, for its README.md, which it has then; `PATH` is where it is."""
    model: str = ""
    """The ONNX file of a folder, which can be rounded; empty where it is all that is written."""
    provide: Callable[[str, Reporter], None] | None = None
    """Makes sure of a runtime that is written too: takes the user's own copy, or an empty text."""
    labels: Callable[[ModelConfig], list[str]] | None = None
    """What the classes are called by a reader that preprocesses images itself, which is then proven too."""
    head: str = ""
    """The rule by which the format's own reader joins two heads, where the file does not hold ours."""
    extra: str = ""
    """The extra of `pip install 'deitctl[EXTRA]'` that has `packages`."""
    packages: tuple[str, ...] = ()
    """What runs it."""
    writers: tuple[str, ...] = ()
    """What else writes it."""
    read_metadata: Callable[[Path], dict[str, str]]
    """Gives back the strings that `write` was given."""
    runs_on: str = ""
    """`macOS` where that alone has its runtime: elsewhere it is written and not proved. Empty: anywhere."""
    check: Callable[[], None] | None = None
    """Raises `ExportError` where something is missing that is no package."""
    has_variants: bool = False
    """Whether it can be written without preprocessing, and for images of any size."""
    precisions: tuple[str, ...] = ()
    """What it can be rounded to, names of `PRECISIONS`."""
    quantize: Callable[[Path, str, Path, Pixels | None], None] | None = None
    """Writes what `write` has written anew: from where, in which precision, to where, by which images."""
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

    def require(self, *, writing: bool = True) -> None:
        """Raise `ExportError` if a package or what else it needs is missing, before any work."""
        for package in (*self.packages, *(self.writers if writing else ())):
            try:
                with quietly():
                    import_module(package)
            except ImportError as error:
                raise ExportError(
                    f"This export needs {package.partition('.')[0]}.",
                    f"pip install 'deitctl[{self.extra}]'",
                ) from error
        if writing and self.check is not None:
            self.check()


ONNX = ("onnx", "onnxruntime")
FORMATS = {
    "onnx": Format(
        suffix=".onnx",
        write=onnx.export_onnx,
        read_metadata=onnx.read_metadata,
        program="run_onnx.py",
        tolerance=ONNX_TOLERANCE,
        extra="onnx",
        packages=ONNX,
        writers=("onnxscript",),
        has_variants=True,
        precisions=tuple(PRECISIONS),
        quantize=quantize_onnx,
        speedup=speedup,
    ),
    "torch": Format(
        suffix=".pt2",
        write=torch_export.export_torch,
        read_metadata=torch_export.read_metadata,
        program="run_torch.py",
        tolerance=TORCH_TOLERANCE,
    ),
    "timm": Format(
        suffix="-timm",
        write=timm_folder.export_timm_folder,
        read_metadata=read_metadata,
        program="run_timm.py",
        tolerance=TIMM_TOLERANCE,
        files=timm_folder.FILES,
        usage=timm_folder.USAGE,
        head=timm_folder.HEAD,
    ),
    "transformers": Format(
        suffix="-transformers",
        write=transformers_folder.export_transformers,
        read_metadata=read_metadata,
        program="run_transformers.py",
        tolerance=TRANSFORMERS_TOLERANCE,
        extra="transformers",
        packages=("transformers",),
        files=transformers_folder.FILES,
        usage=transformers_folder.USAGE,
        head=transformers_folder.HEAD,
        labels=transformers_folder.labels,
    ),
    "openvino": Format(
        suffix="-openvino",
        write=openvino.export_openvino,
        read_metadata=openvino.read_metadata,
        program="run_openvino.py",
        tolerance=OPENVINO_TOLERANCE,
        extra="openvino",
        packages=("openvino",),
        files=openvino.FILES,
        usage=openvino.USAGE,
        precisions=("fp16",),
        quantize=openvino.quantize_openvino,
    ),
    "web": Format(
        suffix="-web",
        write=web_folder.export_web,
        read_metadata=web_folder.read_metadata,
        program="run_web.py",
        tolerance=ONNX_TOLERANCE,
        extra="onnx",
        packages=ONNX,
        writers=("onnxscript",),
        files=web_folder.FILES,
        model=web_folder.MODEL,
        provide=web_runtime.provide,
        precisions=tuple(PRECISIONS),
        quantize=quantize_onnx,
        speedup=speedup,
    ),
    "coreml": Format(
        suffix=".mlpackage",
        write=coreml.export_coreml,
        read_metadata=coreml.read_metadata,
        program="run_coreml.py",
        tolerance=COREML_TOLERANCE,
        extra="coreml",
        packages=("coremltools",),
        runs_on="macOS",
    ),
    "executorch": Format(
        suffix=".pte",
        write=executorch.export_executorch,
        read_metadata=executorch.read_metadata,
        program="run_executorch.py",
        tolerance=EXECUTORCH_TOLERANCE,
        extra="executorch",
        packages=("executorch.exir",),
    ),
    "aoti": Format(
        suffix="-aoti.pt2",
        write=aoti.export_aoti,
        read_metadata=aoti.read_metadata,
        program="run_aoti.py",
        tolerance=TORCH_TOLERANCE,
        check=aoti.require_compiler,
    ),
}


def recognize(path: Path) -> tuple[str, Format]:
    """Return the name and the format of what `export` wrote.

    Raises:
        ExportError: there is nothing, or nothing of ours.
    """
    if not path.exists():
        raise ExportError(f"There is no export {str(path)!r}.")
    for name, kind in sorted(FORMATS.items(), key=lambda entry: -len(entry[1].files)):
        if _looks_like(path, kind):
            kind.require(writing=False)
            if kind.read_metadata(path).get(FORMAT) == name:
                return name, kind
    inside = (
        sorted((path / "export").iterdir() if (path / "export").is_dir() else path.iterdir())
        if path.is_dir()
        else []
    )
    named = [
        str(other) for other in inside if any(_looks_like(other, kind) for kind in FORMATS.values())
    ]
    raise ExportError(
        f"{path} is no export of deitctl's, or one of an older version.",
        f"Name one of these: {', '.join(named[:5])}."
        if named
        else f"`deitctl export` writes: {', '.join(FORMATS)}.",
    )


def _looks_like(path: Path, kind: Format) -> bool:
    """Say whether the names fit, before anything is opened."""
    if kind.is_folder:
        return path.is_dir() and all((path / name).exists() for name in kind.files)
    return path.suffix == Path(f"x{kind.suffix}").suffix  # a Core ML package is a folder

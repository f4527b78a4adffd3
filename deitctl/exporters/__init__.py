"""Models for other programs: what can be written, by what, and what proves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from deitctl.card import ModelCard
from deitctl.errors import ExportError
from deitctl.exporters import onnx, timm_folder, torch_export, transformers_folder
from deitctl.exporters.metadata import FORMAT, read_metadata
from deitctl.exporters.network import ExportedClassifier
from deitctl.exporters.verify import ONNX_TOLERANCE, TIMM_TOLERANCE, TORCH_TOLERANCE, TRANSFORMERS_TOLERANCE


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
    read_metadata: Callable[[Path], dict[str, str]]
    """Gives back the strings that `write` was given."""
    has_variants: bool = False
    """Whether it can be rounded (`quantize`) and written without preprocessing."""

    @property
    def is_folder(self) -> bool:
        return bool(self.files)

    @property
    def program_file(self) -> Path:
        return Path(__file__).with_name(self.program)

    def require(self) -> None:
        """Raise `ExportError` if a package is missing, before any work."""
        for package in self.packages:
            try:
                import_module(package)
            except ImportError as error:
                raise ExportError(f"This export needs {package}.", f"pip install 'deitctl[{self.extra}]'") from error


FORMATS = {
    "onnx": Format(
        suffix=".onnx", write=onnx.export_onnx, read_metadata=onnx.read_metadata, program="run_onnx.py", tolerance=ONNX_TOLERANCE,
        extra="onnx", packages=("onnx", "onnxscript", "onnxruntime"), has_variants=True,
    ),
    "torch": Format(
        suffix=".pt2", write=torch_export.export_torch, read_metadata=torch_export.read_metadata, program="run_torch.py",
        tolerance=TORCH_TOLERANCE,
    ),
    "timm": Format(
        suffix="-timm", write=timm_folder.export_timm_folder, program="run_timm.py", tolerance=TIMM_TOLERANCE,
        files=timm_folder.FILES, read_metadata=read_metadata, usage=timm_folder.USAGE, head=timm_folder.HEAD,
    ),
    "transformers": Format(
        suffix="-transformers", write=transformers_folder.export_transformers, program="run_transformers.py",
        tolerance=TRANSFORMERS_TOLERANCE, files=transformers_folder.FILES, read_metadata=read_metadata, usage=transformers_folder.USAGE,
        labels=transformers_folder.labels, head=transformers_folder.HEAD, extra="transformers", packages=("transformers",),
    ),
}  # fmt: skip


def recognise(path: Path) -> tuple[str, Format]:
    """Return the name and the format of what `export` wrote.

    Raises:
        ExportError: there is nothing, or nothing of ours.
    """
    if not path.exists():
        raise ExportError(f"There is no export {str(path)!r}.")
    for name, kind in sorted(FORMATS.items(), key=lambda entry: -len(entry[1].files)):
        if _looks_like(path, kind):
            kind.require()
            if kind.read_metadata(path).get(FORMAT) == name:
                return name, kind
    raise ExportError(
        f"{path} is no export of deitctl's, or of an older one.", f"There are: {', '.join(FORMATS)}. Export it again."
    )


def _looks_like(path: Path, kind: Format) -> bool:
    """Say whether the names fit, before anything is opened."""
    if kind.is_folder:
        return path.is_dir() and all((path / name).exists() for name in kind.files)
    return path.is_file() and path.suffix == Path(f"x{kind.suffix}").suffix

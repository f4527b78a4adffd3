"""The formats of `deitctl export`: writer, required packages, tolerance, and variants of each."""

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
    coreml,
    executorch,
    hub_folders,
    metadata,
    onnx,
    openvino,
    torch_export,
    web,
)
from deitctl.exporters.network import ExportedClassifier, silence_warnings
from deitctl.exporters.quantize import PRECISIONS, measure_speedup, quantize_onnx
from deitctl.models.model_config import ModelConfig
from deitctl.models.tasks import MULTILABEL
from deitctl.paths import suggest_path


@dataclass(frozen=True, kw_only=True)
class Format:
    """One thing to export to."""

    name: str
    """What `--to` and runner.py call it."""
    suffix: str
    """Ending of the default file name."""
    write: Callable[[ExportedClassifier, ModelConfig, Mapping[str, str], Path], None]
    """Writes a network, its model's config and metadata strings to a file or folder."""
    read_metadata: Callable[[Path], dict[str, str]]
    """Returns the metadata that `write` got."""
    tolerance: float
    """The largest difference of a logit or a probability that passes; logits are units apart."""
    files: tuple[str, ...] = ()
    """Files of a folder, without README.md; empty for a format that is one file."""
    usage: str = ""
    """Python that loads the folder from `PATH`, for its README.md; empty: it has none."""
    multilabel_usage: str = ""
    """The same for a multi-label model, whose temperature `TEMPERATURE` is, fused by the rule `HEAD`."""
    head: str = ""
    """How the format's own reader fuses two heads, where the file does not hold our rule."""
    labels: Callable[[ModelConfig], list[str]] | None = None
    """The labels of a reader that preprocesses images itself, which is then verified too."""
    extra: str = ""
    """The extra of deitctl's own package that has `packages` and `writers`."""
    packages: tuple[str, ...] = ()
    """Packages that run it."""
    writers: tuple[str, ...] = ()
    """Packages that are needed to write it, besides."""
    check: Callable[[], None] | None = None
    """Raises `ExportError` where something is missing that is no package."""
    provide_runtime: Callable[[str, Reporter], None] | None = None
    """Provides a runtime that the folder holds, from a downloaded archive or an empty string."""
    runs_on: str = ""
    """`macOS` where only that has its runtime: elsewhere it is written, not verified."""
    has_variants: bool = False
    """Whether it can be written without preprocessing, and for images of any size."""
    model_file: str = ""
    """The file of a folder that is quantized; empty: all that was written."""
    precisions: tuple[str, ...] = ()
    """What it can be quantized to, names of `PRECISIONS`."""
    quantize: Callable[[Path, str, Path, Pixels | None], None] | None = None
    """Quantizes what `write` wrote: source, precision, target, calibration images."""
    measure_speedup: Callable[[Path, Path, Pixels], float] | None = None
    """Returns the second file's speed relative to the first; None: quantization changes none."""

    @property
    def is_folder(self) -> bool:
        return bool(self.files)

    def choose_usage(self, network: ExportedClassifier) -> str:
        """Return the Python that loads the folder of a network."""
        if network.task != MULTILABEL:
            return self.usage
        usage = self.multilabel_usage.replace("TEMPERATURE", repr(network.temperature))
        return usage.replace("HEAD", network.head)

    @property
    def runs_here(self) -> bool:
        return self.runs_on != "macOS" or sys.platform == "darwin"

    def require(self, *, writing: bool = True) -> None:
        """Raise `ExportError` if a package or what else it needs is missing, before any work."""
        for package in (*self.packages, *(self.writers if writing else ())):
            try:
                # coremltools, timm and executorch warn at import, coremltools of every torch above
                # 2.7.
                with silence_warnings():
                    import_module(package)
            except ImportError as error:
                raise ExportError(
                    f"This export needs {package.partition('.')[0]}.",
                    f"Install what it needs: `pip install {' '.join(self.requirements)}`.",
                ) from error
        if writing and self.check is not None:
            self.check()

    @property
    def requirements(self) -> list[str]:
        """What pip installs to write and run it, the contents of its extra."""
        names = (*self.packages, *self.writers)
        return list(dict.fromkeys(name.partition(".")[0] for name in names))

    def matches_names(self, path: Path) -> bool:
        """Return whether the names of a file or folder fit, without opening anything."""
        if self.is_folder:
            return path.is_dir() and all((path / name).exists() for name in self.files)
        return path.suffix == Path(f"x{self.suffix}").suffix  # a Core ML package is a folder


_FORMATS = (
    Format(
        name="onnx",
        suffix=".onnx",
        write=onnx.export_onnx,
        read_metadata=onnx.read_metadata,
        # other kernels, other order of summing: 3e-5 measured; a wrong weight or pixel: > 1e-2
        tolerance=1e-3,
        extra="onnx",
        packages=("onnx", "onnxruntime"),
        writers=("onnxscript",),
        has_variants=True,
        precisions=tuple(PRECISIONS),
        quantize=quantize_onnx,
        measure_speedup=measure_speedup,
    ),
    Format(
        name="torch",
        suffix=".pt2",
        write=torch_export.export_torch,
        read_metadata=torch_export.read_torch_metadata,
        tolerance=1e-4,  # the same kernels on a graph of smaller steps: 2e-6 measured
    ),
    Format(
        name="timm",
        suffix="-timm",
        write=hub_folders.export_timm,
        read_metadata=metadata.read_metadata,
        tolerance=1e-4,  # timm's code for the same steps: 2e-6 measured
        files=hub_folders.TIMM_FILES,
        usage=hub_folders.TIMM_USAGE,
        multilabel_usage=hub_folders.TIMM_MULTILABEL_USAGE,
        head=hub_folders.HEAD,
    ),
    Format(
        name="transformers",
        suffix="-transformers",
        write=hub_folders.export_transformers,
        read_metadata=metadata.read_metadata,
        tolerance=1e-4,  # the same steps again: 3e-6 measured
        extra="transformers",
        packages=("transformers",),
        files=hub_folders.TRANSFORMERS_FILES,
        usage=hub_folders.TRANSFORMERS_USAGE,
        multilabel_usage=hub_folders.TRANSFORMERS_MULTILABEL_USAGE,
        head=hub_folders.HEAD,
        labels=hub_folders.get_unique_labels,
    ),
    Format(
        name="openvino",
        suffix="-openvino",
        write=openvino.export_openvino,
        read_metadata=openvino.read_metadata,
        tolerance=1e-3,  # as ONNX: 3e-5 measured
        extra="openvino",
        packages=("openvino",),
        files=openvino.FILES,
        usage=openvino.USAGE,
        multilabel_usage=openvino.MULTILABEL_USAGE,
        precisions=("fp16",),
        quantize=openvino.quantize_openvino,
    ),
    Format(
        name="web",
        suffix="-web",
        write=web.export_web,
        read_metadata=web.read_metadata,
        tolerance=1e-3,  # as ONNX, which it contains
        extra="onnx",
        packages=("onnx", "onnxruntime"),
        writers=("onnxscript",),
        files=web.FILES,
        model_file=web.MODEL,
        provide_runtime=web.provide_runtime,
        precisions=tuple(PRECISIONS),
        quantize=quantize_onnx,
        measure_speedup=measure_speedup,
    ),
    Format(
        name="coreml",
        suffix=".mlpackage",
        write=coreml.export_coreml,
        read_metadata=coreml.read_metadata,
        tolerance=1e-3,  # as ONNX; never measured
        extra="coreml",
        packages=("coremltools",),
        runs_on="macOS",
    ),
    Format(
        name="executorch",
        suffix=".pte",
        write=executorch.export_executorch,
        read_metadata=executorch.read_metadata,
        tolerance=1e-3,  # as ONNX
        extra="executorch",
        packages=("executorch.exir",),
    ),
    Format(
        name="aoti",
        suffix="-aoti.pt2",
        write=torch_export.export_aoti,
        read_metadata=torch_export.read_aoti_metadata,
        tolerance=1e-4,  # as torch
        check=torch_export.require_compiler,
    ),
)
FORMATS = {format_.name: format_ for format_ in _FORMATS}


def recognize_export(path: Path) -> Format:
    """Return the format of what `export` wrote.

    Raises:
        ExportError: there is nothing, or no export of deitctl's.
    """
    if not path.exists():
        raise ExportError(f"There is no export {str(path)!r}.", suggest_path(path))
    # folders with the most files first: a transformers folder has all the names of a timm folder
    for kind in sorted(FORMATS.values(), key=lambda kind: -len(kind.files)):
        if kind.matches_names(path):
            kind.require(writing=False)
            # Names alone do not tell: torch and aoti are both `.pt2`, and any timm folder has
            # timm's names.
            if kind.read_metadata(path).get(metadata.FORMAT) == kind.name:
                return kind
    folder = path / "export" if (path / "export").is_dir() else path
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    exports = [
        str(other)
        for other in inside
        if any(kind.matches_names(other) for kind in FORMATS.values())
    ]
    raise ExportError(
        f"{path} is no export of deitctl's, or one of an older version.",
        f"Name one of these: {', '.join(exports[:5])}."
        if exports
        else f"`deitctl export` writes: {', '.join(FORMATS)}.",
    )

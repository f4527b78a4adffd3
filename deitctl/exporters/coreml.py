"""Core ML: an `.mlpackage` for Apple's systems, written anywhere and run on macOS."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from deitctl.errors import ExportError
from deitctl.exporters.dynamic_size import require_square_rgb
from deitctl.exporters.hub_folders import get_unique_labels
from deitctl.exporters.network import ExportedClassifier, silence_warnings, wrap_conversion_errors
from deitctl.models.model_config import ModelConfig
from deitctl.paths import write_bytes

MANIFEST = "Manifest.json"
# In the order of writing: the manifest last, because without it the folder is no package.
PARTS = (
    "Data/com.apple.CoreML/weights/weight.bin",
    "Data/com.apple.CoreML/model.mlmodel",
    MANIFEST,
)
LABELS = "labels"
"""Metadata key of the labels in the order of the logits, as probabilities are a dictionary."""


class _ImageClassifier(nn.Module):
    """An exported network that takes what Core ML makes of an image."""

    def __init__(self, network: ExportedClassifier) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Classify one RGB image [1,3,S,S], levels of 0 to 255 in fp32."""
        # An ImageType of coremltools is NCHW, the exported network takes the pixels as they are in
        # memory, NHWC.
        outputs: tuple[Tensor, ...] = self.network(image.permute(0, 2, 3, 1))
        return tuple(output.float() for output in outputs)  # Core ML has no booleans


def export_coreml(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write a classifier from an image to `label`, `probabilities` by label, and `logits`.

    Core ML's classifiers have one label: of a multi-label model all three are arrays, and `labels` has 0
    and 1. It computes in fp32. The metadata become the model's `userDefined` ones, beside the labels; the
    path must end in `.mlpackage`.

    Raises:
        ExportError: the model cannot be traced, or has an operation that Core ML lacks.
    """
    pre = model_config.preprocessing
    size = require_square_rgb(pre, "--to coreml", "Use --to onnx.")
    names = get_unique_labels(model_config)
    with (
        wrap_conversion_errors(
            "The model cannot be written for Core ML", "Use --to onnx or --to torch."
        ),
        torch.no_grad(),
        redirect_stderr(io.StringIO()),  # the converter draws bars there
    ):
        program = _trace(_ImageClassifier(network), size)
        convert = _convert_multilabel if model_config.is_multilabel else _convert_classifier
        model = convert(program, names, size)
    architecture, num_classes = model_config.architecture, model_config.num_classes
    model.short_description = (
        f"{architecture}, {num_classes} classes, heads fused by {network.head}"
    )
    model.input_description["image"] = (
        f"RGB, {size} x {size}, resized and cropped as `preprocessing` in the metadata says"
    )
    model.user_defined_metadata.update({**metadata, LABELS: json.dumps(names, ensure_ascii=False)})
    with tempfile.TemporaryDirectory(prefix="deitctl-coreml-") as folder, silence_warnings():
        package = Path(folder) / "model.mlpackage"
        # Elsewhere first: the copies below are atomic, save() is not.
        model.save(str(package))
        for name in PARTS:  # the manifest last: without it, it is no package
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path / name, (package / name).read_bytes())


def _trace(network: nn.Module, size: int) -> torch.export.ExportedProgram:
    # coremltools 9.0 fails on a traced TorchScript of fixed shape ("only 0-dimensional arrays can
    # be converted to Python scalars"). An ExportedProgram converts, once it is lowered to the ATEN
    # dialect.
    example = torch.zeros(1, 3, size, size)
    program = torch.export.export(network, (example,), strict=True)
    return cast(torch.export.ExportedProgram, program.run_decompositions({}))


def _convert(program: torch.export.ExportedProgram, size: int, **options: Any) -> Any:
    import coremltools as ct

    return ct.convert(
        program,
        inputs=[
            ct.ImageType(name="image", shape=(1, 3, size, size), color_layout=ct.colorlayout.RGB)
        ],
        minimum_deployment_target=ct.target.iOS16,
        # The default is fp16, for the Neural Engine: its outputs would be beyond the tolerance.
        compute_precision=ct.precision.FLOAT32,
        # Loading needs Core ML itself, which is on macOS alone.
        skip_model_load=True,
        **options,
    )


def _convert_multilabel(program: torch.export.ExportedProgram, _: list[str], size: int) -> Any:
    import coremltools as ct

    names = ("logits", "probabilities", "labels")
    return _convert(program, size, outputs=[ct.TensorType(name=name) for name in names])


def _convert_classifier(program: torch.export.ExportedProgram, names: list[str], size: int) -> Any:
    import coremltools as ct

    config = ct.ClassifierConfig(names, predicted_feature_name="label")
    model = _convert(program, size, classifier_config=config)
    # renamed afterwards: `convert` refuses names of outputs together with a list of labels
    spec = model.get_spec()
    (logits,) = (
        output.name
        for output in spec.description.output
        if output.type.WhichOneof("Type") == "multiArrayType"
    )
    ct.utils.rename_feature(spec, logits, "logits")
    ct.utils.rename_feature(spec, spec.description.predictedProbabilitiesName, "probabilities")
    return ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a package, read by coremltools without Core ML.

    Raises:
        ExportError: no such package, or one that cannot be read.
    """
    with silence_warnings():
        # The protobuf alone: MLModel would load the package, which only macOS can.
        from coremltools.proto import Model_pb2
    try:
        spec = Model_pb2.Model.FromString((path / PARTS[1]).read_bytes())
    except Exception as error:  # protobuf's own classes, which differ from version to version
        raise ExportError(f"{path} is not a readable Core ML package: {error}") from error
    return dict(spec.description.metadata.userDefined)

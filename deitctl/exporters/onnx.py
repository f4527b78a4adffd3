"""ONNX: one file that onnxruntime and other runtimes run without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deitctl.errors import ExportError
from deitctl.exporters.network import ExportedClassifier, trace, wrap_conversion_errors
from deitctl.models.model_config import ModelConfig
from deitctl.paths import write_bytes

OPSET = 20  # the first with Gelu as one operation
# The exporter writes 10, which onnxruntime 1.17, the first with opset 20, does not read.
IR_VERSION = 9
MAX_BYTES = 2**31 - 2**24  # protobuf ends at 2 GiB; 16 MiB are left to the graph


def export_onnx(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write a network as one ONNX file, atomically.

    Readers find the metadata as the model's custom metadata.

    Raises:
        ExportError: the network has an operation that ONNX lacks, or is too large for a file.
    """
    size = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    if size > MAX_BYTES:
        raise ExportError(
            f"{model_config.architecture} has {size / 2**30:.1f} GiB of weights, "
            "and one ONNX file ends at 2 GiB.",
            "Use --to torch or --to timm.",
        )
    write_bytes(path, _to_proto(network, metadata).SerializeToString())


def _to_proto(network: ExportedClassifier, metadata: Mapping[str, str]) -> Any:
    program = trace(network)
    with wrap_conversion_errors(
        "The model cannot be written as ONNX", "Use --to torch or --to timm."
    ):
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            # torch's default writes the weights to a second file, even for DeiT-tiny.
            external_data=False,
            # Otherwise the exporter prints its progress to stdout, into the records of --format
            # json.
            verbose=False,
            dynamic_shapes=({0: "batch"},),
            input_names=[network.input_name],
            output_names=list(network.output_names),
        )
    assert converted is not None
    for node in converted.model.graph.all_nodes():
        node.metadata_props.clear()  # torch's debugging information, a tenth of the graph and more
    converted.model.metadata_props.update(metadata)
    proto = converted.model_proto
    proto.ir_version = IR_VERSION
    return proto


def read_metadata(path: Path) -> dict[str, str]:
    """Return the custom metadata of an ONNX file, read without onnxruntime and without its weights.

    Raises:
        ExportError: no such file, or one that cannot be read.
    """
    import onnx

    try:
        # External data of an untrusted file may name any path on this machine.
        properties = read_properties(onnx.load(path, load_external_data=False))
    except Exception as error:  # protobuf's own classes, which differ from version to version
        raise ExportError(
            f"{path} is not a readable ONNX file: {error}", "Export it again."
        ) from error
    # protobuf returns bytes for what is no UTF-8
    if not all(isinstance(text, str) for entry in properties.items() for text in entry):
        raise ExportError(f"{path} has metadata that cannot be read.", "Export it again.")
    return properties


def read_properties(model: Any) -> dict[str, str]:
    """Return the custom metadata of an onnx.ModelProto."""
    return {entry.key: entry.value for entry in model.metadata_props}

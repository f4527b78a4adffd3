"""ExecuTorch: one `.pte` for phones and boards, its matrix products done by XNNPACK."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from deitctl.errors import ExportError
from deitctl.exporters.network import ExportedClassifier, quietly, trace
from deitctl.models.model_config import ModelConfig
from deitctl.paths import write_bytes

MOST = 16
"""Images of a batch at most: memory is planned beforehand, for the largest."""
METADATA = "metadata"
"""The method of the file that answers with the metadata, as JSON."""


def export_executorch(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write a network for `executorch.runtime.Runtime.get().load_program(PATH)`, whole or not at all.

    Args:
        network: what to write.
        model_config: its config.
        metadata: what the file's method `metadata` answers, as JSON.
        path: the file.

    Raises:
        ExportError: the model does something that a graph cannot hold, or has an operation that ExecuTorch lacks.
    """
    program = trace(network, most=MOST)
    said = {METADATA: json.dumps(dict(metadata), ensure_ascii=False)}
    try:
        with quietly():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            lowered = to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()], constant_methods=said
            )
            data = bytes(lowered.to_executorch().buffer)
    except Exception as error:  # the compiler raises whatever its passes raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ExportError(
            f"The model cannot be written for ExecuTorch: {first}", "Use --to onnx or --to torch."
        ) from error
    write_bytes(path, data)


def read_metadata(path: Path) -> dict[str, str]:
    """Return what `export_executorch` was told to keep; ExecuTorch's runtime reads it, the network is not loaded.

    Raises:
        ExportError: no such file, or one that cannot be read.
    """
    with quietly():
        from executorch.runtime import Runtime
    try:
        program = Runtime.get().load_program(path.read_bytes())
        if METADATA not in program.method_names:
            return {}
        (said,) = program.load_method(METADATA).execute(())
        return {key: str(value) for key, value in json.loads(said).items()}
    except (
        Exception
    ) as error:  # the runtime has one class for all its codes, the file system has others
        raise ExportError(f"{path} is not a readable .pte file: {error}") from error

"""ExecuTorch: one `.pte` for phones and boards, its matrix products computed by XNNPACK."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from deitctl.errors import ExportError
from deitctl.exporters.network import (
    ExportedClassifier,
    silence_warnings,
    trace,
    wrap_conversion_errors,
)
from deitctl.models.model_config import ModelConfig
from deitctl.paths import write_bytes

MAX_BATCH = 16
"""Images in a batch at most: ExecuTorch plans memory at export, for the largest."""
METADATA = "metadata"
"""The method of the program that returns the metadata, as JSON."""


def export_executorch(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write a network for `executorch.runtime.Runtime.get().load_program(PATH)`, atomically.

    The program's method `metadata` returns the metadata, as JSON.

    Raises:
        ExportError: the model cannot be traced, or has an operation that ExecuTorch lacks.
    """
    program = trace(network, max_batch=MAX_BATCH)
    methods = {METADATA: json.dumps(dict(metadata), ensure_ascii=False)}
    with wrap_conversion_errors(
        "The model cannot be written for ExecuTorch", "Use --to onnx or --to torch."
    ):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods=methods
        )
        data = bytes(lowered.to_executorch().buffer)
    write_bytes(path, data)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a file, read by ExecuTorch's runtime without loading the network.

    Raises:
        ExportError: no such file, or one that cannot be read.
    """
    with silence_warnings():
        from executorch.runtime import Runtime
    try:
        program = Runtime.get().load_program(path.read_bytes())
        if METADATA not in program.method_names:
            return {}
        (metadata,) = program.load_method(METADATA).execute(())
        return {key: str(value) for key, value in json.loads(metadata).items()}
    except (
        Exception
    ) as error:  # the runtime has one class for all its codes, the file system others
        raise ExportError(f"{path} is not a readable .pte file: {error}") from error

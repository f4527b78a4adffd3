"""A `.pt2` file: the network as a graph that torch alone loads and runs."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from deitctl.errors import ExportError
from deitctl.exporters.metadata import METADATA
from deitctl.exporters.network import ExportedClassifier, quietly, trace
from deitctl.models.model_config import ModelConfig
from deitctl.paths import write_bytes


def export_torch(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write a network for `torch.export.load`, whole or not at all.

    Args:
        network: what to write.
        model_config: its config.
        metadata: what `load(path, extra_files={"deitctl.json": ""})` gives back, as JSON.
        path: the file; torch wants it to end in `.pt2`.

    Raises:
        ExportError: the model does something that a graph cannot hold.
    """
    program = trace(network)
    buffer = io.BytesIO()
    with quietly():
        torch.export.save(
            program, buffer, extra_files={METADATA: json.dumps(dict(metadata), ensure_ascii=False)}
        )
    write_bytes(path, buffer.getvalue())


def read_metadata(path: Path) -> dict[str, str]:
    """Return what `export_torch` was told to keep, read without torch; nothing of a file that somebody else wrote.

    Raises:
        ExportError: no such file, or one that cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name for name in archive.namelist() if name.endswith(f"/extra/{METADATA}")]
            return (
                {k: str(v) for k, v in json.loads(archive.read(found[0])).items()} if found else {}
            )
    except Exception as error:  # zipfile has a dozen ways to say that an archive is damaged
        raise ExportError(f"{path} is not a readable .pt2 file: {error}") from error

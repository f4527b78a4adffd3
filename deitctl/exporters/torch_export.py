"""A `.pt2` file: the network as a graph that torch alone loads and runs."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from deitctl.card import ModelCard
from deitctl.checkpoint import write_bytes
from deitctl.exporters.network import ExportedClassifier, quietly, trace

METADATA = "deitctl.json"


def export_torch(network: ExportedClassifier, card: ModelCard, metadata: Mapping[str, str], path: Path) -> None:
    """Write a network for `torch.export.load`, whole or not at all.

    Args:
        network: what to write.
        card: its card.
        metadata: what `load(path, extra_files={"deitctl.json": ""})` gives back, as JSON.
        path: the file; torch wants it to end in `.pt2`.

    Raises:
        ExportError: the model does something that a graph cannot hold.
    """
    program = trace(network)
    buffer = io.BytesIO()
    with quietly():
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(dict(metadata), ensure_ascii=False)})
    write_bytes(path, buffer.getvalue())

"""What an export says of itself, and the file that holds it in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from deitctl.errors import ExportError
from deitctl.exporters.compare_outputs import reference
from deitctl.exporters.golden import GOLDEN, golden_input, golden_sample
from deitctl.exporters.network import BareClassifier, ExportedClassifier, describe
from deitctl.models.model_config import ModelConfig
from deitctl.paths import read_json, write_json

METADATA = "deitctl.json"
FORMAT = "format"


def metadata_of(network: ExportedClassifier, model_config: ModelConfig, to: str) -> dict[str, str]:
    """Return what travels with an export: `describe`'s, the format's name, and the golden sample."""
    pixels = golden_input(model_config.preprocessing.img_size)
    logits = reference(network.model, model_config, network.head, pixels)[0, 0]
    said = describe(model_config, network.head, bare=isinstance(network, BareClassifier))
    return {**said, FORMAT: to, GOLDEN: golden_sample(logits)}


def write_metadata(folder: Path, metadata: Mapping[str, str]) -> None:
    """Write what a folder says of itself, whole or not at all."""
    write_json(folder / METADATA, dict(metadata))


def read_metadata(folder: Path) -> dict[str, str]:
    """Read what a folder of ours says of itself.

    Raises:
        ExportError: it says nothing, or nothing that can be read.
    """
    path = folder / METADATA
    if not path.is_file():
        raise ExportError(
            f"{folder} has no {METADATA}: it was not exported by deitctl, or by an older one."
        )
    try:
        return texts(read_json(path), path)
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}", "Export it again.") from error


def texts(found: object, where: Path) -> dict[str, str]:
    """Return metadata as it was written, a name and a text each; raise `ExportError` for anything else."""
    if not isinstance(found, dict) or not all(
        isinstance(x, str) for pair in found.items() for x in pair
    ):
        raise ExportError(f"{where} has metadata that cannot be read.", "Export it again.")
    return found

"""A folder that any file server serves: a page that classifies images in the browser, and all that it needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from deitctl import __version__
from deitctl.exporters import onnx
from deitctl.exporters.attention_network import TOKENS, AttendingClassifier
from deitctl.exporters.network import ExportedClassifier
from deitctl.exporters.web_runtime import BINARY, SCRIPT, VERSION, runtime_files
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.models.vit import VisionTransformer
from deitctl.paths import write_bytes

MODEL, ABOUT = "model.onnx", "model.json"
PAGE = (
    "index.html",
    "style.css",
    "served.js",
    "page.js",
    "result.js",
    "heat.js",
    "worker.js",
    "decode.js",
    "view.js",
    "resample.js",
    "LICENSE-onnxruntime.txt",
)
FILES = (*PAGE, MODEL, ABOUT, SCRIPT, BINARY)


def export_web(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write the folder of a page.

    Args:
        network: what answers; a DeiT of ours gives the attention of its tokens too, other models do without.
        model_config: its config.
        metadata: strings for model.onnx.
        path: the folder.

    Raises:
        ExportError: the model cannot be written as ONNX, or onnxruntime-web is not there, see `web_runtime.provide`.
    """
    runtime = runtime_files()
    if isinstance(network.model, VisionTransformer):
        network = AttendingClassifier(network.model, model_config, network.head)
    onnx.export_onnx(network, model_config, metadata, path / MODEL)
    about = json.dumps(describe_for_page(network, model_config), ensure_ascii=False)
    write_bytes(path / ABOUT, about.encode())
    for name, data in runtime.items():
        write_bytes(path / name, data)
    for name in PAGE:
        write_bytes(path / name, files("deitctl.exporters").joinpath("page", name).read_bytes())


def describe_for_page(network: ExportedClassifier, model_config: ModelConfig) -> dict[str, object]:
    """Return model.json: what the page's scripts, which cannot read the metadata of model.onnx, have to know."""
    tokens = network.tokens if isinstance(network, AttendingClassifier) else 0
    return {
        "deitctl": __version__,
        "runtime": VERSION,
        "architecture": model_config.architecture,
        "head": network.head,
        "temperature": network.temperature,
        "tokens": TOKENS[:tokens],
        "labels": [model_config.label(index) for index in range(model_config.num_classes)],
        "names": model_config.class_names if model_config.descriptions is not None else None,
        "preprocessing": describe_preprocessing(model_config.preprocessing),
    }


def describe_preprocessing(pre: Preprocessing) -> dict[str, object]:
    """Return how view.js makes of an image what `eval_transform` makes of it."""
    return {
        "imgSize": pre.img_size,
        "resizeTo": pre.resize_to,
        "cropMode": pre.crop_mode,
        "interpolation": pre.interpolation,
    }


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a folder's model.onnx; raise as `onnx.read_metadata`."""
    return onnx.read_metadata(path / MODEL)

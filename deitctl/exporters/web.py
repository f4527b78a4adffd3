"""A folder for any file server: a page that classifies images with onnxruntime-web.

onnxruntime-web is fetched once from npm's registry, checked by its hash, and kept in the cache.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from deitctl import __version__
from deitctl.errors import DataError, ExportError
from deitctl.events import Reporter
from deitctl.exporters import onnx
from deitctl.exporters.dynamic_size import require_square_rgb
from deitctl.exporters.network import TOKENS, AttentionClassifier, ExportedClassifier
from deitctl.home import can_write, choose_cache_path, expand_home
from deitctl.inference.download import fetch
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.models.vit import VisionTransformer
from deitctl.paths import read_regular, write_bytes
from deitctl.records import SCHEMA_VERSION

# Pinned by hash: what runs in the visitor's browser is the file that the page was tested with.
VERSION = "1.30.0"
ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"
ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/{ARCHIVE}"
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the archive, as the registry states it for this version."""
VARIABLE = "DEITCTL_ORT_WEB"
MAX_BYTES = 64 * 2**20
DOWNLOAD_SECONDS = 600
"""For 33 MB; half a megabit a second is enough."""

MODEL, MODEL_INFO = "model.onnx", "model.json"
SCRIPT, BINARY = "onnxruntime.js", "onnxruntime.wasm"
PARTS = {
    # .js: some servers do not know .mjs and call it no script
    SCRIPT: "package/dist/ort.wasm.bundle.min.mjs",
    # runs in one thread where threads are not allowed
    BINARY: "package/dist/ort-wasm-simd-threaded.wasm",
}
"""What the page loads, and where the archive has it: two of its two hundred files, 14 of 180 MB."""
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
FILES = (*PAGE, MODEL, MODEL_INFO, SCRIPT, BINARY)


def export_web(
    network: ExportedClassifier, model_config: ModelConfig, metadata: Mapping[str, str], path: Path
) -> None:
    """Write the folder of a page.

    A DeiT of ours outputs its tokens' attention too. The metadata go to model.onnx.

    Raises:
        ExportError: the model cannot be written as ONNX, or onnxruntime-web is missing.
    """
    require_square_rgb(model_config.preprocessing, "--to web", "Use --to onnx.")
    runtime = read_runtime()
    if isinstance(network.model, VisionTransformer):
        network = AttentionClassifier(network.model, model_config, network.head)
    onnx.export_onnx(network, model_config, metadata, path / MODEL)
    info = json.dumps(describe_for_page(network, model_config), ensure_ascii=False)
    write_bytes(path / MODEL_INFO, info.encode())
    for name, data in runtime.items():
        write_bytes(path / name, data)
    for name in PAGE:
        write_bytes(path / name, files("deitctl.exporters").joinpath("page", name).read_bytes())


def describe_for_page(network: ExportedClassifier, model_config: ModelConfig) -> dict[str, Any]:
    """Return model.json, for the page's scripts, which cannot read the metadata of model.onnx."""
    num_tokens = network.tokens if isinstance(network, AttentionClassifier) else 0
    return {
        "schema_version": SCHEMA_VERSION,
        "deitctl_version": __version__,
        "onnxruntime_web_version": VERSION,
        "architecture": model_config.architecture,
        "head": network.head,
        "temperature": network.temperature,
        "tokens": TOKENS[:num_tokens],
        "labels": [model_config.label(index) for index in range(model_config.num_classes)],
        "class_names": model_config.class_names if model_config.descriptions is not None else None,
        "task": model_config.task,
        "thresholds": model_config.list_thresholds(network.head)
        if model_config.is_multilabel
        else None,
        "preprocessing": describe_preprocessing(model_config.preprocessing),
    }


def describe_preprocessing(pre: Preprocessing) -> dict[str, Any]:
    """Return what view.js needs to preprocess an image as `eval_transform` does."""
    return {
        "img_size": pre.img_size,
        "resize_to": pre.resize_to,
        "crop_mode": pre.crop_mode,
        "interpolation": pre.interpolation,
    }


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a folder's model.onnx; raise as `onnx.read_metadata`."""
    return onnx.read_metadata(path / MODEL)


def provide_runtime(archive: str, reporter: Reporter) -> None:
    """Put onnxruntime-web's archive into the cache, before any work.

    Args:
        archive: a downloaded archive; empty: `$DEITCTL_ORT_WEB`, else the cache, else npm's
            registry.
        reporter: receives the download's progress.

    Raises:
        ExportError: it cannot be had, or is another file than the pinned one.
    """
    archive = archive or os.environ.get(VARIABLE, "")
    cached = choose_cache_path(ARCHIVE, reporter)
    if archive:
        # Checked before it gets into the cache, and again when it is read there.
        data = _read_pinned(expand_home(archive))
    elif cached.exists():
        _read_pinned(cached)
        return
    else:
        with reporter.task(f"fetch onnxruntime-web {VERSION}", None, "bytes"):
            data = _fetch()
    if not cached.exists() or can_write(cached.parent):  # else read_runtime verifies what is there
        write_bytes(cached, data)


def read_runtime() -> dict[str, bytes]:
    """Return the contents of `PARTS` from the cached archive; raise as `provide_runtime` does."""
    data = _read_pinned(choose_cache_path(ARCHIVE))
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        contents = {}
        for name, member in PARTS.items():
            file = archive.extractfile(member)
            assert file is not None, f"the archive with the pinned hash has {member}"
            contents[name] = file.read()
        return contents


def _read_pinned(path: Path) -> bytes:
    try:
        data = read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ExportError(
            f"{path} cannot be read: {getattr(error, 'strerror', error)}.", _download_hint()
        ) from error
    _require_pinned(data, str(path))
    return data


def _fetch() -> bytes:
    try:
        data = fetch(ADDRESS, seconds=DOWNLOAD_SECONDS)
    except DataError as error:
        reason = error.message.removeprefix(f"{ADDRESS} ")
        raise ExportError(
            f"The page needs onnxruntime-web {VERSION}, which {reason}", _download_hint()
        ) from error
    _require_pinned(data, ADDRESS)
    return data


def _require_pinned(data: bytes, source: str) -> None:
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    if integrity != INTEGRITY:
        raise ExportError(
            f"{source} is not the onnxruntime-web {VERSION} that was tested: its sha512 differs.",
            _download_hint(),
        )


def _download_hint() -> str:
    return (
        f"Download {ADDRESS} and name it with --runtime or ${VARIABLE}, "
        f"or put it at {choose_cache_path(ARCHIVE)}."
    )

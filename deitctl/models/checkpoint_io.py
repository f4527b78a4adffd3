"""Weights on disk: safetensors in timm's layout, written whole or not at all."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from deitctl.errors import ModelError
from deitctl.models.model_config import ModelConfig, from_timm_config, to_timm_config
from deitctl.paths import DiskError, atomic_path, read_json, write_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
MAX_HEADER = 16 * 2**20
"""Bytes of a safetensors header; one of a model with a thousand tensors has a hundred thousand."""


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, atomically; tensors on an accelerator are copied to the host first."""
    plain = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata={"format": "pt", **(metadata or {})})
            if metadata:
                _sort_metadata(temporary)
        except (OSError, SafetensorError) as error:
            os_error = error if isinstance(error, OSError) else OSError(str(error))
            raise DiskError.from_os_error(path, os_error) from error


def _sort_metadata(path: Path) -> None:
    """Sort a safetensors file's metadata, which the library writes in random order: equal content, equal bytes."""
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read weights from `.safetensors`, or from a pickle (`.pth`, `.pt`, `.bin`) with `weights_only=True`.

    A training checkpoint's wrapping (`model`, `state_dict`, `module.` and `_orig_mod.` prefixes) is taken off.

    Raises:
        ModelError: the file is missing, broken, or not made of plain tensors that are stored in it.
    """
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}.")
    try:
        if path.suffix == ".safetensors":
            _require_header(path)
            loaded: Any = load_file(path)
        else:
            _require_stored(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch has to say of a pickle is said below
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        MemoryError,
    ) as error:
        raise ModelError(f"{path} is not a readable checkpoint: {_first_line(error)}") from error
    except (
        Exception
    ) as error:  # torch.load raises pickle's own errors for what weights_only refuses
        raise ModelError(
            f"{path} holds more than weights and is not opened: reading it would run what it says.",
            "Ask for a .safetensors file, or convert it where you trust it.",
        ) from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()
    ):
        raise ModelError(f"{path} is not a dictionary of tensors.")
    if not loaded and path.suffix != ".safetensors":
        raise ModelError(f"{path} is not a dictionary of tensors.")
    _require_plain(loaded, path)
    return _unprefixed(loaded)


def _require_header(path: Path) -> None:
    """Refuse a safetensors header that is longer than any model's: parsing it takes many times its size."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header is said to have {length:,} bytes")


def _require_stored(path: Path) -> None:
    """Refuse a pickle whose parts are compressed or lie on each other: torch does neither, and a bomb does."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("it is a compressed archive")
    if sum(part.file_size for part in parts) > path.stat().st_size:
        raise ValueError("it is said to hold more bytes than it has")


def _require_plain(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not simply numbers in the file: sparse, quantized, on no device, or larger than it."""
    room = path.stat().st_size
    for name, value in state.items():
        odd = (
            value.layout is not torch.strided
            or value.is_quantized
            or value.is_nested
            or value.is_complex()
        )
        if odd or value.device.type != "cpu":
            raise ModelError(
                f"{path} is not a readable checkpoint: {name[:80]!r} is no plain tensor."
            )
        if value.numel() * value.element_size() > room or (0 in value.shape and value.ndim > 1):
            raise ModelError(
                f"{path} is not a readable checkpoint: "
                f"{name[:80]!r} claims shape {tuple(value.shape)}, which the file does not hold."
            )


def require_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise `ModelError` if a weight is infinite or not a number: every answer would be neither."""
    for name, value in state.items():
        value = (
            value.float() if value.element_size() == 1 and value.is_floating_point() else value
        )  # float8 has no sums
        if not value.is_floating_point() or bool(
            value.sum().isfinite()
        ):  # one pass, where asking each takes four
            continue
        if not bool(value.isfinite().all()):  # a sum may be infinite where nothing in it is
            raise ModelError(
                f"{where} is of no use: {name[:80]!r} holds values that are infinite or not numbers."
            )


def _unprefixed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what DistributedDataParallel and torch.compile put before every name."""
    return {re.sub(r"^((module|_orig_mod)\.)+", "", k): v for k, v in state.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes of a safetensors file without its data."""
    try:
        _require_header(path)
        with safe_open(path, framework="pt") as file:
            return {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is not a readable checkpoint: {_first_line(error)}") from error


def file_metadata(path: Path) -> dict[str, str]:
    """Return the words that a safetensors file carries beside its tensors; none if there is no such file."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def save_model(
    folder: Path,
    tensors: Mapping[str, Tensor],
    model_config: ModelConfig,
    layers: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model folder that deitctl and `timm.create_model("local-dir:...")` both load.

    `layers` is what `to_timm_config` wants to know of the layers (see models/introspect.py).
    """
    save_tensors(folder / WEIGHTS, tensors, metadata)
    write_json(folder / CONFIG, to_timm_config(model_config, **layers))


def load_model_config(folder: Path) -> ModelConfig:
    """Read the card of a model folder; raise `ModelError` if there is none or it is broken."""
    path = folder / CONFIG
    try:
        config = read_json(path)
    except OSError as error:
        raise ModelError(f"{folder} is not a model folder: it has no readable {CONFIG}.") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a model's config.json.")
    return from_timm_config(config, str(path))

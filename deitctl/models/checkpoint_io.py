"""Checkpoint files: safetensors in timm's layout, written atomically, with a checksum that is verified
whenever they are read; weights-only pickles."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deitctl.errors import ModelError
from deitctl.models.model_config import ModelConfig, from_timm_config, to_timm_config
from deitctl.paths import DiskError, atomic_path, read_json, suggest_path, write_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CHECKSUM = "deitctl.crc32"
"""Key of the checksum in the metadata of a safetensors file, see `compute_checksum`."""
MAX_HEADER = 16 * 2**20
"""Bytes of a safetensors header; a model with a thousand tensors has a hundred thousand."""


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write tensors as safetensors, atomically, and return their checksum; those on an accelerator are
    copied first."""
    plain = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
    described = {"format": "pt", **(metadata or {})}
    checksum = compute_checksum(plain, described)
    with atomic_path(path) as temporary:
        try:
            # Never a pickle: whoever loads one runs its code.
            save_file(plain, temporary, metadata=described | {CHECKSUM: checksum})
            _sort_metadata(temporary)
        except (OSError, SafetensorError) as error:
            os_error = error if isinstance(error, OSError) else OSError(str(error))
            raise DiskError.from_os_error(path, os_error) from error
    return checksum


def compute_checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the CRC-32, in hexadecimal, of what a safetensors file holds: 0.15 CPU seconds a GB.

    Args:
        tensors: on the CPU; by their sorted names, types, shapes and bytes.
        metadata: of the file; the checksum in it does not count.
    """
    described = sorted((k, v) for k, v in metadata.items() if k != CHECKSUM)
    checksum = zlib.crc32(json.dumps(described).encode())
    for name, value in sorted(tensors.items()):
        entry = json.dumps([name, str(value.dtype), list(value.shape)])
        checksum = zlib.crc32(entry.encode(), checksum)
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy()
        checksum = zlib.crc32(data.data, checksum)
    return f"{checksum:08x}"


def _sort_metadata(path: Path) -> None:
    """Sort the metadata, which the library writes in random order: equal content, equal bytes."""
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        # Compact, hence not longer than the library's header; the rest stays blank, which the
        # format allows.
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read weights from `.safetensors`, or a weights-only pickle (`.pth`, `.pt`, `.bin`).

    Wrappers of training checkpoints (`model`, `state_dict`, `module.` and `_orig_mod.` prefixes)
    are removed.

    Raises:
        ModelError: the file is missing or damaged, or holds anything but plain tensors.
        MemoryError: it does not fit into memory, which says nothing about the file.
    """
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}.", suggest_path(path))
    metadata: Mapping[str, str] = {}
    try:
        _require_weights_file(path)
        if path.suffix == ".safetensors":
            # Before safetensors parses it: a header may claim up to 100 MB of JSON.
            _require_small_header(path)
            with _open_safetensors(path) as file:
                metadata = file.metadata() or {}
                loaded: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            # Before torch reads it: torch.save stores its members uncompressed, so compression is a
            # bomb's.
            _require_uncompressed(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of damaged pickles before it fails
                # weights_only is the default since torch 2.6; stated, because nothing else keeps
                # code from running.
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError as error:
        if path.suffix == ".safetensors":  # its sizes are within the file's: memory is short
            raise
        raise _unreadable(path, "it asks for more memory than there is.") from error
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise ModelError(f"{path} cannot be read: {reason}.") from error
    except (SafetensorError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise _unreadable(path, _first_line(error)) from error
    except ModelError:
        raise
    except Exception as error:  # torch.load raises pickle's errors for what weights_only refuses
        raise ModelError(
            f"{path} holds more than weights and is not opened: reading it could run code.",
            "Ask for a .safetensors file, or convert it where you trust it.",
        ) from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    is_state_dict = isinstance(loaded, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()
    )
    if not is_state_dict or not (loaded or path.suffix == ".safetensors"):
        raise ModelError(f"{path} is not a dictionary of tensors.")
    _require_plain_tensors(loaded, path)
    # Files of other tools and of an older deitctl have none.
    if CHECKSUM in metadata and compute_checksum(loaded, metadata) != metadata[CHECKSUM]:
        raise ModelError(
            f"{path} is damaged: its checksum does not match.",
            "Restore it from where it was copied. If another tool wrote it again, "
            f"write it there without {CHECKSUM!r} in its metadata.",
        )
    # DistributedDataParallel and torch.compile prefix every name
    return {re.sub(r"^((module|_orig_mod)\.)+", "", k): v for k, v in loaded.items()}


def _open_safetensors(path: Path) -> Any:
    # pread: the default maps the file, and touching a map of a file that was cut ends the process.
    return safe_open(path, framework="pt", backend="pread")


def _unreadable(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"{path} is not a readable checkpoint: {reason.rstrip('.')}.",
        "Copy or download it again, or name another.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _require_weights_file(path: Path) -> None:
    """Raise `ModelError` for an image, a text or another file that does not begin as weights do."""
    with path.open("rb") as file:
        start = file.read(8)
    # The length of the header, or a zip archive or a pickle of torch.save. A shorter file is broken.
    is_pickle = start.startswith((b"PK", b"\x80"))
    if path.suffix != ".safetensors" and len(start) == 8 and not is_pickle:
        raise ModelError(
            f"{path} is no file of weights.",
            "Weights are .safetensors files, or .pth, .pt or .bin files of torch.save.",
        )


def _require_small_header(path: Path) -> None:
    """Refuse a safetensors header longer than any model's: parsing multiplies its size."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header claims {length:,} bytes")


def _require_uncompressed(path: Path) -> None:
    """Refuse a zip with compressed or overlapping members, as a decompression bomb has."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("it is a compressed archive")
    # Overlapping members name the same bytes many times.
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("it claims to hold more bytes than it has")


def _require_plain_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not dense and real on the CPU, or are larger than the file."""
    file_size = path.stat().st_size
    for name, value in state.items():
        # weights_only=True lets such tensors through.
        is_plain = value.layout is torch.strided and value.device.type == "cpu"
        if not is_plain or value.is_quantized or value.is_nested or value.is_complex():
            raise _unreadable(path, f"{name[:80]!r} is no plain tensor.")
        is_empty = 0 in value.shape and value.ndim > 1
        # An expanded tensor (stride 0) claims any size from one stored number.
        if value.numel() * value.element_size() > file_size or is_empty:
            shape = tuple(value.shape)
            raise _unreadable(path, f"{name[:80]!r} claims shape {shape}, more than the file has.")


def require_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise `ModelError` if a weight is infinite or NaN; `where` names the file."""
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        if value.element_size() == 1:  # float8 has no sum
            value = value.float()
        # The sum takes one pass, isfinite() four. It may overflow where no element is infinite.
        if not bool(value.sum().isfinite()) and not bool(value.isfinite().all()):
            raise ModelError(f"{where} is unusable: {name[:80]!r} has infinite or NaN values.")


def read_tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read names and shapes of a safetensors file without data, or raise `ModelError`."""
    try:
        _require_small_header(path)
        with _open_safetensors(path) as file:
            return {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, _first_line(error)) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return a safetensors file's metadata; empty if the file is missing or damaged."""
    try:
        with _open_safetensors(path) as file:
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
    """Write a model folder that deitctl and `timm.create_model("local-dir:...")` load.

    Args:
        folder: created if need be.
        tensors: the state dict.
        model_config: becomes config.json.
        layers: from `introspect.describe_layers`.
        metadata: of the safetensors file.
    """
    save_tensors(folder / WEIGHTS, tensors, metadata)
    write_json(folder / CONFIG, to_timm_config(model_config, **layers))


def find_weights_file(folder: Path) -> Path:
    """Return a model folder's weights: safetensors, else Hugging Face's older pickle."""
    files = [folder / WEIGHTS, folder / "pytorch_model.bin"]
    return next((file for file in files if file.is_file()), files[0])


def load_model_config(folder: Path) -> ModelConfig:
    """Read the config of a model folder; raise `ModelError` if it is missing or invalid."""
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

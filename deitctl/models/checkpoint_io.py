"""Checkpoint files: safetensors in timm's layout, written atomically, with a checksum that is verified
whenever they are read; weights-only pickles."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deitctl.config import MAX_SIZE
from deitctl.errors import ModelError
from deitctl.models.model_config import ModelConfig, from_timm_config, to_timm_config
from deitctl.models.pickles import load_pickle
from deitctl.models.prefixes import clean_names
from deitctl.models.state_dicts import Checkpoint, unwrap_checkpoint
from deitctl.models.transformers_folder import from_transformers_config, is_transformers_config
from deitctl.models.weight_files import JOIN_SHARDS, SAFETENSORS, SHARD, identify_weights
from deitctl.paths import DiskError, atomic_path, read_json, suggest_path, write_json
from deitctl.sizes import ImageSize, format_size, long_side, parse_size

WEIGHTS = "model.safetensors"
WEIGHT_FILES = (WEIGHTS, "pytorch_model.bin")
"""Of a model folder: the first that is there."""
CONFIG = "config.json"
RUN_FILE, FOLDS_FILE = "run.toml", "folds.toml"
CHECKSUM = "deitctl.crc32"
"""Key of the checksum in the metadata of a safetensors file, see `compute_checksum`."""
IMG_SIZE = "deitctl.img_size"
"""Key of the input's height and width there, of a model that is not square: its positions do not show
them."""
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
    """Return the tensors of a file of weights, see `read_checkpoint`."""
    return read_checkpoint(path).state


def read_checkpoint(path: Path) -> Checkpoint:
    """Read weights from a file of safetensors or torch.save, whatever its name.

    Wrappers of training checkpoints (`model`, `state_dict` ...) and prefixes (`module.` ...) are
    removed, other libraries' names become timm's, and averaged weights are preferred. Files of
    deitctl are taken as they are.

    Raises:
        ModelError: the file is missing or damaged, or holds anything but plain tensors.
        MemoryError: it does not fit into memory, which says nothing about the file.
    """
    if path.is_dir():
        raise ModelError(
            f"There is no weights file {path}: it is a folder, and has no {CONFIG}.",
            suggest_inside(path),
        )
    if not path.is_file():
        if path.parent.is_dir() and path.name in WEIGHT_FILES:
            raise ModelError(
                f"There is no weights file {path}.",
                suggest_inside(path.parent) or suggest_path(path),
            )
        raise ModelError(f"There is no weights file {path}.", suggest_path(path))
    metadata: Mapping[str, str] = {}
    kind = ""
    try:
        kind = identify_weights(path)
        if kind == SAFETENSORS:
            # Before safetensors parses it: a header may claim up to 100 MB of JSON.
            _require_small_header(path)
            with _open_safetensors(path) as file:
                metadata = file.metadata() or {}
                loaded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            checkpoint = Checkpoint(
                loaded, preprocessing=read_stated_size(metadata), is_own=CHECKSUM in metadata
            )
        else:
            checkpoint = unwrap_checkpoint(load_pickle(path), path)
    except MemoryError as error:
        if kind == SAFETENSORS:  # its sizes are within the file's: memory is short
            raise
        raise _unreadable(path, "it asks for more memory than there is.") from error
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise ModelError(f"{path} cannot be read: {reason}.") from error
    except ModelError:
        raise
    except Exception as error:  # zipfile, struct and pickle raise a dozen kinds for damaged files
        raise _unreadable(path, _first_line(error)) from error
    _require_plain_tensors(checkpoint.state, path)
    # Files of other tools and of an older deitctl have none.
    if CHECKSUM in metadata and compute_checksum(checkpoint.state, metadata) != metadata[CHECKSUM]:
        raise ModelError(
            f"{path} is damaged: its checksum does not match.",
            "Restore it from where it was copied. If another tool wrote it again, "
            f"write it there without {CHECKSUM!r} in its metadata.",
        )
    return clean_names(checkpoint, path)


def read_stated_size(metadata: Mapping[str, str]) -> dict[str, ImageSize]:
    """Return the `img_size` that a safetensors file's metadata state; empty where they state none."""
    try:
        size = parse_size(metadata[IMG_SIZE])
    except (KeyError, ValueError):
        return {}
    return {"img_size": size} if 0 < long_side(size) <= MAX_SIZE else {}


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


def _require_small_header(path: Path) -> None:
    """Refuse a safetensors header longer than any model's: parsing multiplies its size."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header claims {length:,} bytes")


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
        # Names of counters (`num_batches_tracked`) end otherwise.
        if name.endswith(".weight") and not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise ModelError(
                f"{path} holds quantized weights: {name[:80]!r} is {kind}.",
                "Name the file that they were made from.",
            )


def require_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise `ModelError` if a weight is infinite or NaN; `where` names the file.

    Tensors without memory have no values.
    """
    for name, value in state.items():
        if not value.is_floating_point() or value.is_meta:
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
    size = model_config.preprocessing.img_size
    stated = {} if isinstance(size, int) else {IMG_SIZE: format_size(size)}
    save_tensors(folder / WEIGHTS, tensors, {**stated, **(metadata or {})})
    write_json(folder / CONFIG, to_timm_config(model_config, **layers))


def find_weights_file(folder: Path) -> Path:
    """Return a model folder's weights: safetensors, else Hugging Face's older pickle."""
    # The others are refused by what they are: shards, and files of other libraries.
    others = (
        f"{WEIGHTS}.index.json",
        "pytorch_model.bin.index.json",
        "flax_model.msgpack",
        "tf_model.h5",
    )
    files = [folder / name for name in (*WEIGHT_FILES, *others)]
    return next((file for file in files if file.is_file()), files[0])


def load_model_config(folder: Path) -> ModelConfig:
    """Read the config of a model folder, timm's or transformers'; raise `ModelError` if it is invalid."""
    path = folder / CONFIG
    try:
        config = read_json(path)
    except OSError as error:
        raise ModelError(
            f"{folder} is not a model folder: it has no readable {CONFIG}.", suggest_inside(folder)
        ) from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a model's config.json.")
    if is_transformers_config(config):
        return from_transformers_config(config, folder)
    return from_timm_config(config, str(path))


def suggest_run(folder: Path) -> str:
    """Return which run to name instead of a folder that holds runs alone, as that of folds; empty for another."""
    try:
        inner = sorted(entry for entry in folder.iterdir() if entry.is_dir())
        runs = [entry for entry in inner if (entry / RUN_FILE).is_file()]
    except OSError:
        return ""
    has_folds = (folder / FOLDS_FILE).is_file()
    if not runs or (not has_folds and runs != inner):
        return ""
    count = f"{len(runs)} run{'s' * (len(runs) > 1)}{' of folds' * has_folds}"
    return f"It has {count}: name one, {runs[0]}."


def suggest_inside(folder: Path) -> str:
    """Return what to name instead of a folder: the weights in it."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return ""
    if runs := suggest_run(folder):
        return runs
    if "adapter_config.json" in names:
        return "It holds LoRA adapters: join them with their model, by PEFT's merge_and_unload()."
    if "saved_model.pb" in names:
        return "It is a TensorFlow SavedModel, and torch's weights are read."
    weights = [
        n for n in names if n.endswith((".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".bin"))
    ]
    if weights and all(SHARD.search(name) for name in weights):
        return f"It has {len(weights)} shards. {JOIN_SHARDS}"
    more = f" and {len(weights) - 4} more" * (len(weights) > 4)
    return f"It has {', '.join(weights[:4])}{more}: name the file." if weights else ""

"""What a file given as weights is, by its first bytes: read, or refused for what it is."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from deitctl.errors import ModelError

SAFETENSORS, ZIP, PICKLE = "safetensors", "zip", "pickle"
"""Kinds of files that are read; the latter two are torch.save's, of torch 1.6 and of before."""

_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch/serialization.py, MAGIC_NUMBER
SHARD = re.compile(r"-(\d{5})-of-(?!00001\b)(\d{5})\.")
"""In names of transformers: `model-00001-of-00002.safetensors`."""
JOIN_SHARDS = (
    "Join them: save one file from the model that reads them, by its save_pretrained("
    "FOLDER, max_shard_size='99GB')."
)
_START = 512  # bytes; a tar archive says what it is at 257
_MAX_JSON = 2**20  # bytes of a text that is parsed to say what it is
WEIGHTS_ARE = "Weights are .safetensors files, or files of torch.save, whatever their name."

# Of archives of names that are read: whether it begins so, what it is, what to do.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the file itself",
        "Run `git lfs pull` where it was cloned, or download it from the repository's page.",
    ),
    (
        b"\x89HDF\r\n",
        "an HDF5 file, as Keras writes it",
        "Load it there, and save a state dict with torch.save.",
    ),
    (b"\x93NUMPY", "a NumPy array", WEIGHTS_ARE),
    (b"GGUF", "a GGUF file, whose weights are quantized", WEIGHTS_ARE),
    (b"\x1f\x8b", "compressed by gzip", "Unpack it first: gunzip, or tar -xzf for a .tar.gz."),
    (b"BZh", "compressed by bzip2", "Unpack it first: bunzip2."),
    (b"\xfd7zXZ\0", "compressed by xz", "Unpack it first: unxz."),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "Unpack it first: unzstd."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it first."),
    (b"Rar!", "a RAR archive", "Unpack it first."),
    (b"\xff\xd8\xff", "a JPEG image", WEIGHTS_ARE),
    (b"\x89PNG", "a PNG image", WEIGHTS_ARE),
    (b"%PDF", "a PDF", WEIGHTS_ARE),
    (b"\x7fELF", "a program", WEIGHTS_ARE),
)
_PROGRAM = "a program that could run any code when torch loads it"
_NAME_WEIGHTS = "Name its weights, or an ONNX file: deitctl export MODEL --to onnx."


def identify_weights(path: Path) -> str:
    """Return which of `SAFETENSORS`, `ZIP` and `PICKLE` a file is, by its content.

    Raises:
        ModelError: it is another; the message says what, and the hint what to do.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_START)
    if not start:
        raise ModelError(f"{path} is empty (0 bytes).", "Copy or download it again.")
    if shard := SHARD.search(path.name):
        number, count = map(int, shard.groups())
        raise ModelError(f"{path} is shard {number} of {count}: a part of a network.", JOIN_SHARDS)
    # A safetensors file: the length of its header, then the header, a JSON object. The length may
    # begin as anything does.
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 8 + header <= path.stat().st_size:
        return SAFETENSORS
    if start.startswith(b"PK"):
        _require_torch_archive(path)
        return ZIP
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        if _TORCH_MAGIC not in start[:64]:
            raise ModelError(
                f"{path} is not a readable checkpoint: it is a Python pickle, "
                "and not one of torch.save.",
                "Open it where you trust it, and save a state dict with torch.save.",
            )
        return PICKLE
    if (foreign := _name_foreign(path, start)) is not None:
        what, hint = foreign
        raise ModelError(f"{path} is {what}.", hint)
    if path.suffix == ".safetensors":
        return SAFETENSORS  # a damaged one: the reader says where
    if len(start) < 8:
        raise ModelError(
            f"{path} is not a readable checkpoint: it ends after {len(start)} bytes.",
            "Copy or download it again.",
        )
    raise ModelError(f"{path} is no file of weights.", WEIGHTS_ARE)


def _name_foreign(path: Path, start: bytes) -> tuple[str, str] | None:
    """Return what a file is and what to do, or None if its first bytes do not say."""
    for magic, what, hint in _FOREIGN:
        if start.startswith(magic):
            return what, hint
    if start[257:262] == b"ustar":
        if b"sys_info" in start[:100] or b"storages" in start[:100] or b"tensors" in start[:100]:
            return (
                "a tar archive, as torch.save wrote it before torch 0.1.10",
                "Load it with weights_only=False where you trust it, and save it again.",
            )
        return "a tar archive", "Unpack it, and name the weights in it."
    if start[4:8] == b"TFL3":
        return "a TensorFlow Lite model", WEIGHTS_ARE
    # Protocol buffers: the field ir_version, then one of ONNX's other fields.
    if (
        start[:1] == b"\x08"
        and b"\x01" <= start[1:2] <= b"\x20"
        and start[2:3] in (b"\x12", b":", b"B", b'"')
    ):
        return (
            "an ONNX file, which only `deitctl predict` and `eval` can run",
            f"{WEIGHTS_ARE} Name those that it was exported from.",
        )
    # MessagePack: a map, then a short text as its first key.
    if start[:1] in map(bytes, [[n] for n in (*range(0x81, 0x90), 0xDE)]) and any(
        0xA0 <= byte < 0xC0 for byte in start[1:4]
    ):
        return "a MessagePack file, as Flax writes it", "Ask for a torch or safetensors file."
    return _name_text(path, start)


def _name_text(path: Path, start: bytes) -> tuple[str, str] | None:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] in b"{[" and text:
        return _name_json(path)
    if text[:1] != b"<":
        return None
    if b"<html" in start.lower() or text[:9].lower() == b"<!doctype":
        return (
            "an HTML page, not the file itself",
            "Download the file, not the page that shows it (on the hub: `resolve`, not `blob`).",
        )
    return "an XML text", "If it is the reply to a download, read it, and download the file again."


def _name_json(path: Path) -> tuple[str, str] | None:
    if path.stat().st_size > _MAX_JSON:
        return "a JSON text", WEIGHTS_ARE
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return "a text", WEIGHTS_ARE
    shards = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(shards, dict):
        return "a JSON text", f"{WEIGHTS_ARE} A folder with config.json is named itself."
    count = len({str(name) for name in shards.values()})
    return (
        f"the index of weights in {count} file{'s' * (count != 1)}",
        JOIN_SHARDS,
    )


def _require_torch_archive(path: Path) -> None:
    """Raise `ModelError` for a ZIP archive that torch.save did not write, saying what it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise ModelError(
            f"{path} is not a readable checkpoint: {str(error).rstrip('.')}.",
            "Copy or download it again, or name another.",
        ) from error
    last = {name.rpartition("/")[2] for name in names}
    is_script = "constants.pkl" in last and any("/code/" in f"/{name}" for name in names)
    if is_script or any(name.endswith(("serialized_exported_program.json",)) for name in names):
        what = "a TorchScript program (torch.jit.save)" if is_script else "a torch.export program"
        raise ModelError(
            f"{path} is {what}, {_PROGRAM}.",
            f"{_NAME_WEIGHTS} Where you trust it: torch.save(torch.jit.load('{path.name}')"
            ".state_dict(), 'weights.pth')."
            if is_script
            else _NAME_WEIGHTS,
        )
    if "archive_format" in last and any("models/" in name for name in names):
        raise ModelError(f"{path} is a torch.export program, {_PROGRAM}.", _NAME_WEIGHTS)
    # Bombs and archives of nothing are the reader's.
    if "data.pkl" in last or not names or any("/data/" in f"/{name}" for name in names):
        return
    if all(name.endswith(".npy") for name in names):
        raise ModelError(
            f"{path} is a NumPy archive (.npz), as Google publishes its ViTs.",
            "timm has those weights: --model vit_base_patch16_224 or another of its names.",
        )
    if "model.weights.h5" in last:
        raise ModelError(f"{path} is a Keras model.", WEIGHTS_ARE)
    listed = ", ".join(sorted(names)[:3]) + (" ..." if len(names) > 3 else "")
    raise ModelError(
        f"{path} is a ZIP archive of {len(names)} files ({listed[:160]}), and no weights.",
        "Unpack it, and name the folder of the model, or the weights in it.",
    )

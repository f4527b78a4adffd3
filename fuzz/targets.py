"""Fuzz targets: each takes arbitrary bytes, and may raise nothing but a `DeitctlError` inside."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from deitctl.config import TrainConfig
from deitctl.data.decode import decode
from deitctl.data.eval_transform import eval_transform
from deitctl.data.open import open_dataset
from deitctl.distillation.target_cache import open_cache
from deitctl.distillation.targets import TargetCodec
from deitctl.errors import DeitctlError
from deitctl.events import SilentReporter
from deitctl.models.checkpoint_io import (
    load_model_config,
    load_tensors,
    read_tensor_shapes,
    require_finite,
)
from deitctl.models.convert import count_classes, infer_architecture, infer_img_size
from deitctl.models.model_config import Preprocessing
from deitctl.recipes import DIGITS
from deitctl.settings import from_dict, override, parse_overrides, read_toml, write_toml
from deitctl.training.configure import check

SEPARATOR = b"\n---8<---\n"
CODECS = (TargetCodec("hard", 5), TargetCodec("soft", 5, 5), TargetCodec("soft", 9, 3))
IMAGES = 6
STAMP = {"teacher": "t", "num_classes": 5, "view_augmentation": {"hflip": 0.5}}


@contextmanager
def open_temp_dir() -> Iterator[Path]:
    """Make a folder, in memory where possible, that is removed afterwards."""
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
    try:
        yield root
    finally:
        shutil.rmtree(root)


def image(data: bytes) -> None:
    """Decode an image and apply the evaluation transform."""
    with suppress(DeitctlError):
        image = decode(data, "x")
        assert image.mode == "RGB"
        assert eval_transform(image, Preprocessing(img_size=32)).shape == (3, 32, 32)


def config(data: bytes) -> None:
    """Read a run.toml, which must survive writing and reading again; then lines of `--set`."""
    toml, _, lines = data.partition(SEPARATOR)
    with open_temp_dir() as root, suppress(DeitctlError):
        (root / "run.toml").write_bytes(toml)
        read = from_dict(TrainConfig, read_toml(root / "run.toml"), "run.toml")
        (root / "again.toml").write_bytes(write_toml(read).encode())
        assert from_dict(TrainConfig, read_toml(root / "again.toml"), "again.toml") == read
        check(read)
    for line in lines.decode("utf-8", "surrogateescape").split("\n"):
        with suppress(DeitctlError):
            base = TrainConfig(model="deit_tiny", data="digits", recipe=DIGITS)
            check(override(base, parse_overrides([line])))


def checkpoint(data: bytes) -> None:
    """Read weights, by the first byte as safetensors or a pickle, or a config.json; then infer the architecture."""
    kind, body = data[:1], data[1:]
    with open_temp_dir() as root, suppress(DeitctlError):
        if kind == b"c":
            (root / "config.json").write_bytes(body)
            load_model_config(root)
            return
        path = root / ("x.safetensors" if kind == b"s" else "x.pth")
        path.write_bytes(body)
        if kind == b"s":
            with suppress(DeitctlError):
                read_tensor_shapes(path)
        state = load_tensors(path)
        require_finite(state, "x")
        assert sum(v.numel() * v.element_size() for v in state.values()) <= len(state) * len(body)
        arch = infer_architecture({k: tuple(v.shape) for k, v in state.items()}, "x")
        assert (count_classes(state) or 1) >= 1
        assert infer_img_size(state, arch) >= arch.patch_size


def target_cache(data: bytes) -> None:
    """Open a cache whose stamp and first view are arbitrary bytes; valid records decode to distributions."""
    kind, _, rest = data.partition(b"\n")
    codec = CODECS[len(kind) % len(CODECS)]
    stamp, _, view = rest.partition(SEPARATOR)
    with open_temp_dir() as root, suppress(DeitctlError):
        (root / "cache.json").write_bytes(stamp or json.dumps(STAMP).encode())
        (root / "view-00000.bin").write_bytes(view)
        cache = open_cache(root, STAMP, codec, IMAGES)
        records, valid = cache.read([(0, i) for i in range(IMAGES)])
        targets = codec.decode(np.ascontiguousarray(records[valid])) if valid.any() else None
        assert targets is None or bool(
            ((targets.sum(dim=1) - 1).abs() < 1e-3).all() and (targets >= 0).all()
        )
        assert cache.count_missing(1) + len(cache.damaged_indices(1)) + int(valid.sum()) >= IMAGES
        cache.mark_damaged([(0, 0)])


def _fix_checksums(tar: bytes) -> bytes:
    """Set the checksum of each tar header, which hardly any mutation would get right."""
    fixed = bytearray(tar)
    for at in range(0, len(fixed) - 511, 512):
        if fixed[at + 257 : at + 262] == b"ustar":
            fixed[at + 148 : at + 156] = b" " * 8
            fixed[at + 148 : at + 156] = b"%06o\0 " % sum(fixed[at : at + 512])
    return bytes(fixed)


def data(data: bytes) -> None:
    """Open a tar (first byte `t`) or a table, and read its images."""
    with open_temp_dir() as root, suppress(DeitctlError):
        path = root / ("x.tar" if data[:1] == b"t" else "x.csv")
        path.write_bytes(_fix_checksums(data[1:]) if data[:1] == b"t" else data[1:])
        splits = open_dataset(str(path), SilentReporter())
        for dataset in splits.list_parts().values():
            for index in range(len(dataset.labels)):
                with suppress(DeitctlError):
                    dataset.read(index)
                assert dataset.num_bytes(index) >= 0
                assert 0 <= dataset.labels[index] < len(dataset.class_names)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "image": image,
    "config": config,
    "checkpoint": checkpoint,
    "target_cache": target_cache,
    "data": data,
}

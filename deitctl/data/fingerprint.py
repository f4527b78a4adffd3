"""A short name for the content of a data set or of weights, the same wherever they are and whenever they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import nn

from deitctl.data.dataset import ImageDataset
from deitctl.errors import DataError, ModelError
from deitctl.events import Reporter, track
from deitctl.models.checkpoint_io import CONFIG
from deitctl.paths import read_json

READ_WHOLE = 1 << 30
"""Bytes of images up to which every one is read; of more data, every size and the content of `SAMPLED` images."""
SAMPLED = 4096
LENGTH = 16  # hexadecimal digits: 64 bits


def fingerprint_dataset(dataset: ImageDataset, reporter: Reporter) -> str:
    """Hash the class names, and of each image its name, label, size and content, in order.

    Of more than 1 GiB the content of 4,096 images, evenly spread, stands for all: ImageNet in seconds, and still a
    image that is added, left out, moved, renamed or stored again is noticed by its name or size.
    """
    count = len(dataset.labels)
    sizes = np.fromiter((dataset.size(i) for i in range(count)), np.dtype("<i8"), count)
    digest = hashlib.sha256("\x1f".join(dataset.class_names).encode("utf-8", "surrogateescape"))
    digest.update(np.asarray(dataset.labels, dtype="<i8").tobytes())
    digest.update(sizes.tobytes())
    for index in range(count):
        separator = "\x1f" if index else ""
        digest.update(
            (separator + PurePath(dataset.name(index)).name).encode("utf-8", "surrogateescape")
        )
    whole = sizes.sum() <= READ_WHOLE or count <= SAMPLED
    chosen = range(count) if whole else np.linspace(0, count - 1, SAMPLED).astype(int).tolist()
    for index in track(chosen, reporter, "look at the data", len(chosen)):
        try:
            digest.update(hashlib.sha256(dataset.raw(index)).digest())
        except DataError:
            digest.update(b"unreadable")
    return digest.hexdigest()[:LENGTH]


def fingerprint_files(paths: Iterable[Path]) -> str:
    """Hash the content of files, in order; raise `ModelError` if one cannot be read.

    Of a model config the values count, not the layout; temperatures do not count: no logit depends on them.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            if path.name == CONFIG and (said := _said(path)):
                digest.update(hashlib.sha256(said).digest())
                continue
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()[:LENGTH]


def _said(path: Path) -> bytes:
    """Return a config.json without temperatures, in one layout; nothing if it is not one."""
    try:
        model_config = read_json(path)
    except ValueError:
        return b""
    if not isinstance(model_config, dict):
        return b""
    own = model_config.get("deitctl")
    if isinstance(own, dict):
        model_config = model_config | {
            "deitctl": {k: v for k, v in own.items() if k != "temperatures"}
        }
    return json.dumps(model_config, sort_keys=True).encode()


def fingerprint_model(model: nn.Module) -> str:
    """Hash a model's parameters and buffers: their names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:LENGTH]

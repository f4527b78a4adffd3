"""Outlines of weights: names and shapes without values, of files here and of the hub's."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from deitctl.errors import WeightsNotFound
from deitctl.models import convert, timm_models
from deitctl.models.checkpoint_io import (
    CHECKSUM,
    WEIGHT_FILES,
    WEIGHTS,
    find_weights_file,
    load_model_config,
    read_checkpoint,
    read_stated_size,
)
from deitctl.models.own_shape import read_architecture
from deitctl.models.prefixes import clean_names
from deitctl.models.sources import get_repo_id
from deitctl.models.state_dicts import Checkpoint
from deitctl.models.vit import VisionTransformer
from deitctl.models.weights import fetch_header, require_published

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights in a safetensors header."""


def read_outline(path: Path) -> Checkpoint:
    """Return what `read_checkpoint` does, with tensors on the meta device; raise as it does.

    The last outlines are kept: several parts of a command ask what a file is.
    """
    if not path.is_file():
        return read_checkpoint(path)  # it says what is missing
    status = path.stat()
    return _read_outline(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read_outline(path: Path, _mtime_ns: int, _size: int) -> Checkpoint:
    checkpoint = read_checkpoint(path)
    return replace(checkpoint, state={k: v.to("meta") for k, v in checkpoint.state.items()})


def fetch_outline(ref: str, folder: Path) -> Checkpoint | None:
    """Return the outline of a hub repository's weights that are not here; None where they are.

    Nothing but their header is fetched. A pickle has none: what config.json says stands for it.

    Args:
        ref: what the model is called.
        folder: its files that are here, config.json among them.

    Raises:
        WeightsNotFound: the hub has no such weights, or cannot be reached.
        ModelError: they are not readable, or no model that config.json could be of.
    """
    repo_id = get_repo_id(ref)
    if not repo_id or find_weights_file(folder).is_file():
        return None
    try:
        tensors, metadata = fetch_header(repo_id, WEIGHTS)
    except WeightsNotFound as error:
        for name in WEIGHT_FILES[1:]:
            try:
                require_published(repo_id, name)
            except WeightsNotFound:
                continue
            return _outline_config(folder)
        raise error
    state = {
        name: torch.empty(
            shape, dtype=torch.float32 if kind in FLOATS else torch.int64, device="meta"
        )
        for name, (kind, shape) in tensors.items()
    }
    path = Path(repo_id) / WEIGHTS
    stated = read_stated_size(metadata)
    outline = Checkpoint(state, preprocessing=stated, is_own=CHECKSUM in metadata)
    return clean_names(outline, path)


def _outline_config(folder: Path) -> Checkpoint:
    model_config = load_model_config(folder)
    arch, count = read_architecture(model_config), model_config.num_classes
    size = model_config.preprocessing.img_size
    with torch.device("meta"):
        model = (
            timm_models.create_model(
                model_config.architecture,
                num_classes=count,
                img_size=size,
                model_args=model_config.model_args,
            )
            if arch is None
            else VisionTransformer(
                convert.resize_architecture(arch, size), num_classes=count, img_size=size
            )
        )
    return Checkpoint(dict(model.state_dict()), is_own=True)

"""Fixed position embeddings: sines and cosines of rows and columns (MoCo v3, arXiv 2104.02057)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deitctl.errors import ConfigError

TEMPERATURE = 10_000.0  # big_vision/models/vit.py: posemb_sincos_2d


def make_sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Return the embeddings of a grid's patches by rows, [rows * columns, dim].

    As big_vision's `posemb_sincos_2d`: a quarter of the channels each for the sine and the cosine of the column, then
    of the row, at wavelengths that rise geometrically.

    Args:
        grid: rows and columns.
        dim: width of the tokens, a multiple of 4, of 8 or more.
    """
    quarter = dim // 4
    omega = TEMPERATURE ** -(torch.arange(quarter, dtype=torch.float64) / (quarter - 1))
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    y, x = (
        place.flatten()[:, None] * omega for place in torch.meshgrid(rows, columns, indexing="ij")
    )
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()


def fix_positions(model: nn.Module, *, fill: bool) -> None:
    """Exclude a model's position embeddings from training.

    Args:
        model: a DeiT, or a model of timm's with a `pos_embed`.
        fill: give patches those of `make_sincos_positions`, and prefix tokens none; else they keep theirs.

    Raises:
        ConfigError: a model without position embeddings, or of a width that is no multiple of 4.
    """
    positions: Any = getattr(model, "pos_embed", None)
    patch_embed: Any = getattr(model, "patch_embed", None)
    grid = getattr(model, "grid", None) or getattr(patch_embed, "grid_size", None)
    if not isinstance(positions, nn.Parameter) or positions.ndim != 3 or grid is None:
        raise ConfigError(
            "pos_embed = sincos2d is for vision transformers, and the model has no position embeddings.",
            "Use --set pos_embed=learn.",
        )
    dim = positions.shape[2]
    if dim % 4 or dim < 8:
        raise ConfigError(
            f"pos_embed = sincos2d does not fit tokens of width {dim}: it needs a multiple of 4.",
            "Use --set pos_embed=learn.",
        )
    positions.requires_grad_(False)
    if fill:
        patches = make_sincos_positions(grid, dim)
        positions.data.zero_()
        positions.data[:, positions.shape[1] - len(patches) :] = patches

"""Position embeddings for another input size (DeiT §6, "bicubic interpolation that approximately preserves the norm")."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_pos_embed(pos_embed: Tensor, grid: int, *, num_prefix_tokens: int) -> Tensor:
    """Resize position embeddings [1,P+G*G,D] to a grid of `grid` x `grid` patches; the first P are left as they are.

    Bicubic with antialiasing, as timm has it; the released code has no antialiasing, which only matters downwards.
    """
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    side = math.isqrt(patches.shape[1])
    if side == grid:
        return pos_embed
    square = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    square = F.interpolate(
        square, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False
    )
    patches = square.permute(0, 2, 3, 1).reshape(1, grid * grid, -1).to(pos_embed.dtype)
    return torch.cat([prefix, patches], dim=1)

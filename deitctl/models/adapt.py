"""Weights of a DeiT for another shape: fewer blocks, other patches, channels or positions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deitctl.errors import ModelError
from deitctl.models.catalog import Architecture
from deitctl.sizes import ImageSize, height_width


def adapt_shape(
    state: Mapping[str, Tensor], source: Architecture, target: Architecture, where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights for a user's own shape, and what was changed, as sentences.

    The first blocks are kept and the patch embedding is resampled; the width and the MLP's stay.

    Args:
        state: by timm's names.
        source: the architecture of the weights.
        target: that of the model.
        where: names the file.

    Raises:
        ModelError: they cannot be cut to fit.
    """
    adapted, changes = dict(state), list[str]()
    for name in ("embed_dim", "hidden_dim", "qkv_bias", "layer_scale"):
        own, required = getattr(source, name), getattr(target, name)
        if own != required:
            short = "mlp_ratio" if name == "hidden_dim" else name
            raise ModelError(
                f"{where} has {name} = {own}, and a model of {required} cannot start from it.",
                f"Leave model.{short} out, or --no-pretrained trains from scratch.",
            )
    if target.depth > source.depth:
        raise ModelError(
            f"{where} has {source.depth} blocks, and a model of {target.depth} cannot start from it.",
            "Lower model.depth, or --no-pretrained trains from scratch.",
        )
    if target.depth < source.depth:
        prefixes = {f"blocks.{block}." for block in range(target.depth)}
        adapted = {
            name: value
            for name, value in adapted.items()
            if not name.startswith("blocks.") or f"blocks.{name.split('.')[1]}." in prefixes
        }
        changes.append(f"the first {target.depth} of the weights' {source.depth} blocks are kept")
    if target.patch_size != source.patch_size:
        weight = adapted["patch_embed.proj.weight"]
        adapted["patch_embed.proj.weight"] = resample_patch_embed(weight, target.patch_size)
        changes.append(
            f"the patch embedding is resampled from {source.patch_size} to {target.patch_size} pixels"
        )
    if target.num_heads != source.num_heads:
        changes.append(
            f"the attention has {target.num_heads} heads, the weights were trained with "
            f"{source.num_heads}"
        )
    return adapted, changes


def resample_patch_embed(weight: Tensor, patch_size: int) -> Tensor:
    """Resample a patch embedding [D,C,p,p] to another patch size, [D,C,q,q].

    By the pseudoinverse of the bicubic resize of a patch, so that a resized patch gives the token of
    the original one (FlexiViT, arXiv 2212.08013, §3.4; timm's `resample_patch_embed`).
    """
    if weight.is_meta:  # matched, and nothing is loaded
        return weight.new_empty((*weight.shape[:2], patch_size, patch_size))
    old = weight.shape[-1]
    basis = torch.eye(old * old).reshape(old * old, 1, old, old)
    size = (patch_size, patch_size)
    resized = F.interpolate(basis, size, mode="bicubic", antialias=True, align_corners=False)
    # [p*p,q*q]: row i is what the resize makes of pixel i
    inverse = torch.linalg.pinv(resized.reshape(old * old, -1))
    flat: Tensor = weight.float().flatten(2) @ inverse.mT
    return flat.reshape(*weight.shape[:2], *size).to(weight.dtype)


def resample_positions(
    model: nn.Module, state: Mapping[str, Tensor], img_size: ImageSize
) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights of a timm model with position embeddings for its grid, by timm's
    `resample_abs_pos_embed`, and the change as a sentence. Models without such positions keep theirs.

    Args:
        model: whose `patch_embed` has the grid.
        state: by timm's names; meta tensors stay so.
        img_size: input size of the weights in pixels, 0 where it is not stated: a square one.
    """
    resampled, name = dict(state), "pos_embed"
    positions, target = state.get(name), getattr(model, name, None)
    patches = getattr(model, "patch_embed", None)
    grid, patch = getattr(patches, "grid_size", None), getattr(patches, "patch_size", None)
    if positions is None or not isinstance(target, Tensor) or grid is None or patch is None:
        return resampled, []
    if positions.ndim != 3 or target.ndim != 3 or positions.shape[2] != target.shape[2]:
        return resampled, []
    num_prefix_tokens = target.shape[1] - math.prod(grid)  # as many as the model's class tokens
    num_patches = positions.shape[1] - num_prefix_tokens
    stated = tuple(side // p for side, p in zip(height_width(img_size), patch, strict=True))
    side = math.isqrt(max(num_patches, 0))
    is_stated = math.prod(stated) == num_patches
    old = stated if is_stated else (side, side)
    if num_prefix_tokens < 0 or num_patches < 1 or math.prod(old) != num_patches:
        return resampled, []
    if old == tuple(grid):
        return resampled, []
    if positions.is_meta:
        resampled[name] = torch.empty_like(target, device="meta")
    else:
        from timm.layers.pos_embed import resample_abs_pos_embed

        resampled[name] = resample_abs_pos_embed(
            positions, list(grid), list(old), num_prefix_tokens
        )
    change = f"position embeddings are resized to {grid[0]}x{grid[1]} patches"
    if not is_stated and math.prod(old) == math.prod(grid):
        change += (
            f" from {side}x{side}, which they are taken to be: the file states no height and width"
        )
    return resampled, [change]


def adapt_input_conv(weight: Tensor, in_chans: int) -> Tensor:
    """Return a first layer's weights [D,C,p,q] for other channels, as timm's `adapt_input_conv` has it.

    One channel gets the sum over the weights' channels, so a gray image gives what its three equal
    channels gave. More of them repeat red, green and blue in turn, scaled so that the sum over the
    input stays about the same.

    Raises:
        ModelError: the weights are neither of three channels nor to be summed to one.
    """
    channels = weight.shape[1]
    if in_chans == channels:
        return weight
    if weight.is_meta:
        return weight.new_empty((weight.shape[0], in_chans, *weight.shape[2:]))
    if in_chans == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    if channels == 1:  # the reverse of the sum: equal channels give what the gray one gave
        return weight.repeat(1, in_chans, 1, 1) / in_chans
    if channels != 3:
        raise ModelError(
            f"Weights for {channels} channels cannot be adapted to {in_chans}.",
            f"Use --in-chans {channels}, or --no-pretrained trains from scratch.",
        )
    repeated = weight.float().repeat(1, -(-in_chans // 3), 1, 1)[:, :in_chans]
    return (repeated * (3 / in_chans)).to(weight.dtype)

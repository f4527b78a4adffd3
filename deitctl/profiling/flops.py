"""Floating-point operations of an image: by formula for a DeiT, counted by torch for other models.

An addition and a multiplication are two operations. Only matrix products and convolutions count, as
usual: the rest is a hundredth of them. Letters as in vit.py, N with the prefix tokens P; K classes,
C channels, M the width of the MLP, p the side of a patch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deitctl.models.catalog import Architecture
from deitctl.models.heads import forward_heads
from deitctl.models.vit import VisionTransformer
from deitctl.sizes import ImageSize, height_width


class Flops(NamedTuple):
    """Floating-point operations of one image."""

    forward: int
    step: int
    """Forward and backward."""


def compute_flops(model: nn.Module, img_size: ImageSize, in_chans: int = 3) -> Flops:
    """Return the operations of a model that learns, for an image of `img_size` pixels."""
    if not isinstance(model, VisionTransformer):
        return count_flops(model, img_size, in_chans)
    # a frozen backbone has no backward pass
    trained = any(p.requires_grad for p in model.blocks.parameters())
    return compute_deit_flops(
        model.arch, num_classes=model.num_classes, img_size=img_size, train_backbone=trained
    )


def compute_deit_flops(
    arch: Architecture, *, num_classes: int, img_size: ImageSize, train_backbone: bool = True
) -> Flops:
    """Return the operations of a DeiT.

        patches           2 (N - P) · Cp² · D
        a block           6 N D² (qkv) + 4 N² D (attention) + 2 N D² (projection) + 4 N D M (MLP)
        the last block    6 N D² + 4 P N D + 2 P D² + 4 P D M: only the P prefix tokens are queries
        heads             2 P D K, a distilled model's two and a plain model's one

    The backward pass has two products for each of the forward pass, for the weights' gradient and
    for the input's, but one for the patches, whose images need no gradient. With a frozen backbone
    the heads' weights are all of it.
    """
    dim, prefix = arch.embed_dim, 2 if arch.distilled else 1
    patches = math.prod(side // arch.patch_size for side in height_width(img_size))
    n, mlp = patches + prefix, 4 * dim * arch.hidden_dim
    embed = 2 * patches * arch.in_chans * arch.patch_size**2 * dim
    block = n * (8 * dim**2 + mlp) + 4 * n**2 * dim
    last = 6 * n * dim**2 + 4 * prefix * n * dim + prefix * (2 * dim**2 + mlp)
    heads = 2 * prefix * dim * num_classes
    forward = embed + (arch.depth - 1) * block + last + heads
    return Flops(forward, 3 * forward - embed if train_backbone else forward + heads)


def count_flops(model: nn.Module, img_size: ImageSize, in_chans: int = 3) -> Flops:
    """Count the operations of a black image, forward and, where anything is trained, backward."""
    device = next(model.parameters()).device
    image, training = (
        torch.zeros((1, in_chans, *height_width(img_size)), device=device),
        model.training,
    )
    model.eval()  # batch norms in train mode refuse one image
    try:
        # FlopCounterMode knows the attention of some backends only, and every matrix product
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            heads = forward_heads(model, image)
            forward = counter.get_total_flops()
            loss = heads.cls.sum() + (heads.dist.sum() if heads.dist is not None else 0)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
    finally:
        model.train(training)
        model.zero_grad(set_to_none=True)
    return Flops(forward, counter.get_total_flops())

"""Floating-point operations of an image: by formula for a DeiT, counted by torch for other models.

An addition and a multiplication are two operations. Only matrix products and convolutions count, as
usual: the rest is a hundredth of them. Letters as in vit.py, N with the prefix tokens P; K classes,
p the side of a patch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deitctl.models.catalog import Architecture
from deitctl.models.heads import forward_heads
from deitctl.models.vit import VisionTransformer


class Flops(NamedTuple):
    """Floating-point operations of one image."""

    forward: int
    step: int
    """Forward and backward."""


def compute_flops(model: nn.Module, img_size: int) -> Flops:
    """Return the operations of a model that learns, for an image of `img_size` pixels a side."""
    if not isinstance(model, VisionTransformer):
        return count_flops(model, img_size)
    # a frozen backbone has no backward pass
    trained = any(p.requires_grad for p in model.blocks.parameters())
    return compute_deit_flops(
        model.arch, num_classes=model.num_classes, img_size=img_size, train_backbone=trained
    )


def compute_deit_flops(
    arch: Architecture, *, num_classes: int, img_size: int, train_backbone: bool = True
) -> Flops:
    """Return the operations of a DeiT.

        patches           2 (N - P) · 3p² · D
        a block           6 N D² (qkv) + 4 N² D (attention) + 2 N D² (projection) + 16 N D² (MLP)
        the last block    6 N D² + 4 P N D + 2 P D² + 16 P D²: only the P prefix tokens are queries
        heads             2 P D K, a distilled model's two and a plain model's one

    The backward pass has two products for each of the forward pass, for the weights' gradient and
    for the input's, but one for the patches, whose images need no gradient. With a frozen backbone
    the heads' weights are all of it.
    """
    dim, prefix = arch.embed_dim, 2 if arch.distilled else 1
    patches = (img_size // arch.patch_size) ** 2
    n = patches + prefix
    embed = 2 * patches * 3 * arch.patch_size**2 * dim
    block = 24 * n * dim**2 + 4 * n**2 * dim
    last = 6 * n * dim**2 + 4 * prefix * n * dim + 18 * prefix * dim**2
    heads = 2 * prefix * dim * num_classes
    forward = embed + (arch.depth - 1) * block + last + heads
    return Flops(forward, 3 * forward - embed if train_backbone else forward + heads)


def count_flops(model: nn.Module, img_size: int) -> Flops:
    """Count the operations of a black image, forward and, where anything is trained, backward."""
    device = next(model.parameters()).device
    image, training = torch.zeros((1, 3, img_size, img_size), device=device), model.training
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

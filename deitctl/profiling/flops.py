"""Floating-point operations of an image: by formula for a DeiT, counted by torch for other models."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deitctl.models.flops import Flops, compute_deit_flops
from deitctl.models.heads import forward_heads
from deitctl.models.vit import VisionTransformer
from deitctl.sizes import ImageSize, height_width


def compute_flops(model: nn.Module, img_size: ImageSize, in_chans: int = 3) -> Flops:
    """Return the operations of a model that learns, for an image of `img_size` pixels."""
    if not isinstance(model, VisionTransformer):
        return count_flops(model, img_size, in_chans)
    # a frozen backbone has no backward pass
    trained = any(p.requires_grad for p in model.blocks.parameters())
    return compute_deit_flops(
        model.arch, num_classes=model.num_classes, img_size=img_size, train_backbone=trained
    )


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

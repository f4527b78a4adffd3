"""Floating-point operations of a DeiT, by formula. No torch here.

An addition and a multiplication are two operations. Only matrix products and convolutions count, as usual: the rest is
a hundredth of them. Letters as in vit.py, N with the prefix tokens P; K classes, C channels, M the width of the MLP, p
the side of a patch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from deitctl.models.catalog import Architecture
from deitctl.sizes import ImageSize, height_width


class Flops(NamedTuple):
    """Floating-point operations of one image."""

    forward: int
    step: int
    """Forward and backward."""


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

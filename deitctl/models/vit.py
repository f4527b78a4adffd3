"""DeiT, the data-efficient image transformer (arXiv 2012.12877), and DeiT-III (2204.07118).

An image is cut into patches and each patch becomes a token. A class token and, in the distilled
model, a distillation token are prepended (DeiT §4). Transformer blocks mix the tokens; each of the
two prefix tokens ends in a linear head. Parameters carry timm's names, so that published weights
load here and weights saved here load in timm.

Letters: B images, C channels, H and W pixels, G patches, P prefix tokens (class, distillation),
N = P + G tokens, Q queries, D width, A attention heads, L blocks, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deitctl.models.attention import cpu_attention
from deitctl.models.catalog import Architecture
from deitctl.sizes import ImageSize, height_width

LAYER_NORM_EPS = 1e-6  # of the released weights; torch's default is 1e-5
MIN_DROP_FRACTION = 1 / 8
"""Dropped share from which gathering the other images is faster (deit_small, batch 16 and 64)."""


class HeadLogits(NamedTuple):
    """Logits of the class head and of the distillation head if there is one, [B,K] each."""

    cls: Tensor
    dist: Tensor | None


class PatchEmbed(nn.Module):
    """Project each patch of images [B,C,H,W] to a token: [B,G,D] (ViT Eq. 1)."""

    def __init__(self, patch_size: int, embed_dim: int, in_chans: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention (DeiT §3, Eq. 1)."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        # One layer, as in timm: an exported graph keeps one weight, which int8 can quantize.
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, num_queries: int | None = None) -> Tensor:
        """Mix tokens [B,N,D]; with `num_queries` only the first Q attend and are returned."""
        q, k, v = self.project_qkv(x)
        # No slice where there is nothing to cut: Core ML's converter does not know one.
        q = q if num_queries is None else q[:, :, :num_queries]
        # torch's fused CPU kernel is slow backward in bf16, see attention.py
        if self.training and x.device.type == "cpu" and q.dtype is torch.bfloat16:
            return self.merge_heads(cpu_attention(q, k, v))
        return self.merge_heads(F.scaled_dot_product_attention(q, k, v))

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of tokens [B,N,D], [B,A,N,D/A] each."""
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, d // self.num_heads)
        # [3,B,A,N,D/A]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def merge_heads(self, x: Tensor) -> Tensor:
        """Concatenate the heads' outputs [B,A,N,D/A] and project them: [B,N,D]."""
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with a GELU between; the hidden width is 4 D (DeiT §3) unless stated."""

    def __init__(self, dim: int, hidden_dim: int = 0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim or 4 * dim)
        self.fc2 = nn.Linear(hidden_dim or 4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        # Exact GELU (erf), as in the released code; the tanh form is another function.
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """Scale each channel of a residual branch by a learned weight (CaiT; DeiT-III §3).

    It begins at 1e-4, as in deit/models_v2.py; timm's deit3 models, which are made for weights, have 1e-6.
    """

    def __init__(self, dim: int, init_value: float = 1e-4) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block with stochastic depth on both residual branches."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        dim = arch.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, arch.num_heads, arch.qkv_bias)
        self.ls1 = LayerScale(dim) if arch.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, arch.hidden_dim)
        self.ls2 = LayerScale(dim) if arch.layer_scale else nn.Identity()

    def forward(
        self, x: Tensor, drop_path_mask: Tensor | None = None, num_queries: int | None = None
    ) -> Tensor:
        """Transform tokens [B,N,D].

        Args:
            x: the tokens.
            drop_path_mask: factors of the attention and the MLP branch of each image, [2,B].
            num_queries: Q, to compute only the first Q tokens, [B,Q,D]; None for all.
        """
        attn_mask, mlp_mask = (None, None) if drop_path_mask is None else drop_path_mask
        residual = x if num_queries is None else x[:, :num_queries]
        x = _add_branch(
            residual, lambda t: self.ls1(self.attn(self.norm1(t), num_queries)), x, attn_mask
        )
        return _add_branch(x, lambda t: self.ls2(self.mlp(self.norm2(t))), x, mlp_mask)


def _add_branch(
    residual: Tensor, branch: Callable[[Tensor], Tensor], x: Tensor, mask: Tensor | None
) -> Tensor:
    """Return `residual` + `mask` * `branch(x)`, for a mask of one factor an image, [B]."""
    if mask is None:
        return residual + branch(x)
    # On an accelerator nonzero() would wait for the device.
    if mask.device.type == "cpu" and not torch.compiler.is_compiling():
        active = mask.nonzero()[:, 0]
        # With no image left the branch's weights would have no gradient, which DDP and AdamW tell
        # from zero.
        if 0 < len(active) <= len(mask) * (1 - MIN_DROP_FRACTION):
            out = branch(x[active])
            scaled = out * mask[active, None, None].to(out.dtype)
            return residual.index_add(0, active, scaled.to(residual.dtype))
    out = branch(x)
    return residual + out * mask[:, None, None].to(out.dtype)


class VisionTransformer(nn.Module):
    """A DeiT classifier: images [B,C,H,W] in, `HeadLogits` out, in both modes."""

    def __init__(
        self,
        arch: Architecture,
        *,
        num_classes: int,
        img_size: ImageSize,
        drop_path_rate: float = 0.0,
        dpr_constant: bool = False,
    ) -> None:
        super().__init__()
        self.arch, self.num_classes, self.img_size = arch, num_classes, img_size
        self.drop_path_rate, self.dpr_constant = drop_path_rate, dpr_constant
        self.grad_checkpointing = False
        self.num_prefix_tokens = 2 if arch.distilled else 1
        height, width = height_width(img_size)
        self.grid = (height // arch.patch_size, width // arch.patch_size)  # rows, columns
        self.num_patches = self.grid[0] * self.grid[1]
        dim = arch.embed_dim
        num_positions = self.num_patches + (0 if arch.no_embed_class else self.num_prefix_tokens)

        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if arch.distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, dim))
        self.patch_embed = PatchEmbed(arch.patch_size, dim, arch.in_chans)
        self.blocks = nn.ModuleList(Block(arch) for _ in range(arch.depth))
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(dim, num_classes)
        self.head_dist = nn.Linear(dim, num_classes) if arch.distilled else None
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw weights from truncated normals of std 0.02, zero the biases (deit/models.py).

        The patch embedding keeps torch's initialization, as in the released code.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in (self.cls_token, self.dist_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def forward(self, images: Tensor, drop_path_mask: Tensor | None = None) -> HeadLogits:
        """Classify images.

        Args:
            images: normalized, [B,C,H,W].
            drop_path_mask: from `sample_drop_path`, [L,2,B]; None outside training.
        """
        return self.forward_head(self.forward_blocks(images, drop_path_mask, prefix_only=True))

    def forward_blocks(
        self, images: Tensor, drop_path_mask: Tensor | None = None, *, prefix_only: bool = False
    ) -> Tensor:
        """Return the tokens that leave the last block, not normed: [B,N,D], or of the prefix [B,P,D].

        Arguments as `forward`; the heads read the prefix tokens only, so for them the last block computes
        no patch token.
        """
        x = self.embed(images)
        for i, block in enumerate(self.blocks):
            is_last = i == len(self.blocks) - 1
            num_queries = self.num_prefix_tokens if prefix_only and is_last else None
            # A frozen block drops nothing.
            mask = None if drop_path_mask is None or not block.training else drop_path_mask[i]
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                # Nothing is drawn in a block, so there is no generator to set back.
                x = checkpoint(
                    block, x, mask, num_queries, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x = block(x, mask, num_queries)
        return x

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether blocks compute their activations again in the backward pass, which then
        need not be stored (timm's name; Chen et al. 2016, arXiv 1604.06174)."""
        self.grad_checkpointing = enable

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens that enter the first block, [B,N,D]."""
        x = self.patch_embed(images)
        pos_embed: Tensor = self.pos_embed
        height, width = images.shape[-2:]
        grid = (height // self.arch.patch_size, width // self.arch.patch_size)
        if grid != self.grid:  # progressive resizing trains on smaller images first
            num_prefix = pos_embed.shape[1] - self.num_patches
            pos_embed = resize_pos_embed(
                pos_embed, grid, num_prefix_tokens=num_prefix, old_grid=self.grid
            )
        tokens = [
            t.expand(len(x), -1, -1) for t in (self.cls_token, self.dist_token) if t is not None
        ]
        if self.arch.no_embed_class:  # DeiT-III: only patches have positions
            return torch.cat([*tokens, x + pos_embed], dim=1)
        return torch.cat([*tokens, x], dim=1) + pos_embed

    def forward_head(self, x: Tensor) -> HeadLogits:
        """Return the logits of the heads for prefix tokens [B,P,D] that leave the last block."""
        # The prefix tokens alone: LayerNorm works token by token, so this is what norming all would
        # give.
        return self.classify(self.norm(x))

    def classify(self, x: Tensor) -> HeadLogits:
        """Return the logits of the heads for normed tokens, [B,N,D] or of the prefix [B,P,D]."""
        dist = None if self.head_dist is None else self.head_dist(x[:, 1])
        return HeadLogits(self.head(x[:, 0]), dist)

    def sample_drop_path(self, batch_size: int, generator: torch.Generator) -> Tensor | None:
        """Draw stochastic depth: [L,2,B], 0 for a dropped branch, else 1 / survival rate.

        The drop rate grows linearly from 0 at the first block to `drop_path_rate` at the last
        (Huang et al. 2016, Eq. 4), or is the same for all (deit/models_v2.py, `dpr_constant`).
        Returns None without stochastic depth.
        """
        if not self.drop_path_rate:
            return None
        first = self.drop_path_rate if self.dpr_constant else 0
        survival = 1 - torch.linspace(first, self.drop_path_rate, self.arch.depth)[:, None, None]
        # Drawn at once and outside the blocks: a function of the step's generator, whatever the
        # micro-batches and the processes. timm drops per sample too (drop_path in "row" mode).
        draws = torch.rand(self.arch.depth, 2, batch_size, generator=generator)
        return (draws < survival).float() / survival


def resize_pos_embed(
    pos_embed: Tensor,
    grid: int | tuple[int, int],
    *,
    num_prefix_tokens: int,
    old_grid: tuple[int, int] | None = None,
) -> Tensor:
    """Resize position embeddings [1,P+G,D] to a grid of patches, bicubically (DeiT §6).

    Args:
        pos_embed: of the prefix tokens, then of the patches by rows.
        grid: rows and columns of patches that there are to be, one number for as many of both.
        num_prefix_tokens: P, whose embeddings stay.
        old_grid: rows and columns that there are; None: as many of both.

    With antialiasing, as in timm; the released code has none. torch's cubic has then another
    coefficient (-0.5, else -0.75), so that enlarged positions differ too.
    """
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[:, num_prefix_tokens:]
    side = math.isqrt(patches.shape[1])
    rows, columns = old_grid or (side, side)
    if (rows, columns) == height_width(grid):
        return pos_embed
    # [1,D,rows,columns], in fp32 as in timm
    plane = patches.float().reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    plane = resize_plane(plane, height_width(grid))
    patches = plane.permute(0, 2, 3, 1).flatten(1, 2).to(pos_embed.dtype)
    return torch.cat([prefix, patches], dim=1)


def resize_plane(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize planes [1,D,H,W] bicubically with antialiasing; the gradient repeats its bits on any device."""
    # CUDA sums the gradient of torch's operator by atomic additions, in any order.
    on_host = plane.device.type in ("cpu", "meta")
    return interpolate(plane, size) if on_host else multiply(plane, size)


def interpolate(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize planes [1,D,H,W] by torch's operator."""
    return F.interpolate(plane, size=size, mode="bicubic", antialias=True, align_corners=False)


def multiply(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize planes [1,D,H,W] by two matrix products, equal to `interpolate` but for rounding."""
    with torch.autocast(plane.device.type, enabled=False):  # would round the positions to bf16
        rows, columns = (
            build_resize_matrix(old, new, plane.device)
            for old, new in zip(plane.shape[2:], size, strict=True)
        )
        return rows @ plane @ columns.mT


def build_resize_matrix(old: int, new: int, device: torch.device) -> Tensor:
    """Return the weights [new,old] with which a line of `old` values is resized.

    They are what the operator makes of unit vectors, computed on the device: no copy waits.
    """
    return interpolate(torch.eye(old, device=device)[None, None], (new, old))[0, 0]

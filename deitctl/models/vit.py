"""The data-efficient image transformer (DeiT, arXiv 2012.12877), with what DeiT-III (arXiv 2204.07118) adds.

An image is cut into patches, each becomes a token; a class token and, in the distilled model, a distillation token go
before them; blocks of self-attention and perceptrons mix them; each of the two tokens ends in a linear head of its own.
Parameters carry timm's names, so that published weights load here and ours load there.

Letters: B images, N tokens, D width, A heads, K classes, P prefix tokens (class, distillation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deitctl.models.attention import attention
from deitctl.models.catalog import Architecture
from deitctl.models.pos_embed import resize_pos_embed

MIN_DROP_FRACTION = 1 / 8
"""Share of a batch from which on it pays to leave out what stochastic depth drops (deit_small, batches of 16 and 64)."""
LAYER_NORM_EPS = 1e-6  # of the released weights; torch's default is 1e-5


class HeadLogits(NamedTuple):
    """The answers of the class head and, where there is one, the distillation head, [B,K] each."""

    cls: Tensor
    dist: Tensor | None


class PatchEmbed(nn.Module):
    """Cut images [B,3,H,W] into patches and embed each: [B,N,D]."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B,N,D]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """Mix tokens [B,N,D]; where `first` is given, only so many of the first ask, and only they are returned."""
        q, k, v = self.split(x)
        q = q if first is None else q[:, :, :first]
        if self.training and x.device.type == "cpu" and q.dtype is torch.bfloat16:
            return self.join(attention(q, k, v))
        return self.join(F.scaled_dot_product_attention(q, k, v))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what tokens [B,N,D] ask, offer and hold: queries, keys and values, [B,A,N,D/A] each."""
        b, n, d = x.shape
        q, k, v = (
            self.qkv(x)
            .reshape(b, n, 3, self.num_heads, d // self.num_heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        return q, k, v

    def join(self, x: Tensor) -> Tensor:
        """Mix what the heads gathered, [B,A,N,D/A], back into tokens [B,N,D]."""
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with a GELU between, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A learned weight per channel of a residual branch (CaiT; DeiT-III §3)."""

    def __init__(self, dim: int, init: float = 1e-6) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block; `keep` [2,B] scales its two branches for each image (stochastic depth)."""

    def __init__(self, dim: int, num_heads: int, layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.ls1 = LayerScale(dim) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim)
        self.ls2 = LayerScale(dim) if layer_scale else nn.Identity()

    def forward(self, x: Tensor, keep: Tensor | None = None, first: int | None = None) -> Tensor:
        """Return the tokens [B,N,D] that leave the block; where nobody reads the others, only the `first`, [B,first,D]."""
        mix_keep, mlp_keep = (None, None) if keep is None else keep
        x = _add(
            x if first is None else x[:, :first],
            lambda t: self.ls1(self.attn(self.norm1(t), first)),
            mix_keep,
            x,
        )
        return _add(x, lambda t: self.ls2(self.mlp(self.norm2(t))), mlp_keep, x)


def _add(
    x: Tensor, branch: Callable[[Tensor], Tensor], keep: Tensor | None, entering: Tensor
) -> Tensor:
    """Return `x` plus `keep` [B] times the branch of what enters the block.

    Where enough images drop it, the branch is computed for the others alone; on the CPU only, because an accelerator
    would have to be waited for.
    """
    if keep is None:
        return x + branch(entering)
    if keep.device.type == "cpu" and not torch.compiler.is_compiling():
        kept = keep.nonzero()[:, 0]
        if (
            0 < len(kept) <= len(keep) * (1 - MIN_DROP_FRACTION)
        ):  # with none left the weights would have no gradient
            added = branch(entering[kept])
            return x.index_add(
                0, kept, (added * keep[kept, None, None].to(added.dtype)).to(x.dtype)
            )
    added = branch(entering)
    return x + added * keep[:, None, None].to(added.dtype)


class VisionTransformer(nn.Module):
    """A DeiT classifier; images [B,3,S,S] in, `HeadLogits` out, in training and in evaluation alike."""

    def __init__(
        self, arch: Architecture, *, num_classes: int, img_size: int, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.arch, self.num_classes, self.img_size = arch, num_classes, img_size
        dim, grid = arch.embed_dim, img_size // arch.patch_size
        self.num_prefix_tokens, self.num_patches = 2 if arch.distilled else 1, grid * grid
        embedded_prefix = 0 if arch.no_embed_class else self.num_prefix_tokens

        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if arch.distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid + embedded_prefix, dim))
        self.patch_embed = PatchEmbed(arch.patch_size, dim)
        self.blocks = nn.ModuleList(
            Block(dim, arch.num_heads, arch.layer_scale) for _ in range(arch.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(dim, num_classes)
        self.head_dist = nn.Linear(dim, num_classes) if arch.distilled else None
        self.drop_path_rate = drop_path_rate
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Truncated normals of deviation 0.02, no biases (deit/models.py); the patch embedding as torch has it."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for token in (self.cls_token, self.dist_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def sample_drop_path(self, batch_size: int, generator: torch.Generator) -> Tensor | None:
        """Draw stochastic depth for a batch: [depth,2,B], 0 where a branch is dropped, 1 / survival where it is not.

        The rate grows linearly from 0 at the first block to `drop_path_rate` at the last (Huang et al. 2016, Eq. 4).
        """
        if not self.drop_path_rate:
            return None
        survival = 1 - torch.linspace(0, self.drop_path_rate, self.arch.depth)[:, None, None]
        draws = torch.rand(self.arch.depth, 2, batch_size, generator=generator)
        return (draws < survival).float() / survival

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens that enter the first block, [B,P+N,D]; positions are resized to images of another size than the model's."""
        x = self.patch_embed(images)
        pos_embed: Tensor = self.pos_embed
        if images.shape[-1] != self.img_size:  # early epochs at a lower resolution
            grid, prefix = (
                images.shape[-1] // self.arch.patch_size,
                pos_embed.shape[1] - self.num_patches,
            )
            pos_embed = resize_pos_embed(pos_embed, grid, num_prefix_tokens=prefix)
        tokens = [
            t.expand(x.shape[0], -1, -1) for t in (self.cls_token, self.dist_token) if t is not None
        ]
        if self.arch.no_embed_class:  # DeiT-III: patches alone have positions
            return torch.cat([*tokens, x + pos_embed], dim=1)
        return torch.cat([*tokens, x], dim=1) + pos_embed

    def forward(self, images: Tensor, keep: Tensor | None = None) -> HeadLogits:
        """Classify images [B,3,S,S]; `keep` [depth,2,B] is stochastic depth, from `sample_drop_path`, None outside training."""
        x = self.embed(images)
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            first = self.num_prefix_tokens if i == last else None  # the heads read no patch
            x = block(x, None if keep is None else keep[i], first)
        return self.answer(x)

    def answer(self, x: Tensor) -> HeadLogits:
        """Read the heads off the prefix tokens that leave the last block, [B,P,D]."""
        x = self.norm(x)
        return HeadLogits(
            self.head(x[:, 0]), self.head_dist(x[:, 1]) if self.head_dist is not None else None
        )

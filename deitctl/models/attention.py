"""Attention for training on a CPU: its backward pass is four matrix products, which the fused one's there is not.

torch's fused attention for CPUs spends three times as long in its backward pass (benchmarks/attention.py). Scores are
computed and normalised in fp32, as the fused one does, and kept in the dtype of the values; so gradients are as near to
exact ones, also where scores are large.

Letters: B pictures, A heads, N tokens that ask, M tokens that answer, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.scale = q.shape[-1] ** -0.5
        with torch.autocast("cpu", enabled=False):
            scores = (q.float() * ctx.scale) @ k.float().transpose(-2, -1)
        shares = scores.softmax(-1).to(v.dtype)
        ctx.save_for_backward(q, k, v, shares)
        mixed: Tensor = shares @ v
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (grad,) = gradients
        q, k, v, shares = ctx.saved_tensors
        of_shares = grad @ v.transpose(-2, -1)
        of_scores = torch.ops.aten._softmax_backward_data(of_shares, shares, -1, shares.dtype)
        return (
            (of_scores @ k) * ctx.scale,
            (of_scores.transpose(-2, -1) @ q) * ctx.scale,
            shares.transpose(-2, -1) @ grad,
        )


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v, [B,A,N,D], for queries [B,A,N,D], keys and values [B,A,M,D] of one dtype."""
    return _Attention.apply(q, k, v)  # type: ignore[no-any-return]

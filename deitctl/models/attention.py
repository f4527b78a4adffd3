"""Attention for training in bf16 on a CPU: its backward pass is four matrix products, which the fused one's there is not.

torch's fused attention for CPUs spends three times as long in its backward pass; both passes together take 1.6 to 1.8
times as long, and in fp32 less (benchmarks/attention.py). Scores are computed and normalized in fp32, as the fused one
does, and kept in the dtype of the values; so gradients are as near to exact ones, also where scores are large.

Letters: B images, A heads, N tokens that ask, M tokens that answer, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IN_CACHE = 2 * 2**20
"""Bytes of scores that are computed at a time: a core's second cache; all at once they would be written out and read again."""


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = q.shape[:2]
        q, k, v = (
            t.flatten(0, 1) for t in (q, k, v)
        )  # [BA,N,D], so that every product is of one batch
        ctx.scale = q.shape[-1] ** -0.5
        shares, nothing = v.new_empty(len(q), q.shape[1], k.shape[1]), torch.empty(1, 1, 1)
        few = max(1, IN_CACHE // (4 * q.shape[1] * k.shape[1]))
        with torch.autocast("cpu", enabled=False):
            for part in map(slice, range(0, len(q), few), range(few, len(q) + few, few)):
                queries, keys = q[part].float(), k[part].float().transpose(1, 2)
                shares[part] = torch.baddbmm(
                    nothing, queries, keys, beta=0, alpha=ctx.scale
                ).softmax(-1)
        ctx.save_for_backward(q, k, v, shares)
        return torch.bmm(shares, v).view(*heads, *q.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        grad, heads = gradients[0].flatten(0, 1), gradients[0].shape[:2]
        q, k, v, shares = ctx.saved_tensors
        of_shares = torch.bmm(grad, v.transpose(1, 2))
        of_scores = torch.ops.aten._softmax_backward_data(of_shares, shares, -1, shares.dtype).mul_(
            ctx.scale
        )
        found = (
            torch.bmm(of_scores, k),
            torch.bmm(of_scores.transpose(1, 2), q),
            torch.bmm(shares.transpose(1, 2), grad),
        )
        return tuple(t.view(*heads, *t.shape[1:]) for t in found)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v, [B,A,N,D], for queries [B,A,N,D], keys and values [B,A,M,D] of one dtype."""
    return _Attention.apply(q, k, v)  # type: ignore[no-any-return]

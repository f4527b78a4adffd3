"""Attention for bf16 training on a CPU, whose backward pass is four matrix products.

torch's fused CPU kernel takes three times as long in its backward pass, and 1.6 to 1.8 times as
long for both passes (less in fp32; benchmarks/attention.py). Scores are computed and normalized in
fp32, as in the fused kernel, and stored in the dtype of the values, so gradients are as close to
exact ones, also for large scores.

Letters: B images, A heads, N queries, M keys, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 2 * 2**20
"""Size of the fp32 scores computed at a time: that of a core's L2 cache."""


class _CpuAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch_heads = q.shape[:2]
        q, k, v = (t.flatten(0, 1) for t in (q, k, v))  # [BA,N,D]: one batch dimension for bmm
        ctx.scale = q.shape[-1] ** -0.5
        # [BA,N,M] in the dtype of the values: stored for the backward pass at half the size of
        # fp32.
        probs, no_input = v.new_empty(len(q), q.shape[1], k.shape[1]), torch.empty(1, 1, 1)
        step = max(1, CHUNK_BYTES // (4 * q.shape[1] * k.shape[1]))
        with torch.autocast("cpu", enabled=False):  # would round the scores to bf16
            for start in range(0, len(q), step):
                chunk = slice(start, start + step)
                queries, keys = q[chunk].float(), k[chunk].float().transpose(1, 2)
                # beta=0 ignores the input: baddbmm is bmm with the scale fused
                scores = torch.baddbmm(no_input, queries, keys, beta=0, alpha=ctx.scale)
                probs[chunk] = scores.softmax(-1)
        ctx.save_for_backward(q, k, v, probs)
        return torch.bmm(probs, v).view(*batch_heads, *q.shape[1:])

    @staticmethod
    # The backward below is not differentiable itself: a second derivative must fail, not be wrong.
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        grad_out, batch_heads = grads[0].flatten(0, 1), grads[0].shape[:2]
        q, k, v, probs = ctx.saved_tensors
        grad_probs = torch.bmm(grad_out, v.transpose(1, 2))
        # One pass instead of the three of probs * (grad - sum(grad * probs)).
        grad_scores = torch.ops.aten._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
        grad_scores.mul_(ctx.scale)
        grad_q = torch.bmm(grad_scores, k)
        grad_k = torch.bmm(grad_scores.transpose(1, 2), q)
        grad_v = torch.bmm(probs.transpose(1, 2), grad_out)
        return tuple(t.view(*batch_heads, *t.shape[1:]) for t in (grad_q, grad_k, grad_v))


def cpu_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v, [B,A,N,D], for q [B,A,N,D], k and v [B,A,M,D]."""
    return _CpuAttention.apply(q, k, v)  # type: ignore[no-any-return]

"""CPU attention for training against torch's fused kernel: seconds of both passes in turns, error of the gradients.

python benchmarks/attention.py [--batch 16] [--heads 6] [--tokens 198] [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from deitctl.models.attention import cpu_attention

SIDES = {"fused": F.scaled_dot_product_attention, "ours": cpu_attention}


def passes(side: str, tensors: list[Tensor], gradient: Tensor) -> tuple[float, float, list[Tensor]]:
    """Return the seconds of the forward and the backward pass, and the gradients of queries, keys and values."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    start = time.perf_counter()
    answer = SIDES[side](*leaves)
    middle = time.perf_counter()
    answer.backward(gradient)
    return (
        middle - start,
        time.perf_counter() - middle,
        [t.grad for t in leaves if t.grad is not None],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (
        ("batch", 16),
        ("heads", 6),
        ("tokens", 198),
        ("width", 64),
        ("rounds", 15),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    said = parser.parse_args()
    shape = (said.batch, said.heads, said.tokens, said.width)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {shape}")
    for dtype in (torch.bfloat16, torch.float32):
        for scale in (1.0, 4.0):
            torch.manual_seed(0)
            q, k, v, gradient = (torch.randn(shape).to(dtype) for _ in range(4))
            tensors = [q * scale, k * scale, v]
            exact = passes("fused", [t.double() for t in tensors], gradient.double())[2]
            times: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
            for _ in range(said.rounds):
                for side in SIDES:
                    times[side].append(passes(side, tensors, gradient)[:2])
            for side in SIDES:
                forward, backward = (
                    1000 * statistics.median(t) for t in zip(*times[side], strict=True)
                )
                found = passes(side, tensors, gradient)[2]
                far = [
                    float((a.double() - b).norm() / b.norm())
                    for a, b in zip(found, exact, strict=True)
                ]
                distances = " ".join(f"{d:.1e}" for d in far)
                print(
                    f"{dtype} scores x{scale**2:g} {side}: {forward:.1f} + {backward:.1f} ms; "
                    f"gradients off by {distances}"
                )
            ratio = statistics.median(
                sum(a) / sum(b) for a, b in zip(times["fused"], times["ours"], strict=True)
            )
            print(f"  fused / ours: {ratio:.2f}")


if __name__ == "__main__":
    main()

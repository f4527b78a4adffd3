"""What keeps a perceptron's training step from the speed of one large matrix product? Its bf16 operations, one by one.

    python benchmarks/perceptron.py [--images 8] [--layers 12] [--dim 384] [--tokens 198]

Layers of layer norm, two linear layers and a GELU between, as in a DeiT, forward and backward by hand, one tensor a
layer, so that operands come from memory as in a training. Then the same in parts of some rows that stay in the cache.
Figures: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deitctl.device import choose_device

PRODUCTS = ("fc1", "fc2", "fc2 weights", "fc2 input", "fc1 weights", "fc1 input")
ROUNDS = 4


class Layers:
    """Weights, and both passes over all layers."""

    def __init__(self, rows: int, dim: int, count: int) -> None:
        self.rows, self.dim, self.hidden, self.count = rows, dim, 4 * dim, count
        self.first = [torch.randn(self.hidden, dim).bfloat16() for _ in range(count)]
        self.second = [torch.randn(dim, self.hidden).bfloat16() for _ in range(count)]
        self.bias, self.out_bias = torch.zeros(self.hidden).bfloat16(), torch.zeros(dim).bfloat16()
        self.seconds: Counter[str] = Counter()

    def timed(self, name: str, work: Callable[..., Tensor], *arguments: Any) -> Tensor:
        start = time.perf_counter()
        result = work(*arguments)
        self.seconds[name] += time.perf_counter() - start
        return result

    def whole(self) -> None:
        """Both passes, a whole batch at a time."""
        kept, x, t = [], torch.randn(self.rows, self.dim), self.timed
        for first, second in zip(self.first, self.second, strict=True):
            normed = t("layer norm", lambda x: F.layer_norm(x, (self.dim,)).bfloat16(), x)
            hidden = t("fc1", F.linear, normed, first, self.bias)
            active = t("gelu", F.gelu, hidden)
            x = t("residual", torch.add, x, t("fc2", F.linear, active, second, self.out_bias))
            kept.append((normed, hidden, active, first, second))
        gradient = torch.randn(self.rows, self.dim)
        for normed, hidden, active, first, second in reversed(kept):
            given = t("casts", gradient.bfloat16)
            t("fc2 weights", torch.mm, given.t(), active)
            of_hidden = t(
                "gelu backward",
                torch.ops.aten.gelu_backward,
                t("fc2 input", torch.mm, given, second),
                hidden,
            )
            t("fc1 weights", torch.mm, of_hidden.t(), normed)
            gradient = t(
                "residual", torch.add, gradient, t("fc1 input", torch.mm, of_hidden, first).float()
            )

    def in_parts(self, rows: int) -> None:
        """The same, some rows at a time; gradients of weights are summed in fp32, and GELU is computed again."""
        kept, x = [], torch.randn(self.rows, self.dim)
        parts = [slice(top, top + rows) for top in range(0, self.rows, rows)]
        for first, second in zip(self.first, self.second, strict=True):
            normed = F.layer_norm(x, (self.dim,)).bfloat16()
            hidden = torch.empty(self.rows, self.hidden, dtype=torch.bfloat16)
            out = torch.empty(self.rows, self.dim, dtype=torch.bfloat16)
            for part in parts:
                hidden[part] = F.linear(normed[part], first, self.bias)
                out[part] = F.linear(F.gelu(hidden[part]), second, self.out_bias)
            x = x + out
            kept.append((normed, hidden, first, second))
        gradient = torch.randn(self.rows, self.dim)
        for normed, hidden, first, second in reversed(kept):
            given, below = (
                gradient.bfloat16(),
                torch.empty(self.rows, self.dim, dtype=torch.bfloat16),
            )
            of_first, of_second = (
                torch.zeros(self.hidden, self.dim),
                torch.zeros(self.dim, self.hidden),
            )
            for part in parts:
                of_second += given[part].t() @ F.gelu(hidden[part])
                of_hidden = torch.ops.aten.gelu_backward(given[part] @ second, hidden[part])
                of_first += of_hidden.t() @ normed[part]
                below[part] = of_hidden @ first
            gradient = gradient + below.float()


def multiply(square: Tensor) -> None:
    """Do one large product."""
    torch.mm(square, square)


def seconds_of(work: Callable[[], None]) -> float:
    """Return the median of some rounds."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@torch.no_grad()
def main() -> None:
    """Print the share of each operation, that of the ceiling, and the parts against the whole."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("images", 8), ("layers", 12), ("dim", 384), ("tokens", 198)):
        parser.add_argument(f"--{name}", type=int, default=value)
    said = parser.parse_args()
    choose_device("cpu").tune_malloc()
    rows = said.images * said.tokens
    layers = Layers(rows, said.dim, said.layers)
    square = torch.randn(2048, 2048).bfloat16()
    ceiling = 2 * 2048**3 / min(seconds_of(lambda: multiply(square)) for _ in range(3))
    layers.whole()
    layers.seconds.clear()
    whole = seconds_of(layers.whole)
    print(
        f"{rows} rows, {1e3 * whole / said.layers:.1f} ms a layer; ceiling {ceiling / 1e12:.2f} TFLOP/s"
    )
    total = sum(layers.seconds.values())
    for name, seconds in layers.seconds.most_common():
        print(
            f"  {name:14} {100 * seconds / total:4.0f} %  {1e3 * seconds / ROUNDS / said.layers:.2f} ms"
        )
    products = sum(layers.seconds[name] for name in PRODUCTS) / ROUNDS
    flops = 6 * 2 * rows * said.dim * 4 * said.dim * said.layers
    print(
        f"products: {100 * products * ROUNDS / total:.0f} % of the time, "
        f"{100 * flops / products / ceiling:.0f} % of the ceiling"
    )
    for size in (264, 396, 528, 792):
        ratio = seconds_of(lambda size=size: layers.in_parts(size)) / whole
        print(f"in parts of {size} rows: {ratio:.2f} times the whole")


if __name__ == "__main__":
    main()

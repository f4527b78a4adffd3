"""Graphs and breaks of torch.compile in a whole run, as JSON; nothing is compiled: graphs run as they were traced.

The run has images of two sizes, an average of the weights, validations, and batches that are smaller than the others.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402

import deitctl  # noqa: E402

SETTINGS = {
    "model_args.depth": 1,
    "ema_decay": 0.9,
    "progressive_resize.fraction": 0.5,
    "progressive_resize.scale": 0.5,
    "fraction": 0.2,
}


class CountingBackend:
    """A backend of torch.compile that compiles nothing."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.num_graphs += 1
        return graph.forward


def count_graphs(output: Path) -> dict[str, int]:
    """Train four epochs with --compile, and return how many graphs and breaks that made."""
    backend, compile_ = CountingBackend(), torch.compile
    torch._dynamo.utils.counters.clear()

    def count(*args: Any, **kwargs: Any) -> Any:
        kwargs = {name: value for name, value in kwargs.items() if name not in ("mode", "options")}
        return compile_(*args, **{**kwargs, "backend": backend})

    torch.compile = count  # type: ignore[assignment]
    try:
        deitctl.train(
            "digits",
            model="deit_tiny",
            recipe="paper",
            epochs=4,
            batch_size=64,
            img_size=64,
            compile="on",
            device="cpu",
            precision="fp32",
            workers=0,
            pretrained=False,
            output=output,
            **SETTINGS,
        )
    finally:
        torch.compile = compile_
    breaks = torch._dynamo.utils.counters["graph_break"]
    return {"graphs": backend.num_graphs, "breaks": sum(breaks.values())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        sys.stdout.write(json.dumps(count_graphs(Path(folder) / "run")))

"""What is left on a CPU? Other ways to compute a DeiT than deitctl's, in turns with it.

    python benchmarks/cpu_alternatives.py [--model deit_tiny] [--precision fp32] [--batch-size 8] [--rounds 12]
        [--only WORD]

Inference and a training step (forward and backward, no optimizer) of a DeiT at 224 pixels, weights random, one thread:

- inductor, its C++ wrapper, its autotuned products, and weights that it freezes and packs (inference);
- oneDNN's linear layers with packed weights and GELU in the product's epilogue (inference);
- oneDNN graph, which TorchScript reaches (inference, fp32);
- tokens of all images as one matrix [B N, D] instead of [B, N, D];
- batches of 1 to 64 images, by the time an image.

A row is the time of deitctl's way divided by that of the other: the median of the rounds, in which all take turns, with
the lowest and the highest. Times are CPU times of this process, so that other load matters little. A way that fails is
named with its error. Figures: docs/results/speed.md.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deitctl.device import choose_device
from deitctl.models.catalog import BY_ALIAS
from deitctl.models.vit import Mlp, VisionTransformer

Way = Callable[[], object]
BATCHES = (1, 2, 4, 8, 16, 32, 64)
TRAIN_OPTIONS = {
    "inductor": {},
    "inductor, C++ wrapper": {"cpp_wrapper": True},
    "inductor, autotuned": {"max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"},
}


class PackedMlp(nn.Module):
    """The MLP with oneDNN's packed weights and GELU in the first product's epilogue."""

    def __init__(self, mlp: Mlp, rows: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.biases = [layer.bias.detach().to(dtype) for layer in (mlp.fc1, mlp.fc2)]
        self.weights = [
            torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(dtype), rows)
            for layer in (mlp.fc1, mlp.fc2)
        ]

    def forward(self, x: Tensor) -> Tensor:
        multiply = torch.ops.mkldnn._linear_pointwise
        hidden = multiply(
            x.to(self.biases[0].dtype), self.weights[0], self.biases[0], "gelu", [], "none"
        )
        return multiply(hidden, self.weights[1], self.biases[1], "none", [], "")


class FlatMlp(nn.Module):
    """The MLP of all images' tokens as one matrix."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Logits(nn.Module):
    """A model with one output, which TorchScript can trace."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).cls


class Bench:
    """One DeiT, its images and its precision."""

    def __init__(self, name: str, precision: str, batch_size: int) -> None:
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.arch = BY_ALIAS[name]
        self.images = torch.randn(batch_size, 3, 224, 224)

    def make_model(self, *, training: bool) -> VisionTransformer:
        """Return the model; the same weights each time."""
        torch.manual_seed(0)
        return VisionTransformer(self.arch, num_classes=1000, img_size=224).train(training)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the precision's context."""
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast("cpu", self.dtype)

    def infer(self, model: Callable[[Tensor], object], images: Tensor | None = None) -> Way:
        """Return a function that computes the logits once."""
        images = self.images if images is None else images

        def work() -> object:
            with torch.inference_mode(), self.autocast():
                return model(images)

        return work

    def step(
        self, model: nn.Module, images: Tensor | None = None, compiled: Way | None = None
    ) -> Way:
        """Return a function that computes the gradients once."""
        images = self.images if images is None else images
        labels = torch.arange(len(images))

        def work() -> None:
            with self.autocast():
                logits = (model if compiled is None else compiled)(images).cls
                loss = F.cross_entropy(logits.float(), labels)
            loss.backward()
            for parameter in model.parameters():
                parameter.grad = None

        return work

    def list_inference(self) -> dict[str, Callable[[], Way]]:
        """Return the ways to infer, by name, deitctl's first; each is made when it is called."""

        def pack() -> Way:
            model = self.make_model(training=False)
            for block in model.blocks:
                block.mlp = PackedMlp(block.mlp, len(self.images) * 197, self.dtype)
            return self.infer(model)

        def flatten() -> Way:
            model = self.make_model(training=False)
            for block in model.blocks:
                block.mlp = FlatMlp(block.mlp)
            return self.infer(model)

        def trace() -> Way:
            torch.jit.enable_onednn_fusion(True)
            model = self.make_model(training=False).requires_grad_(False)
            with torch.no_grad():
                traced = torch.jit.freeze(
                    torch.jit.trace(Logits(model).eval(), self.images, check_trace=False)
                )
            return self.infer(traced)

        def compile_with(**options: object) -> Way:
            model = self.make_model(training=False)
            return self.infer(torch.compile(model, dynamic=False, options=options))

        return {
            "deitctl": lambda: self.infer(self.make_model(training=False)),
            **{
                name: (lambda o=options: compile_with(**o))
                for name, options in TRAIN_OPTIONS.items()
            },
            "inductor, frozen": lambda: compile_with(freezing=True),
            "oneDNN, packed, GELU fused": pack,
            "oneDNN graph": trace,
            "tokens as a matrix": flatten,
        }

    def list_training(self) -> dict[str, Callable[[], Way]]:
        """Return the ways to train, by name, deitctl's first."""

        def compile_with(**options: object) -> Way:
            model = self.make_model(training=True)
            return self.step(model, compiled=torch.compile(model, dynamic=False, options=options))

        def flatten() -> Way:
            model = self.make_model(training=True)
            for block in model.blocks:
                block.mlp = FlatMlp(block.mlp)
            return self.step(model)

        return {
            "deitctl": lambda: self.step(self.make_model(training=True)),
            **{
                name: (lambda o=options: compile_with(**o))
                for name, options in TRAIN_OPTIONS.items()
            },
            "tokens as a matrix": flatten,
        }

    def list_batches(self, *, training: bool) -> dict[str, Callable[[], Way]]:
        """Return a way for each batch size, by name; 8 images first, and each does 64."""

        def repeat(size: int) -> Way:
            model = self.make_model(training=training)
            images = torch.randn(size, 3, 224, 224)
            work = self.step(model, images) if training else self.infer(model, images)

            def repeated() -> None:
                for _ in range(max(BATCHES) // size):
                    work()

            return repeated

        sizes = sorted(BATCHES, key=lambda size: size != 8)
        return {f"{size} images": (lambda s=size: repeat(s)) for size in sizes}


def measure(title: str, ways: dict[str, Callable[[], Way]], rounds: int, only: str) -> None:
    """Print a row for each way; the first is the measure of the others."""
    print(f"\n{title}", flush=True)
    ready: dict[str, Way] = {}
    for i, (name, make) in enumerate(ways.items()):
        if i and only not in name:
            continue
        start = time.perf_counter()
        try:
            work = make()
            work()  # compiles, allocates
        except Exception as error:  # a way that cannot be had on this machine is a result
            print(f"  {name:28} failed: {str(error).strip().splitlines()[0][:90]}", flush=True)
            continue
        ready[name] = work
        print(f"  {name:28} ready in {time.perf_counter() - start:.0f} s", flush=True)
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, work in ready.items():
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
    own = next(iter(times.values()))
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(own, taken, strict=True)]
        print(
            f"  {name:28} {statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
            f"{1e3 * statistics.median(taken):.0f} ms",
            flush=True,
        )


def main() -> None:
    """Print the four tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="deit_tiny")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--only", default="", help="Only the ways whose name has this word.")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    choose_device("cpu").tune_malloc()
    bench = Bench(options.model, options.precision, options.batch_size)
    what = f"{options.model}, {options.precision}, {options.batch_size} images"
    measure(f"inference, {what}", bench.list_inference(), options.rounds, options.only)
    measure(f"training step, {what}", bench.list_training(), options.rounds, options.only)
    few = max(3, options.rounds // 3)
    measure("inference, 64 images", bench.list_batches(training=False), few, options.only)
    measure("training step, 64 images", bench.list_batches(training=True), few, options.only)


if __name__ == "__main__":
    main()

"""torch.compile of a training: what becomes one graph, how many graphs a run makes, where they are stored.

Shapes are static. A graph is made for each shape of a micro-batch, so few are needed: images of two sizes
with progressive resizing, and batches of an epoch that have a pair less than the others.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from deitctl.constants import place_once
from deitctl.data.batch_transforms import LUMINANCE, as_channels
from deitctl.data.noise import compute_quantiles
from deitctl.device import CPP_COMPILERS, Device
from deitctl.errors import ConfigError
from deitctl.events import Reporter
from deitctl.home import choose_cache_path
from deitctl.models.compiled import Compiler
from deitctl.models.model_config import Preprocessing

MAX_GRAPHS = 6
"""Of transforms, teacher, student and losses in a run; what would need another is computed without a graph."""
MAX_EVAL_GRAPHS = 4
"""Of evaluations: of whole pieces, of smaller ones where memory runs out."""
MAX_BLOCK_GRAPHS = 32
"""Of all blocks together: in training and evaluation, for two sizes, for whole and last batches, for the last
block, which computes no patch token, and with and without autocast."""
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
CACHE_FOLDER = "compiled"
"""In deitctl's cache."""

InputsT = TypeVar("InputsT")


class FewGraphs(Generic[InputsT]):
    """The losses of micro-batches, one graph for each of the first few shapes."""

    def __init__(
        self,
        compute: Callable[[InputsT], dict[str, Tensor]],
        student: nn.Module,
        compiler: Compiler,
    ) -> None:
        """Compile nothing yet: that is done by the first micro-batch of each shape.

        Args:
            compute: of tensors alone.
            student: whose mode and trained parameters a graph depends on.
            compiler: its reporter is warned once of micro-batches that get no graph.
        """
        self.compute, self.student, self.compiler = compute, student, compiler
        self.signatures: set[tuple[object, ...]] = set()
        """Of the graphs."""
        self.has_warned = False
        self.compiled = compiler.compile(
            compute, limit=MAX_GRAPHS, fullgraph=True, cuda_graphs=True
        )

    def __call__(self, inputs: InputsT) -> dict[str, Tensor]:
        """Return the losses of a micro-batch, by name."""
        # Strides would else tell whole batches from parts of them.
        inputs = tree_map_only(Tensor, lambda tensor: tensor.contiguous(), inputs)
        signature = self.describe(inputs)
        if signature not in self.signatures and len(self.signatures) == MAX_GRAPHS:
            if not self.has_warned:
                self.has_warned = True
                self.compiler.reporter.warn(
                    f"This run has more than {MAX_GRAPHS} shapes of micro-batches: others than the first are "
                    "computed uncompiled."
                )
            return self.compute(inputs)
        if not self.signatures:
            self.compiler.reporter.note(
                "Compiling: the first step takes minutes, unless an earlier run has stored its graph."
            )
        self.signatures.add(signature)
        return self.compiled(inputs)

    def describe(self, inputs: InputsT) -> tuple[object, ...]:
        """Return what a graph is made for: shapes of all tensors, mode of the student, and what of it is trained."""
        tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        return (
            *((tensor.dtype, tensor.shape) for tensor in tensors),
            self.student.training,
            tuple(p.requires_grad for p in self.student.parameters()),
        )


def prepare_compiler(
    device: Device,
    reporter: Reporter,
    *,
    backend: str | Callable[..., Any] = "inductor",
    is_required: bool = True,
    uses_cuda_graphs: bool = False,
) -> Compiler:
    """Return the compiler of a run, which stores graphs in deitctl's cache; arguments as of `Compiler`.

    Raises:
        ConfigError: the compiler of this device is not installed.
    """
    check_compiler(device)
    # Graphs of an earlier run in this process would count against the limit of this one.
    torch._dynamo.reset()
    os.environ.setdefault(CACHE_VARIABLE, str(choose_cache_path(CACHE_FOLDER, reporter)))
    return Compiler(
        reporter,
        backend=backend,
        is_required=is_required,
        uses_cuda_graphs=uses_cuda_graphs,
        is_deterministic=device.deterministic,
    )


def compile_parts(model: nn.Module, compiler: Compiler) -> None:
    """Compile the blocks of a model one by one, in place, for training and evaluation.

    For a backward pass of several processes, which sends gradients while others are computed, and for an
    objective of a program's own, which may do what no graph holds.
    """
    for part in list_parts(model):
        compiler.compile_module(part, limit=MAX_BLOCK_GRAPHS)


def place_constants(preprocessings: Sequence[Preprocessing], device: torch.device) -> None:
    """Place the constants of transforms on a device, which a graph would else copy there in every step."""
    for values in (LUMINANCE, *(v for own in preprocessings for v in (own.mean, own.std))):
        as_channels(values, device)
    place_once("normal quantiles", device, compute_quantiles)


def check_compiler(device: Device) -> None:
    """Raise `ConfigError` if the compiler of a device is not installed."""
    kind = device.torch_device.type
    compilers = (os.environ.get("CXX", ""), *CPP_COMPILERS)
    if kind == "cpu" and not any(map(shutil.which, compilers)):
        raise ConfigError(
            "--compile needs a C++ compiler.",
            f"Install one ({', '.join(CPP_COMPILERS)}), or: --no-compile.",
        )
    if kind == "cuda" and find_spec("triton") is None:
        raise ConfigError(
            "--compile needs triton, which is not installed.",
            "pip install triton, or: --no-compile.",
        )


def list_parts(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model, which are compiled one by one, or the model where it has none."""
    # One compilation serves all blocks, which differ in nothing but their weights.
    blocks = getattr(model, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList | nn.Sequential) else [model]

"""torch.compile of a training: what becomes one graph, how many graphs a run makes, where they are stored.

Shapes are static. A graph is made for each shape of a micro-batch, so few are needed: images of two sizes
with progressive resizing, whole batches and the last one of an epoch; likewise of the evaluation.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from deitctl.device import CPP_COMPILERS, Device
from deitctl.errors import ConfigError
from deitctl.events import Reporter
from deitctl.home import choose_cache_path
from deitctl.training.objective import Objective, StudentBatch, TaskLoss, find_task_loss

MAX_GRAPHS = 6
"""Of student and losses in a run; what would need another is computed without a graph."""
MAX_BLOCK_GRAPHS = 32
"""Of all blocks together: in training and evaluation, for two sizes, for whole and last batches, for the last
block, which computes no patch token, and with and without autocast."""
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
CACHE_FOLDER = "compiled"
"""In deitctl's cache."""


class CompiledObjective:
    """An objective that is one graph with its student, for each of a few shapes of a micro-batch."""

    def __init__(
        self, objective: Objective, reporter: Reporter, *, backend: str | Callable[..., Any]
    ) -> None:
        """Compile nothing yet: that is done by the first micro-batch of each shape.

        Args:
            objective: of this package; a program's own may do what no graph holds.
            reporter: is warned once of micro-batches that get no graph.
            backend: of torch.compile.
        """
        self.objective, self.reporter = objective, reporter
        self.signatures: set[tuple[object, ...]] = set()
        """Of the graphs."""
        self.has_warned = False

        def compute(student: nn.Module, batch: StudentBatch) -> dict[str, Tensor]:
            return objective(student, batch)

        self.compute = torch.compile(
            compute, fullgraph=True, dynamic=False, backend=backend, **limit_recompiles(MAX_GRAPHS)
        )

    def __call__(self, student: nn.Module, batch: StudentBatch) -> dict[str, Tensor]:
        """Return the losses of a micro-batch, by name."""
        if (
            batch.drop_path_mask is not None
        ):  # else strides would tell whole batches from parts of them
            batch = batch._replace(drop_path_mask=batch.drop_path_mask.contiguous())
        signature = describe_shapes(student, batch)
        if signature not in self.signatures and len(self.signatures) == MAX_GRAPHS:
            if not self.has_warned:
                self.has_warned = True
                self.reporter.warn(
                    f"This run has more than {MAX_GRAPHS} shapes of micro-batches: others than the first are "
                    "computed uncompiled."
                )
            return self.objective(student, batch)
        self.signatures.add(signature)
        return self.compute(student, batch)

    @property
    def task_loss(self) -> TaskLoss:
        """The loss of the true labels."""
        return find_task_loss(self.objective)

    @property
    def label_scale(self) -> float:
        """See `bound_label_weight`."""
        scale: float = getattr(self.objective, "label_scale", 1.0)
        return scale


def describe_shapes(student: nn.Module, batch: StudentBatch) -> tuple[object, ...]:
    """Return what a graph is made for: layout of all tensors, mode of the student, and what of it is trained."""
    tensors = [*batch._replace(teacher_features=()), *batch.teacher_features]
    return (
        *((t.dtype, t.shape, t.stride()) if isinstance(t, Tensor) else None for t in tensors),
        student.training,
        tuple(p.requires_grad for p in student.parameters()),
    )


def compile_training(
    model: nn.Module,
    objective: Objective,
    device: Device,
    reporter: Reporter,
    *,
    is_one_graph: bool,
    backend: str | Callable[..., Any] = "inductor",
) -> Objective:
    """Have torch compile a model in place, for evaluation too, and return the objective to train by.

    Args:
        model: the student, on the device.
        objective: of the run.
        device: of the run.
        reporter: gets warnings.
        is_one_graph: whether student and losses become one graph. Else blocks are compiled one by one: a
            backward pass of several processes sends gradients while others are computed, and an objective of
            a program's own may do what no graph holds.
        backend: of torch.compile.

    Raises:
        ConfigError: the compiler of this device is not installed.
    """
    check_compiler(device)
    # Graphs of an earlier run in this process would count against the limit of this one.
    torch._dynamo.reset()
    os.environ.setdefault(CACHE_VARIABLE, str(choose_cache_path(CACHE_FOLDER, reporter)))
    if is_one_graph:
        model.compile(dynamic=False, backend=backend, **limit_recompiles(MAX_GRAPHS))
        return CompiledObjective(objective, reporter, backend=backend)
    for part in list_parts(model):
        part.compile(dynamic=False, backend=backend, **limit_recompiles(MAX_BLOCK_GRAPHS))
    return objective


def check_compiler(device: Device) -> None:
    """Raise `ConfigError` if the compiler of a device is not installed."""
    kind = device.torch_device.type
    compilers = (os.environ.get("CXX", ""), *CPP_COMPILERS)
    if kind == "cpu" and not any(map(shutil.which, compilers)):
        raise ConfigError(
            "--compile needs a C++ compiler.",
            f"Install one ({', '.join(CPP_COMPILERS)}), or leave --compile out.",
        )
    if kind == "cuda" and find_spec("triton") is None:
        raise ConfigError(
            "--compile needs triton, which is not installed.",
            "pip install triton, or leave --compile out.",
        )


def list_parts(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model, which are compiled one by one, or the model where it has none."""
    # One compilation serves all blocks, which differ in nothing but their weights.
    blocks = getattr(model, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList | nn.Sequential) else [model]


def limit_recompiles(limit: int) -> dict[str, Any]:
    """Return the argument of torch.compile for the most graphs of a function; torch before 2.12 has a limit of 8
    for all."""
    has_limit = "recompile_limit" in inspect.signature(torch.compile).parameters
    return {"recompile_limit": limit} if has_limit else {}

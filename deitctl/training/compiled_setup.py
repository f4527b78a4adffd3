"""The setup of a run, compiled where that is chosen: by the user, by an earlier session, or by a measurement."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deitctl.data.loader import Batch
from deitctl.device import Device, ran_out_of_memory
from deitctl.distillation.callable_teacher import CallableNetwork
from deitctl.distributed import SINGLE_PROCESS
from deitctl.errors import ConfigError
from deitctl.events import Reporter, SilentReporter
from deitctl.free_memory import read_free_memory
from deitctl.models.compiled import Compiler
from deitctl.sizes import format_size
from deitctl.training.build import TrainSetup
from deitctl.training.compilation import (
    MAX_EVAL_GRAPHS,
    MAX_GRAPHS,
    compile_parts,
    place_constants,
    prepare_compiler,
)
from deitctl.training.compile_choice import (
    Decision,
    Figures,
    choose,
    read_decision,
    read_figures,
    write_decision,
    write_figures,
)
from deitctl.training.context import TrainContext
from deitctl.training.device_batch import place_batch
from deitctl.training.engine import build_engine
from deitctl.training.estimate import count_work, fits_copy, load_batch, repeat_batch
from deitctl.training.freezing import get_layers, set_train_mode
from deitctl.training.objective import Distillation, Supervised
from deitctl.training.optim import build_optimizer
from deitctl.training.state import Progress, TrainState
from deitctl.training.step import OutOfMemory, forward_backward

NUM_TIMED = 3
"""Steps of which the shortest is the measurement."""
NO_BATCH = "there was no image to measure it with"
NO_ROOM = "there was no room to measure it"
RAN_OUT = "memory ran out when it was measured"
TIMES_DIFFER = "with --deterministic no time may decide it; --compile on compiles"
Backend = str | Callable[..., Any]


def compile_setup(
    setup: TrainSetup,
    root: Path,
    reporter: Reporter,
    *,
    writes: bool = True,
    backend: Backend = "inductor",
) -> TrainSetup:
    """Return the setup of a run as it is trained: compiled or not, as its setting says, or as is chosen now.

    Args:
        setup: uncompiled, of a state that may have begun.
        root: the run's folder, with the choice that it began with.
        reporter: gets the choice.
        writes: whether this process records it.
        backend: of torch.compile.

    Raises:
        ConfigError: the compiler is required and not installed, or CUDA graphs are where there are none.
    """
    wish, context = setup.config.compile, setup.context
    if setup.config.cuda_graphs:
        check_cuda_graphs(setup)
        wish = "on"  # no measurement may leave them out
    if wish == "off" or setup.state.sharding is not None:
        return setup
    if wish == "on":
        compiler = make_compiler(setup, reporter, backend, is_required=True)
        return apply_compiler(setup, compiler)
    if not context.device.compiles_by_default:
        return setup
    own = choose_compiled(setup, root, reporter, backend) if context.world.is_main else None
    choice = context.world.broadcast_object(own)
    assert choice is not None
    if writes:
        write_decision(root, choice)
    if not choice.compiled:
        return setup
    compiler = make_compiler(setup, reporter, backend)

    def record(failure: str) -> None:
        if writes:
            write_decision(root, replace(choice, compiled=False, reason=failure))

    compiler.when_failed = record
    return apply_compiler(setup, compiler)


def check_cuda_graphs(setup: TrainSetup) -> None:
    """Raise `ConfigError` where steps cannot be CUDA graphs."""
    reason, hint = "", "Leave --cuda-graphs out."
    if setup.config.compile == "off":
        reason, hint = "they are of compiled steps", "Add --compile on, or leave it out."
    elif setup.context.device.torch_device.type != "cuda":
        reason = f"the device is {setup.context.device.torch_device}"
    elif setup.context.world.size > 1:
        reason = "they are for one process"
    elif not is_one_graph(setup.context):
        reason = "an objective or a teacher of the caller's is no graph"
    if reason:
        raise ConfigError(f"--cuda-graphs is not possible: {reason}.", hint)


def make_compiler(
    setup: TrainSetup, reporter: Reporter, backend: Backend, *, is_required: bool = False
) -> Compiler:
    """Return the compiler of a run."""
    return prepare_compiler(
        setup.context.device,
        reporter,
        backend=backend,
        is_required=is_required,
        uses_cuda_graphs=setup.config.cuda_graphs,
    )


def apply_compiler(setup: TrainSetup, compiler: Compiler) -> TrainSetup:
    """Return a setup whose steps are compiled; its model is compiled in place, for evaluation too."""
    teachers = () if setup.teacher is None else setup.teacher.teachers
    # A cache is filled once, and by runs that are not compiled too: its targets are theirs. Loaded here, because a
    # network that came later would be another than that of the whole run.
    networks = [teacher.get_network() for teacher in teachers if teacher.cache is None]
    context = compile_model(setup.context, setup.state.model, compiler)
    if context.compiler is None or context.teacher is None:
        for network in networks:
            if not isinstance(network.model, CallableNetwork):
                compiler.compile_module(network.model, limit=MAX_GRAPHS)
    return replace(setup, context=context)


def compile_model(context: TrainContext, model: nn.Module, compiler: Compiler) -> TrainContext:
    """Compile a model in place, and return the context of steps that train it compiled."""
    if not is_one_graph(context):
        compile_parts(model, compiler)
        return context
    compiler.compile_module(model, limit=MAX_EVAL_GRAPHS)
    networks = () if context.teacher is None else context.teacher.networks
    inputs = [context.preprocessing, *(n.model_config.preprocessing for n in networks)]
    # The device of a tensor has an index, which that of a context may lack.
    place_constants(inputs, next(model.parameters()).device)
    return replace(context, compiler=compiler)


def is_one_graph(context: TrainContext) -> bool:
    """Return whether transforms, teacher, student and losses become one graph.

    Not with several processes, whose backward pass sends gradients while others are computed, and not with an
    objective or a teacher of a program's own, which may do what no graph holds.
    """
    networks = () if context.teacher is None else context.teacher.networks
    return (
        context.world.size == 1
        and isinstance(context.objective, Supervised | Distillation)
        and not any(isinstance(network.model, CallableNetwork) for network in networks)
    )


def choose_compiled(
    setup: TrainSetup, root: Path, reporter: Reporter, backend: Backend
) -> Decision:
    """Choose whether a run is compiled: as it began, or by a measurement on a copy of its model.

    What cannot be measured is not compiled. That is a choice too: a resume, which may have more memory, repeats it.
    """
    device = setup.context.device
    kind = device.torch_device.type
    begun = read_decision(root)
    if begun is not None and begun.device == kind:
        return begun
    if device.deterministic:
        choice = Decision(compiled=False, device=kind, reason=TIMES_DIFFER)
        reporter.note(choice.describe())
        return choice
    try:
        # The choice says what fails, in one note.
        choice = measure_choice(setup, make_compiler(setup, SilentReporter(), backend))
    except ConfigError as error:  # no compiler
        choice = Decision(compiled=False, device=kind, reason=error.message.rstrip("."))
    except (OutOfMemory, RuntimeError, MemoryError) as error:
        if not (isinstance(error, OutOfMemory) or ran_out_of_memory(error)):
            raise
        choice = Decision(compiled=False, device=kind, reason=RAN_OUT)
    finally:
        torch._dynamo.reset()  # whose graphs hold memory
        device.empty_cache()
    reporter.note(choice.describe())
    return choice


def measure_choice(setup: TrainSetup, compiler: Compiler) -> Decision:
    """Choose by the time of a few steps on a copy of the model, so that nothing of the run changes.

    The copy is compiled only where that may pay, by the figures of an earlier run or by what is assumed.
    """
    context, kind = setup.context, setup.context.device.torch_device.type
    _, batch = load_batch(setup)
    if batch is None:
        return Decision(compiled=False, device=kind, reason=NO_BATCH)
    if not fits_copy(setup, read_free_memory(context.device)):
        return Decision(compiled=False, device=kind, reason=NO_ROOM)
    num_images, num_graphs = count_work(setup).num_trained, count_graphs(setup)
    decide = partial(choose, num_images=num_images, device=kind)
    step = CopiedStep(setup, batch)
    eager = step.measure()
    key = describe_run(setup, step.num_images)
    earlier = read_figures(key)
    if earlier is not None:
        return decide(earlier.scale_to(eager), num_graphs=num_graphs, source="measured before")
    choice = decide(Figures.assume(eager), num_graphs=num_graphs, source="assumed")
    if not choice.compiled:
        return choice
    start = time.perf_counter()
    step.compile(compiler)
    step.run()
    graph = time.perf_counter() - start
    compiled = step.measure()
    if compiler.failure:
        return Decision(compiled=False, device=kind, reason=compiler.failure.rstrip("."))
    figures = Figures(eager_image=eager, compiled_image=compiled, graph=graph)
    write_figures(key, figures)
    # That of this shape is stored now.
    return decide(figures, num_graphs=num_graphs - 1, source="measured")


class CopiedStep:
    """Forward and backward pass of a micro-batch on a copy of a run's model, in one process.

    Targets that could be cached are left out: the student learns the true labels then.
    """

    def __init__(self, setup: TrainSetup, batch: Batch) -> None:
        """Copy a model, and make a whole micro-batch of a few images."""
        context = replace(setup.context, world=SINGLE_PROCESS)
        if context.cached_teacher is not None:
            context = context.without_teacher()
        recipe, progress = context.recipe, setup.state.progress
        model = copy.deepcopy(setup.state.model)
        frozen = recipe.frozen_part(progress.epoch)[0]
        set_train_mode(model, frozen, recipe.freeze_bn_stats)
        self.state = TrainState(
            model,
            build_optimizer(model, recipe.optim, get_layers(model, recipe)),
            context.device.grad_scaler(),
            None,
            Progress(micro_batch_size=progress.micro_batch_size),
            projector=setup.state.projector,
        )
        self.own = setup.context
        self.context = context
        self.num_images = context.largest_micro_batch(self.state)
        self.batch = repeat_batch(batch, self.num_images)
        self.engine = build_engine(context, self.state)

    def compile(self, compiler: Compiler) -> None:
        """Compile it as the run would be."""
        if is_one_graph(self.own):
            self.context = compile_model(self.context, self.state.model, compiler)
        else:
            compile_parts(self.state.model, compiler)
        self.engine = build_engine(self.context, self.state)

    def run(self) -> None:
        """Take the passes once, and wait for them."""
        placed = place_batch(self.context, self.state, self.batch, 0)
        forward_backward(self.engine, placed, SilentReporter())
        self.state.optimizer.zero_grad(set_to_none=True)
        self.context.device.synchronize()

    def measure(self) -> float:
        """Return the seconds of an image, after two steps in which kernels and memory are prepared."""
        times = list[float]()
        for _ in range(2 + NUM_TIMED):
            start = time.perf_counter()
            self.run()
            times.append(time.perf_counter() - start)
        return min(times[2:]) / self.num_images


def count_graphs(setup: TrainSetup) -> int:
    """Return the graphs that a run needs: of two sizes of batches, for each size of images, and of evaluation."""
    sizes = 2 if setup.early_size else 1
    batches = 1 if setup.context.steps_per_epoch == 1 else 2
    return sizes * batches + 1


def describe_run(setup: TrainSetup, num_images: int) -> str:
    """Return what compiling depends on, by which its figures are stored."""
    config, device = setup.config, setup.context.device
    teacher = setup.context.teacher
    teachers = (
        () if teacher is None else tuple(n.model_config.architecture for n in teacher.networks)
    )
    size = format_size(setup.context.preprocessing.img_size)
    parts = (
        config.model,
        *(f"{name}={value}" for name, value in sorted(config.model_args.items())),
        *teachers,
        f"{num_images} x {size}",
        device.precision,
        name_device(device),
        torch.__version__,
    )
    return ", ".join(parts)


def name_device(device: Device) -> str:
    """Return the GPU's name, or the kind of another device."""
    is_cuda = device.torch_device.type == "cuda"
    return torch.cuda.get_device_name(device.torch_device) if is_cuda else device.torch_device.type

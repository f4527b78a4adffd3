"""Modules and functions that torch compiles, and what a program goes on with where its compiler fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from deitctl.device import ran_out_of_memory
from deitctl.errors import ConfigError
from deitctl.events import Reporter

P = ParamSpec("P")
R = TypeVar("R")
COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")
"""Packages of the errors of compilers."""
NO_COMPILER = "Use --compile auto, which goes on uncompiled, or --no-compile."


class Compiler:
    """Compiles functions with static shapes; after its first failure all of them run as they are written."""

    def __init__(
        self,
        reporter: Reporter,
        *,
        backend: str | Callable[..., Any] = "inductor",
        is_required: bool = False,
        uses_cuda_graphs: bool = False,
        is_deterministic: bool = False,
    ) -> None:
        """Compile nothing yet.

        Args:
            reporter: gets a note where the compiler fails.
            backend: of torch.compile.
            is_required: whether a failure is an error.
            uses_cuda_graphs: whether functions that take part are replayed as CUDA graphs.
            is_deterministic: whether no kernel is chosen by timing.
        """
        self.reporter, self.backend, self.is_required = reporter, backend, is_required
        self.uses_cuda_graphs = uses_cuda_graphs
        self.options = choose_by_rule() if is_deterministic else {}
        """Of all functions."""
        self.failure = ""
        """Why nothing is compiled any more; empty: it is."""
        self.when_failed: Callable[[str], None] = lambda failure: None
        """Called with that."""
        # The graph of a backward pass is else compiled within that pass, where nothing could take its place.
        from torch._functorch import config  # which imports the compiler

        if hasattr(config, "force_non_lazy_backward_lowering"):
            config.force_non_lazy_backward_lowering = True

    def compile(
        self,
        function: Callable[P, R],
        *,
        limit: int,
        fullgraph: bool = False,
        cuda_graphs: bool = False,
    ) -> Callable[P, R]:
        """Return a function that does the same compiled.

        Args:
            function: whose shapes are few.
            limit: graphs of it at most.
            fullgraph: whether it is an error if it is not one graph.
            cuda_graphs: whether it takes part in `uses_cuda_graphs`.

        Raises:
            ConfigError: when called, if the compiler fails and is required.
        """
        settings = limit_recompiles(limit)
        options = dict(self.options)
        if cuda_graphs and self.uses_cuda_graphs:
            options["triton.cudagraphs"] = True
        if options:
            settings["options"] = options
        compiled = torch.compile(
            function, fullgraph=fullgraph, dynamic=False, backend=self.backend, **settings
        )

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if not self.failure:
                try:
                    return compiled(*args, **kwargs)
                except Exception as error:
                    if not is_of_compiler(error):
                        raise
                    self.give_up(error)
            return function(*args, **kwargs)

        return call

    def compile_module(self, module: nn.Module, *, limit: int) -> None:
        """Compile a module in place; names of its parameters stay."""
        # As `nn.Module.compile` does, but for the failure.
        call = self.compile(module._call_impl, limit=limit)
        call.compiler, call.limit = self, limit  # type: ignore[attr-defined]
        module._compiled_call_impl = call

    def give_up(self, error: Exception) -> None:
        """Compile nothing any more, and say why; raise `ConfigError` if the compiler is required."""
        self.failure = describe_failure(error)
        message = f"torch cannot compile this model: {self.failure}"
        if self.is_required:
            without = " Leave --cuda-graphs out." if self.uses_cuda_graphs else ""
            raise ConfigError(message, NO_COMPILER + without) from error
        self.when_failed(self.failure)
        self.reporter.note(f"{message} The run goes on uncompiled.")


def is_compiled(model: nn.Module) -> bool:
    """Return whether a model, or a part of it, is compiled in place: each shape of its input is then a graph."""
    return any(module._compiled_call_impl is not None for module in model.modules())


def compile_copy(model: nn.Module, copy: nn.Module) -> None:
    """Compile a copy of a model as the model is, in place; a copy does not take that over."""
    for original, module in zip(model.modules(), copy.modules(), strict=True):
        call: Any = original._compiled_call_impl
        if isinstance(getattr(call, "compiler", None), Compiler):
            call.compiler.compile_module(module, limit=call.limit)


def is_of_compiler(error: Exception) -> bool:
    """Return whether a compiler failed, and not for want of memory, which smaller batches have."""
    packages = [kind.__module__ for kind in type(error).__mro__]
    return any(p.startswith(COMPILERS) for p in packages) and not ran_out_of_memory(error)


def describe_failure(error: Exception) -> str:
    """Return the first line of a compiler's error, as a sentence."""
    error = getattr(error, "inner_exception", error)  # of the backend
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{(lines or [type(error).__name__])[0][:300].rstrip('.:')}."


def choose_by_rule() -> dict[str, Any]:
    """Return the options with which inductor times nothing to choose a kernel; torch's own switch is not enough."""
    from torch._inductor import config

    return {"deterministic": True} if hasattr(config, "deterministic") else {}


def limit_recompiles(limit: int) -> dict[str, Any]:
    """Return the argument of torch.compile for the most graphs of a function; torch before 2.12 has a limit of 8
    for all."""
    has_limit = "recompile_limit" in inspect.signature(torch.compile).parameters
    return {"recompile_limit": limit} if has_limit else {}

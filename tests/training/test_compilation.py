"""Compiled training: few graphs, and a resume of the same bits; graphs are run as torch traced them."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import partial

import pytest
import torch

from deitctl.device import choose_device
from deitctl.errors import ConfigError, Interrupted
from deitctl.models.catalog import BY_ALIAS as ARCHITECTURES
from deitctl.models.vit import VisionTransformer
from deitctl.training import build, step
from deitctl.training.compilation import (
    CACHE_VARIABLE,
    MAX_GRAPHS,
    CompiledObjective,
    compile_training,
)
from deitctl.training.launch import resume, run_training
from deitctl.training.objective import CrossEntropy, StudentBatch, Supervised

CPU = choose_device("cpu", "fp32")


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, os.environ.get(CACHE_VARIABLE, ""))
    monkeypatch.delenv(CACHE_VARIABLE)
    yield
    torch._dynamo.reset()


def shallow(alias: str = "deit_tiny") -> VisionTransformer:
    """Return a network of one block in training mode."""
    torch.manual_seed(0)
    arch = replace(ARCHITECTURES[alias], img_size=32, depth=1, embed_dim=48)
    return VisionTransformer(arch, num_classes=5, img_size=32).train()


class Counter:
    """A backend of torch.compile that compiles nothing and counts graphs."""

    def __init__(self):
        self.num_graphs = 0

    def __call__(self, graph, inputs):
        self.num_graphs += 1
        return graph.forward


def make_batch(size: int, side: int = 32) -> StudentBatch:
    torch.manual_seed(size)
    targets = torch.eye(5)[torch.arange(size) % 5]
    mask = torch.ones(1, 2, 12)[..., :size]  # of a batch of 12: a micro-batch has its strides
    return StudentBatch(torch.randn(size, 3, side, side), targets, None, mask)


def test_micro_batches_of_a_shape_share_a_graph_and_the_model_in_it_is_no_other(reporter):
    counter = Counter()
    model = shallow()
    objective = compile_training(
        model,
        Supervised(CrossEntropy()),
        CPU,
        reporter,
        is_one_graph=True,
        backend=counter,
    )
    for size in (12, 4, 12, 4):
        objective(model, make_batch(size))["loss"].backward()
    assert counter.num_graphs == 2
    model.eval()
    with torch.inference_mode():
        for _ in range(2):
            model(torch.randn(8, 3, 32, 32))
    assert counter.num_graphs == 3


def test_one_shape_too_many_is_computed_uncompiled_after_a_warning(reporter):
    counter, model = Counter(), shallow()
    objective = CompiledObjective(Supervised(CrossEntropy()), reporter, backend=counter)
    for size in range(1, MAX_GRAPHS + 3):
        losses = objective(model, make_batch(size))
        expected = objective.objective(model, make_batch(size))
        torch.testing.assert_close(losses, expected)
    assert counter.num_graphs == MAX_GRAPHS
    assert len(reporter.warnings) == 1
    assert f"more than {MAX_GRAPHS} shapes" in reporter.warnings[0]


def test_blocks_are_compiled_one_by_one_and_parameters_keep_their_names(deit, reporter):
    model: VisionTransformer = deit("deit_tiny")
    names, objective = list(model.state_dict()), Supervised(CrossEntropy())
    assert compile_training(model, objective, CPU, reporter, is_one_graph=False) is objective
    assert all(block._compiled_call_impl is not None for block in model.blocks)
    assert model._compiled_call_impl is None
    assert list(model.state_dict()) == names


def test_compiling_without_a_compiler_is_refused(deit, reporter, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler"):
        compile_training(
            deit("deit_tiny"), Supervised(CrossEntropy()), CPU, reporter, is_one_graph=True
        )


def test_a_run_makes_few_graphs_and_resumes_to_the_same_bits(little_config, little, monkeypatch):
    counter = Counter()
    monkeypatch.setattr(build, "compile_training", partial(compile_training, backend=counter))

    def configure(output):
        config = little_config(output, compile=True, model_args={"depth": 1, "embed_dim": 48})
        resizing = replace(config.recipe.progressive_resize, fraction=0.5, scale=0.5)
        recipe = replace(config.recipe, epochs=2, ema_decay=0.9, progressive_resize=resizing)
        return replace(config, recipe=recipe)

    whole = run_training(configure("whole"), datasets=little).run
    assert 3 <= counter.num_graphs <= MAX_GRAPHS
    calls, compute_losses = [], step.compute_losses

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(step, "compute_losses", interrupted)
        with pytest.raises(Interrupted):
            run_training(configure("run"), datasets=little)
    run = whole.with_name("run")
    resume(run, datasets=little)
    paths = list(whole.glob("**/*.safetensors"))
    assert paths
    for path in paths:
        assert path.read_bytes() == (run / path.relative_to(whole)).read_bytes(), path

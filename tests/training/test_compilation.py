"""Compiled training: few graphs, and a resume of the same bits; graphs are run as torch traced them."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from deitctl.config import DistillConfig
from deitctl.device import choose_device
from deitctl.errors import ConfigError
from deitctl.models.compiled import Compiler
from deitctl.training import launch, step
from deitctl.training.compilation import (
    CACHE_VARIABLE,
    MAX_GRAPHS,
    FewGraphs,
    compile_parts,
    prepare_compiler,
)
from deitctl.training.compiled_setup import compile_setup
from deitctl.training.launch import resume, run_training

CPU = choose_device("cpu", "fp32")


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, os.environ.get(CACHE_VARIABLE, ""))
    monkeypatch.delenv(CACHE_VARIABLE)
    yield
    torch._dynamo.reset()


class Counter:
    """A backend of torch.compile that compiles nothing and counts graphs."""

    def __init__(self):
        self.num_graphs = 0

    def __call__(self, graph, inputs):
        self.num_graphs += 1
        return graph.forward


class Inputs(NamedTuple):
    images: Tensor
    mask: Tensor | None


def test_shapes_share_graphs_and_one_too_many_is_computed_uncompiled_after_a_warning(reporter):
    counter, student = Counter(), nn.Linear(3, 2)

    def compute(inputs: Inputs) -> dict[str, Tensor]:
        return {"loss": student(inputs.images).sum()}

    graphs = FewGraphs(compute, student, Compiler(reporter, backend=counter))
    whole = torch.randn(12, 3)
    for size in (12, 4, 12, 4):
        graphs(Inputs(whole[:size], None))["loss"].backward()
    assert counter.num_graphs == 2
    graphs(Inputs(whole.T.contiguous().T, None))  # of other strides
    assert counter.num_graphs == 2
    for size in range(1, MAX_GRAPHS + 3):
        inputs = Inputs(whole[:size], None)
        torch.testing.assert_close(graphs(inputs), compute(inputs))
    assert counter.num_graphs == MAX_GRAPHS
    assert len(reporter.warnings) == 1
    assert f"more than {MAX_GRAPHS} shapes" in reporter.warnings[0]


def test_blocks_are_compiled_one_by_one_and_parameters_keep_their_names(deit, reporter):
    model = deit("deit_tiny")
    names = list(model.state_dict())
    compile_parts(model, Compiler(reporter, backend="eager"))
    assert all(block._compiled_call_impl is not None for block in model.blocks)
    assert model._compiled_call_impl is None
    assert list(model.state_dict()) == names


def test_compiling_without_a_compiler_is_refused(reporter, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler"):
        prepare_compiler(CPU, reporter)


@pytest.fixture
def counter(monkeypatch):
    """Compile runs by a backend that counts."""
    counter = Counter()
    monkeypatch.setattr(launch, "compile_setup", partial(compile_setup, backend=counter))
    return counter


SHAPE = {"depth": 1, "embed_dim": 48}


def test_a_run_of_two_sizes_and_a_live_teacher_makes_few_graphs_and_no_breaks(
    little_config, little, taught_once, counter
):
    distill = DistillConfig(
        teacher=str(taught_once),
        mode="soft",
        alpha=0.5,
        tau=2.0,
        reduction="batchmean",
        dist_token=True,
        allow_weak_teacher=True,
        teacher_input="mixed",
        views=0,
        logits_topk=10,
    )
    config = little_config("run", compile="on", model_args=SHAPE, distill=distill)
    resizing = replace(config.recipe.progressive_resize, fraction=0.5, scale=0.5)
    recipe = replace(config.recipe, epochs=2, ema_decay=0.9, progressive_resize=resizing)
    torch._dynamo.utils.counters.clear()
    run_training(replace(config, recipe=recipe), datasets=little)
    # Two sizes of images, each in batches of two sizes.
    assert 4 < counter.num_graphs <= MAX_GRAPHS
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.usefixtures("counter")
def test_a_compiled_run_resumes_to_the_same_bits(little_config, little, monkeypatch):
    def configure(output):
        config = little_config(output, compile="on", model_args=SHAPE, save_every="1")
        return replace(config, recipe=replace(config.recipe, epochs=1, ema_decay=0.0))

    calls, compute_losses = [], step.compute_losses
    part = Path("part").absolute()

    def copy_run(*arguments):
        """Before the third step, take a copy of the run as it would be if it were stopped here."""
        calls.append(1)
        if len(calls) == 3:
            saved, end = part.with_name("whole") / "checkpoint", time.monotonic() + 20
            while not (saved / "state.json").is_file() and time.monotonic() < end:
                time.sleep(0.01)
            shutil.copytree(saved.parent, part)
        return compute_losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(step, "compute_losses", copy_run)
        whole = run_training(configure("whole"), datasets=little).run
    assert json.loads((part / "checkpoint" / "state.json").read_text())["step"] < 4
    resume(part, datasets=little)
    paths = list(whole.glob("**/*.safetensors"))
    assert paths
    for path in paths:
        assert path.read_bytes() == (part / path.relative_to(whole)).read_bytes(), path

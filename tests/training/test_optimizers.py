"""Optimizers by timm's names: their steps are timm's, their states are saved and restored, bit for bit."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import Tensor, nn

from deitctl.errors import ConfigError, ModelError
from deitctl.models.introspect import get_layer_ids
from deitctl.recipes import OPTIMIZER_DEFAULTS, SMALL
from deitctl.settings import override
from deitctl.training.optim import add_trained, build_optimizer, set_learning_rate
from deitctl.training.optimizer_choice import check_optimizer, choose_rates, create_optimizer
from deitctl.training.optimizer_state import count_state_bytes
from deitctl.training.state import Progress, TrainState

FOREIGN = ("fused", "bnb")
BUILT = [n for n in list_optimizers() if not n.startswith(FOREIGN) and n != "adahessian"]
COMPILED = ("kron", "kronc", "kronw")  # torch.compile takes half a minute
ONE_OF_A_CLASS = list({get_optimizer_info(n).opt_class: n for n in BUILT if n not in COMPILED}.values())


def optim(**changes: object):
    return override(SMALL.optim, changes)


class Net(nn.Module):
    """A parameter of each kind that optimizers treat apart: convolution, matrix, vector, token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.proj = nn.Conv2d(3, 8, 2)
        self.head = nn.Linear(8, 4)


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def take_steps(state: TrainState, steps: range) -> None:
    for step in steps:
        set_gradients(state.model, step)
        set_learning_rate(state.optimizer, 1e-3 * (1 + step))
        state.optimizer.step()
        state.progress.step = step + 1


def build_state(name: str) -> TrainState:
    model = Net()
    return TrainState(
        model, build_optimizer(model, optim(opt=name)), torch.amp.GradScaler(enabled=False), None, Progress()
    )


def copy_values(state: TrainState) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in state.model.state_dict().items()}


@pytest.mark.parametrize("name", [n for n in BUILT if n not in COMPILED])
def test_a_run_that_is_resumed_takes_the_steps_of_one_that_is_not(name, tmp_path):
    unbroken, saved, resumed = (build_state(name) for _ in range(3))
    take_steps(unbroken, range(5))
    take_steps(saved, range(3))
    saved.save(tmp_path / "checkpoint")
    resumed.load(tmp_path / "checkpoint")
    take_steps(resumed, range(3, 5))
    for key, value in copy_values(unbroken).items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


@pytest.mark.parametrize("name", ["lamb", "muon", "nadamuon", "sgd", "lion"])
def test_steps_are_timms_on_the_same_gradients(name, deit):
    ours, theirs = deit(), deit()
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(ours, optim(opt=name, lr=2e-3))
    theirs.no_weight_decay = lambda: {"cls_token", "dist_token", "pos_embed"}
    reference = create_optimizer_v2(theirs, name, lr=2e-3, weight_decay=SMALL.optim.weight_decay)
    set_learning_rate(optimizer, 2e-3)
    for step in range(3):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        reference.step()
    for (key, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(value, other), key

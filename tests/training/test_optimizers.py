"""Optimizers by timm's names: their steps are timm's, their states are saved and restored, bit for bit."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from timm.models import model_parameters
from timm.optim import create_optimizer_v2, list_optimizers
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn

from deitctl.errors import ConfigError, ModelError
from deitctl.recipes import OPTIMIZER_DEFAULTS, RECIPES, SMALL
from deitctl.settings import override
from deitctl.training.optim import add_trained, build_optimizer, set_learning_rate
from deitctl.training.optimizer_choice import (
    check_optimizer,
    choose_rates,
    replace_rates,
    warn_of_rising_rate,
)
from deitctl.training.optimizer_state import count_state_bytes, seeded
from deitctl.training.state import Progress, TrainState
from deitctl.training.step import clip_gradients

FOREIGN = ("fused", "bnb")
BUILT = [n for n in list_optimizers() if not n.startswith(FOREIGN) and n != "adahessian"]
COMPILED = ("kron", "kronc", "kronw")


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
        with seeded(state.optimizer, 0, "optimizer", step):  # as a training step has it
            state.optimizer.step()
        state.progress.step = step + 1


def build_state(name: str) -> TrainState:
    model = Net()
    return TrainState(
        model,
        build_optimizer(model, optim(opt=name)),
        torch.amp.GradScaler(enabled=False),
        None,
        Progress(),
    )


def copy_values(state: TrainState) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in state.model.state_dict().items()}


@pytest.mark.parametrize("name", BUILT)
def test_a_run_that_is_resumed_takes_the_steps_of_one_that_is_not(name, tmp_path, monkeypatch):
    if name in COMPILED:  # which takes half a minute, and changes nothing that is saved
        monkeypatch.setattr(torch, "compile", lambda f=None, **_: f or (lambda g: g))
    unbroken, saved, resumed = (build_state(name) for _ in range(3))
    take_steps(unbroken, range(5))
    take_steps(saved, range(3))
    saved.save(tmp_path / "checkpoint")
    resumed.load(tmp_path / "checkpoint")
    take_steps(resumed, range(3, 5))
    for key, value in copy_values(unbroken).items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


@pytest.mark.parametrize("name", ["lamb", "muon", "nadamuon", "sgd", "lion"])
def test_steps_are_timms_on_the_same_gradients(name):
    ours, theirs = Net(), Net()
    optimizer = build_optimizer(ours, optim(opt=name, lr=2e-3))
    theirs.no_weight_decay = lambda: {"cls_token", "dist_token", "pos_embed"}
    reference = create_optimizer_v2(theirs, name, lr=2e-3, weight_decay=SMALL.optim.weight_decay)
    set_learning_rate(optimizer, 2e-3)
    for step in range(3):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        reference.step()
    for (key, value), other in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opt": "lmab"}, "no optimizer 'lmab'.*Did you mean 'lamb'"),
        ({"opt": "lookahead_adam"}, "no optimizer"),
        ({"opt": "adahessian"}, "second derivatives"),
        ({"opt": "fusedlamb"}, "NVIDIA Apex.*Use lamb"),
        ({"opt": "bnbadamw8bit"}, "bitsandbytes.*Use adamw"),
        ({"opt": "adamw", "momentum": 0.8}, "adamw has no momentum.*optim.betas"),
        ({"opt": "sgd", "betas": (0.9, 0.99)}, "sgd has no betas"),
        ({"opt": "lion", "eps": 1e-6}, "lion has no eps"),
        ({"opt": "lion", "betas": (0.9, 0.99, 0.9)}, "lion has 2 betas, not 3"),
        ({"opt": "muon", "opt_args": ("ns_step=3",)}, "no argument 'ns_step'.*ns_steps"),
        ({"opt": "muon", "opt_args": ("conv_mode=round",)}, "refuses its arguments.*conv_mode"),
        ({"opt": "muon", "opt_args": ("lr=3",)}, "lr has a setting of its own.*--lr"),
        ({"opt": "muon", "opt_args": ("nesterov",)}, "is not name=value"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(changes, message):
    with pytest.raises(ConfigError) as error:
        check_optimizer(optim(**changes))
    assert re.search(message, str(error.value))


def test_arguments_reach_the_optimizer():
    def group(**changes: object) -> dict[str, object]:
        return build_optimizer(Net(), optim(**changes)).param_groups[0]

    muon = group(
        opt="Muon", momentum=0.95, betas=(0.8, 0.9), eps=1e-5, opt_args="nesterov=true,ns_steps=4"
    )
    assert [muon[k] for k in ("momentum", "betas", "eps", "nesterov", "ns_steps")] == [
        0.95, (0.8, 0.9), 1e-5, True, 4,
    ]  # fmt: skip
    assert group(opt="muon")["momentum"] == 0.9  # timm's default for all
    adamw = group(betas=(0.8, 0.9), opt_args="amsgrad=true")
    assert (adamw["betas"], adamw["amsgrad"], adamw["fused"]) == ((0.8, 0.9), True, True)


def test_rates_of_a_recipe_become_those_of_the_optimizer_unless_the_user_names_them():
    lion, reason = choose_rates(optim(opt="lion"), ())
    assert lion.lr * lion.weight_decay == pytest.approx(SMALL.optim.lr * SMALL.optim.weight_decay)
    assert lion.lr < SMALL.optim.lr
    assert "lion: learning rate 0.2 times" in reason
    own, reason = choose_rates(optim(opt="lion", lr=1e-4), ("optim.lr", "optim.weight_decay"))
    assert (own.lr, own.weight_decay, reason) == (1e-4, SMALL.optim.weight_decay, "")
    assert choose_rates(optim(opt="nadamuon"), ()) == (optim(opt="nadamuon"), "")
    with pytest.raises(ConfigError, match="is for AdamW, and adadelta needs another"):
        choose_rates(optim(opt="adadelta"), ())
    assert set(OPTIMIZER_DEFAULTS) <= set(list_optimizers())


def test_the_ends_of_a_schedule_follow_its_peak(reporter):
    """paper-384 has one rate all along; with lion it rose from a fifth of it to all of it."""
    paper = RECIPES["paper-384"]
    lion, _ = choose_rates(replace(paper.optim, opt="lion"), ())
    assert (lion.lr, lion.min_lr) == pytest.approx((1e-6, 1e-6))
    assert lion.warmup_lr == pytest.approx(2e-7)
    own, _ = choose_rates(replace(paper.optim, opt="lion"), ("optim.min_lr",))
    assert (own.lr, own.min_lr) == pytest.approx((1e-6, 5e-6))
    for config, peak in ((lion, lion.lr), (replace(own, sched="constant"), own.lr)):
        warn_of_rising_rate(config, peak, reporter)
    assert reporter.warnings == []
    warn_of_rising_rate(own, own.lr, reporter)
    (warning,) = reporter.warnings
    assert "rises to the end of the schedule: min_lr is 5e-06, the peak 1e-06" in warning


def test_another_optimizer_of_a_run_takes_its_rate_from_the_user_and_its_decay_with_it(reporter):
    """What is named counts, not whether it differs: a rate may be that of the file."""
    run, sgd = optim(), optim(opt="sgd")
    with pytest.raises(ConfigError, match="is for adamw"):
        replace_rates(run, sgd, ("recipe.optim.opt",), "run.toml", reporter)
    assert replace_rates(run, run, (), "run.toml", reporter) == run
    named = ("recipe.optim.opt", "recipe.optim.lr")
    changed = replace_rates(run, sgd, named, "run.toml", reporter)
    assert (changed.lr, changed.weight_decay) == (run.lr, pytest.approx(1e-4))
    (note,) = reporter.notes
    assert "sgd: weight decay 0.002 times that of run.toml, which is for adamw" in note
    own = replace_rates(run, sgd, (*named, "recipe.optim.weight_decay"), "run.toml", reporter)
    assert own == sgd
    back = replace_rates(changed, replace(run, weight_decay=1e-4), named, "run.toml", reporter)
    assert back.weight_decay == pytest.approx(run.weight_decay)


@pytest.mark.parametrize(
    ("name", "per_number"), [("adamw", 8), ("sgd", 4), ("lion", 4), ("adafactorbv", 2)]
)
def test_memory_of_the_state_is_counted_for_each_optimizer(name, per_number):
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    optimizer = build_optimizer(model, optim(opt=name))
    assert count_state_bytes(model, optimizer) == pytest.approx(per_number * 64 * 64, abs=1024)
    assert not optimizer.state  # nothing of it was built


def test_thawed_parameters_begin_a_count_of_steps_of_their_own(tmp_path):
    def freeze(state: TrainState) -> TrainState:
        state.model.proj.requires_grad_(False)
        state.optimizer = build_optimizer(state.model, optim(opt="lamb"))
        return state

    def thaw(state: TrainState) -> None:
        state.model.proj.requires_grad_(True)
        add_trained(state.optimizer, state.model, optim(opt="lamb"))

    unbroken, saved, resumed = (freeze(build_state("lamb")) for _ in range(3))
    for state in (unbroken, saved):
        take_steps(state, range(3))
        thaw(state)
    take_steps(unbroken, range(3, 6))
    assert [int(g["step"]) for g in unbroken.optimizer.param_groups] == [6, 6, 3, 3]
    saved.save(tmp_path / "checkpoint")  # thawed, and not yet stepped
    thaw(resumed)
    resumed.load(tmp_path / "checkpoint")
    take_steps(resumed, range(3, 6))
    for key, value in copy_values(unbroken).items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("lamb", {"groups": {"cls_token.step": 9}}, "'cls_token.step' is 9 after 3 steps"),
        ("lamb", {"groups": {"cls_token.step": "3"}}, "'cls_token.step' is '3'"),
        ("lamb", {"groups": {"cls_token.steps": 3}}, "has the unknown 'cls_token.steps'|lacks"),
        ("muon", {"numbers": {"proj.weight.use_muon": False}}, "'proj.weight.use_muon' is False"),
        ("adamp", {"numbers": {"proj.weight.step": 2.5}}, "'proj.weight.step' is 2.5"),
        ("adamp", {"numbers": {}}, "lacks"),
        ("adamp", {"numbers": []}, "another type"),
    ],
)
def test_numbers_that_no_step_leaves_are_refused(name, numbers, message, tmp_path):
    state = build_state(name)
    take_steps(state, range(3))
    snapshot = state.snapshot()
    saved = snapshot.record["optimizer"]
    changed = {k: {**saved[k], **v} if isinstance(v, dict) and v else v for k, v in numbers.items()}
    record = {**snapshot.record, "optimizer": {**saved, **changed}}
    replace(snapshot, record=record).write(tmp_path / "checkpoint")
    with pytest.raises(ModelError, match=message):
        build_state(name).load(tmp_path / "checkpoint")


def hold(model):
    """The state of a training, as far as gradients are clipped by it."""
    return TrainState(model, None, None, None, Progress())


@pytest.mark.parametrize(("mode", "limit"), [("norm", 0.5), ("value", 0.1), ("agc", 0.01)])
def test_gradients_are_clipped_as_timm_clips_them(mode, limit, deit):
    ours, theirs = deit(), deit()
    set_gradients(ours, 0)
    set_gradients(theirs, 0)
    norm = torch.nn.utils.get_total_norm([p.grad for p in ours.parameters()])
    clip_gradients(hold(ours), optim(clip_grad=limit, clip_mode=mode), norm)
    dispatch_clip_grad(model_parameters(theirs, exclude_head="agc" in mode), limit, mode=mode)
    for (name, p), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p.grad, other.grad), name
    plain = deit()
    set_gradients(plain, 0)
    clip_gradients(hold(plain), optim(clip_grad=0.0, clip_mode=mode), norm)  # none
    assert not torch.equal(ours.pos_embed.grad, plain.pos_embed.grad)

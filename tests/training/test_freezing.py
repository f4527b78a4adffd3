"""What is frozen does not move, drops nothing and keeps its statistics, until it is thawed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from deitctl.errors import ConfigError
from deitctl.models.introspect import enable_grad_checkpointing
from deitctl.models.vit import VisionTransformer
from deitctl.recipes import SMALL
from deitctl.training.freezing import begin_epoch, check_freezing, freeze
from deitctl.training.optim import build_optimizer, list_parameters
from deitctl.training.state import Progress, TrainState


@pytest.fixture
def deep(tiny_arch, randomize):
    """Make a DeiT of so many blocks."""

    def make(depth: int, drop_path_rate: float = 0.0) -> VisionTransformer:
        arch = replace(tiny_arch("deit_tiny", 32), depth=depth)
        model = VisionTransformer(arch, num_classes=5, img_size=32, drop_path_rate=drop_path_rate)
        randomize(model, 0)
        return model

    return make


def recipe(**changes: object):
    return replace(SMALL, **changes)


def build_state(model: nn.Module, frozen: tuple[str, ...] = ()) -> TrainState:
    scaler = torch.amp.GradScaler(enabled=False)
    return TrainState(
        model, build_optimizer(model, SMALL.optim), scaler, None, Progress(), frozen=frozen
    )


def test_the_embeddings_and_the_first_blocks_of_a_deit_are_frozen(deep):
    model = deep(3)
    names = freeze(model, recipe(freeze_blocks=2))
    assert {n.partition(".")[0] for n in names} == {
        "cls_token",
        "pos_embed",
        "patch_embed",
        "blocks",
    }
    assert {n.split(".")[1] for n in names if n.startswith("blocks")} == {"0", "1"}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters()} - set(names)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_layers_of_timms_models_are_frozen_by_their_groups(name):
    model = timm.create_model(name, num_classes=3)
    names = freeze(model, recipe(freeze_blocks=1))
    frozen = set(names)
    assert frozen
    assert not any(n.startswith(("head.", "fc.")) for n in frozen)
    state = build_state(model, names)
    begin_epoch(state, recipe(freeze_blocks=1), 0)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [m for m in norms if not m.training]
    assert (0 < len(kept) < len(norms)) if norms else True


def test_a_frozen_block_is_in_eval_mode_and_thaws_in_its_epoch(deep):
    model, plan = deep(3), recipe(freeze_blocks=2, thaw_epoch=3)
    names = freeze(model, plan)
    state = build_state(model, names)
    for epoch in (0, 1):
        assert not begin_epoch(state, plan, epoch)
        assert [block.training for block in model.blocks] == [False, False, True]
        assert len(list_parameters(state.optimizer)) == len(list(model.parameters())) - len(names)
    assert begin_epoch(state, plan, 2)
    assert all(block.training for block in model.blocks)
    assert list_parameters(state.optimizer) == set(model.parameters())
    assert not begin_epoch(state, plan, 3)
    spared = [g for g in state.optimizer.param_groups if g["weight_decay"] == 0]
    assert {id(p) for g in spared for p in g["params"]} >= {
        id(model.cls_token),
        id(model.pos_embed),
    }


def test_a_frozen_backbone_thaws_too(deep):
    model, plan = deep(2), recipe(freeze="backbone", thaw_epoch=2)
    state = build_state(model, freeze(model, plan))
    assert not begin_epoch(state, plan, 0)
    assert not model.training
    assert model.head.training
    assert begin_epoch(state, plan, 1)
    assert model.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": "backbone", "freeze_blocks": 2}, "freezes all blocks"),
        ({"thaw_epoch": 3}, "thaws nothing"),
        ({"freeze_blocks": 2, "thaw_epoch": 1}, "does not fit"),
        ({"freeze_blocks": 2, "thaw_epoch": 101}, "does not fit 100 epochs"),
    ],
)
def test_settings_that_freeze_nothing_or_twice_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_freezing(recipe(**changes))


def test_more_blocks_than_there_are_are_refused(deep):
    with pytest.raises(ConfigError, match="the model has 2 blocks"):
        freeze(deep(2), recipe(freeze_blocks=3))
    freeze(deep(2), recipe(freeze_blocks=2))  # norm and head are left


def measure_step(model: nn.Module, images: torch.Tensor, mask: torch.Tensor | None):
    """Return the gradients of a step, and the bytes that are stored for its backward pass."""
    stored: dict[int, int] = {}

    def store(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train().zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
        out = model(images) if mask is None else model(images, mask)
        loss = (out if isinstance(out, torch.Tensor) else out.cls).square().sum()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], sum(stored.values())


@pytest.mark.parametrize("kind", ["deit", "test_vit"])
def test_activation_checkpointing_stores_less_and_gives_the_same_gradients(kind, deep):
    torch.manual_seed(0)
    model = deep(4, drop_path_rate=0.5) if kind == "deit" else timm.create_model(kind)
    size = model.img_size if kind == "deit" else 160
    images, mask = torch.randn(4, 3, size, size), None
    if kind == "deit":
        mask = model.sample_drop_path(4, torch.Generator().manual_seed(1))
        assert (mask == 0).any()
    plain, plain_bytes = measure_step(model, images, mask)
    enable_grad_checkpointing(model)
    again, fewer_bytes = measure_step(model, images, mask)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert fewer_bytes < 0.6 * plain_bytes


def test_a_model_without_activation_checkpointing_is_refused():
    with pytest.raises(ConfigError, match="no activation checkpointing"):
        enable_grad_checkpointing(nn.Linear(2, 2))

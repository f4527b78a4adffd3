"""Which of a model's parameters stand in which layer, and which of them are its classifier."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from deitctl.config import ProgressiveResize
from deitctl.errors import ConfigError, ModelError
from deitctl.models import timm_models
from deitctl.models.introspect import (
    compute_early_size,
    compute_max_activation_bytes,
    describe_layers,
    freeze_backbone,
    get_layer_ids,
    has_few_patches,
    pin_img_size,
)
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.recipes import FINETUNE
from deitctl.training.freezing import set_train_mode

CONVNETS = ["regnety_002", "mobilenetv3_small_050", "resnet18"]


def learning(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("alias", "heads"), [("deit_tiny", ("head",)), ("deit_tiny_distilled", ("head", "head_dist"))]
)
def test_a_deits_classifiers_are_its_heads(alias, heads, deit):
    names = describe_layers(deit(alias))
    assert names == {
        "classifier": heads,
        "first_conv": "patch_embed.proj",
        "fixed_input_size": True,
    }


@pytest.mark.parametrize(
    ("name", "classifier"),
    [("regnety_002", "head.fc"), ("mobilenetv3_small_050", "classifier"), ("resnet18", "fc")],
)
def test_a_convnets_classifier_is_timms(name, classifier):
    model = timm.create_model(name, num_classes=4)
    assert describe_layers(model)["classifier"] == (classifier,)
    assert model.get_submodule(classifier).out_features == 4
    assert isinstance(model.get_submodule(describe_layers(model)["first_conv"]), nn.Conv2d)


@pytest.mark.parametrize(
    ("alias", "left"),
    [
        ("deit_tiny", {"head.weight", "head.bias"}),
        ("deit_tiny_distilled", {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}),
    ],
)
def test_freeze_backbone_leaves_a_deits_heads_trainable(alias, left, deit):
    model = deit(alias)
    freeze_backbone(model)
    assert learning(model) == left


@pytest.mark.parametrize("name", CONVNETS)
def test_freeze_backbone_leaves_a_convnets_classifier_trainable(name):
    model = timm.create_model(name, num_classes=4)
    (head,) = describe_layers(model)["classifier"]
    freeze_backbone(model)
    assert learning(model) == {f"{head}.weight", f"{head}.bias"}


def test_freeze_backbone_unfreezes_the_head(deit):
    model = deit().requires_grad_(False)
    freeze_backbone(model)
    assert learning(model) == {"head.weight", "head.bias"}


def test_a_frozen_backbone_does_not_change_in_training(deit, noise):
    model = deit("deit_tiny_distilled")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    freeze_backbone(model)
    set_train_mode(model, "backbone")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(head.square().sum() for head in model(noise(2, 3, 32, 32))).backward()
    optimizer.step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_layers_of_a_distilled_deit_by_hand(deit):
    """Embeddings below, then twelve blocks, then the norm and the heads: 0..13."""
    ids = get_layer_ids(deit("deit_tiny_distilled"))
    assert {n for n, i in ids.items() if i == 0} == {
        "cls_token",
        "dist_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    }
    assert {n for n, i in ids.items() if i == 13} == {
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
        "head_dist.weight",
        "head_dist.bias",
    }
    for block in range(12):
        members = {n for n, i in ids.items() if i == block + 1}
        assert all(n.startswith(f"blocks.{block}.") for n in members)
        # two norms, qkv, projection, two of the MLP, each with weight and bias
        assert len(members) == 12


@pytest.mark.parametrize("alias", ["deit_tiny", "deit_small_distilled", "deit3_small"])
def test_every_parameter_of_a_deit_has_a_layer(alias, deit):
    model = deit(alias)
    ids = get_layer_ids(model)
    assert list(ids) == [name for name, _ in model.named_parameters()]
    assert set(ids.values()) == set(range(14))


@pytest.mark.parametrize("name", [*CONVNETS, "vit_tiny_patch16_224", "convnext_atto"])
def test_every_parameter_of_timms_models_has_a_layer(name):
    model = timm.create_model(name, num_classes=4)
    ids = get_layer_ids(model)
    assert ids.keys() == {n for n, _ in model.named_parameters()}
    assert set(ids.values()) == set(range(max(ids.values()) + 1))
    head = describe_layers(model)["classifier"][0]
    assert ids[f"{head}.weight"] == max(ids.values())
    assert ids[f"{describe_layers(model)['first_conv']}.weight"] == 0


def test_layers_of_a_resnet_by_hand():
    """Stem, eight blocks, classifier."""
    ids = timm_models.get_layer_ids(timm.create_model("resnet18", num_classes=4))
    firsts = {
        ".".join(name.split(".")[:2]): layer
        for name, layer in ids.items()
        if name.startswith("layer")
    }
    assert firsts == {f"layer{1 + n // 2}.{n % 2}": 1 + n for n in range(8)}
    assert (ids["conv1.weight"], ids["bn1.weight"], ids["fc.weight"]) == (0, 0, 9)
    assert Counter(ids.values())[9] == 2


def test_a_model_without_layer_groups_is_refused():
    with pytest.raises(ModelError, match=r"does not say which layers.*layer_decay at 1"):
        get_layer_ids(nn.Linear(2, 2))


def test_pinned_config_has_a_deits_size_and_leaves_a_convnets_alone(deit):
    model_config = ModelConfig(
        architecture="deit_tiny_patch16_224", num_classes=5, model_args={"x": 1}
    )
    assert pin_img_size(deit(img_size=48), model_config).model_args == {
        "x": 1,
        "img_size": [48, 48],
    }
    assert pin_img_size(timm.create_model("resnet18"), model_config) is model_config


@pytest.mark.parametrize(
    ("size", "scale", "early"),
    [(224, 4 / 7, 128), (32, 4 / 7, 16), (224, 1.0, 224), (64, 0.01, 16)],
)
def test_early_size_is_a_multiple_of_the_patch_size(deit, size, scale, early):
    model_config = ModelConfig(
        architecture="deit_tiny", num_classes=3, preprocessing=Preprocessing(img_size=size)
    )
    assert (
        compute_early_size(
            deit("deit_tiny", img_size=32),
            model_config,
            replace(FINETUNE, progressive_resize=ProgressiveResize(scale=scale, fraction=0.0)),
        )
        == early
    )


def test_has_few_patches_below_four_a_side(deit):
    small = deit("deit_tiny", img_size=32)
    assert [size for size in (16, 32, 48, 63, 64, 128) if has_few_patches(small, size)] == [
        16,
        32,
        48,
        63,
    ]
    assert not has_few_patches(timm.create_model("resnet18"), 32)


def test_a_fixed_input_size_excludes_progressive_resizing():
    model = timm.create_model("vit_tiny_patch16_224")
    model_config = ModelConfig(
        architecture="m", num_classes=3, preprocessing=Preprocessing(img_size=224)
    )
    with pytest.raises(ConfigError, match="one size only"):
        compute_early_size(
            model,
            model_config,
            replace(FINETUNE, progressive_resize=ProgressiveResize(scale=0.5, fraction=0.0)),
        )


@pytest.mark.parametrize(
    ("dtype", "size", "expected"),
    [
        (torch.bfloat16, 224, 198 * 768 * 2),
        (torch.float32, 224, 198 * 768 * 4),  # the middle of the perceptron
        (torch.bfloat16, 384, 578 * 578 * 3 * 2),  # shares of three heads
        (torch.float32, 384, 578 * 768 * 4),
    ],
)
def test_max_activation_is_the_mlps_or_the_attentions(dtype, size, expected, deit):
    assert (
        compute_max_activation_bytes(deit("deit_tiny_distilled", img_size=size), dtype) == expected
    )
    assert compute_max_activation_bytes(nn.Linear(2, 2), dtype) == 0

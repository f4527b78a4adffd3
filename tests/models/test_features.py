"""Features come from the forward pass of the logits, and are what a head reads, a class token or an average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deitctl.errors import ModelError
from deitctl.events import SilentReporter
from deitctl.models.features import (
    choose_student_pool,
    count_features,
    forward_heads_and_features,
    outline_num_features,
)
from deitctl.models.heads import forward_heads
from deitctl.models.model_config import Preprocessing
from deitctl.models.timm_models import create_model

SWIN = {"depths": (1, 1), "num_heads": (2, 2), "embed_dim": 16, "window_size": 4}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def create(name: str) -> nn.Module:
    args = SWIN if name.startswith("swin") else {}
    torch.manual_seed(0)
    return create_model(name, num_classes=4, img_size=32, model_args=args).eval()


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("pool", ["auto", "cls", "avg"])
def test_a_deit_gives_the_logits_that_it_gives_alone(name, pool, deit, images) -> None:
    model = deit(name)
    heads, features = forward_heads_and_features(model, images, pool=pool)
    for ours, theirs in zip(heads, forward_heads(model, images), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)
    tokens = model.norm(model.forward_blocks(images))
    expected = tokens[:, model.num_prefix_tokens :].mean(1) if pool == "avg" else tokens[:, 0]
    torch.testing.assert_close(features, expected)
    assert count_features(model, Preprocessing(img_size=32), pool) == model.arch.embed_dim
    assert choose_student_pool(model, "auto") == "avg"


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_vit", "swin_tiny_patch4_window7_224"]
)
def test_features_of_timms_models_are_what_their_head_reads(name, images) -> None:
    model = create(name)
    heads, features = forward_heads_and_features(model, images)
    torch.testing.assert_close(heads.cls, model(images))
    torch.testing.assert_close(model.get_classifier()(features), heads.cls)
    _, average = forward_heads_and_features(model, images, pool="avg")
    tokens = model.forward_features(images)
    if name == "test_vit":
        expected = tokens[:, model.num_prefix_tokens :].mean(1)
        token = forward_heads_and_features(model, images, pool="cls")[1]
        torch.testing.assert_close(token, tokens[:, 0])
    else:
        expected = tokens.mean((1, 2) if name.startswith("swin") else (2, 3))
        with pytest.raises(ModelError, match="has no class token"):
            forward_heads_and_features(model, images, pool="cls")
    torch.testing.assert_close(average, expected)
    model.train()
    assert count_features(model, Preprocessing(img_size=32), "auto") == features.shape[1]
    assert model.training


def test_a_network_without_features_is_refused(images) -> None:
    with pytest.raises(ModelError, match="Linear gives logits and no features"):
        forward_heads_and_features(nn.Linear(2, 2), images)


@pytest.mark.parametrize(
    ("name", "count"),
    [("deit_tiny", 192), ("regnety_160", 3024), ("mobilenetv3_small_050", 1024), ("test_vit", 64)],
)
def test_the_number_of_features_is_known_without_weights(name: str, count: int) -> None:
    assert outline_num_features(name, "auto", SilentReporter()) == count


def test_what_a_model_lacks_is_known_without_weights() -> None:
    with pytest.raises(ModelError, match="RegNet has no class token"):
        outline_num_features("regnety_002", "cls", SilentReporter())
    with pytest.raises(ModelError, match="gives several feature maps"):
        outline_num_features("crossvit_9_240", "auto", SilentReporter())

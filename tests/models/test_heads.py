"""One forward pass for any classifier, four rules to fuse two heads."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from deitctl.errors import ModelError
from deitctl.models.heads import forward_heads, fuse_heads, to_probs
from deitctl.models.model_config import HEADS
from deitctl.models.vit import HeadLogits

# softmaxes (3/4, 1/4) and (1/2, 1/2)
CLS, DIST = (torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]]))


def test_avg_probs_is_the_mean_of_the_softmaxes():
    fused = fuse_heads(HeadLogits(CLS, DIST), "avg-probs")
    torch.testing.assert_close(fused.softmax(1), torch.tensor([[5 / 8, 3 / 8]]))
    # logarithms of probabilities already
    torch.testing.assert_close(fused.exp().sum(), torch.tensor(1.0))


def test_avg_logits_is_the_mean_of_the_logits():
    torch.testing.assert_close(
        fuse_heads(HeadLogits(CLS, DIST), "avg-logits"), torch.tensor([[math.log(3.0) / 2, 0.0]])
    )


def test_single_heads_are_returned_as_they_are():
    assert fuse_heads(HeadLogits(CLS, DIST), "cls") is CLS
    assert fuse_heads(HeadLogits(CLS, DIST), "dist") is DIST


def test_avg_probs_survives_huge_logits():
    fused = fuse_heads(
        HeadLogits(torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])), "avg-probs"
    )
    torch.testing.assert_close(fused.softmax(1), torch.tensor([[0.5, 0.5]]))


def test_of_several_labels_avg_probs_is_the_mean_of_the_sigmoids():
    fused = fuse_heads(HeadLogits(CLS, DIST), "avg-probs", "multilabel")
    torch.testing.assert_close(fused.sigmoid(), (CLS.sigmoid() + DIST.sigmoid()) / 2)
    far = HeadLogits(torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, -1e4]]))
    fused = fuse_heads(far, "avg-probs", "multilabel")
    torch.testing.assert_close(fused, torch.tensor([[0.0, -1e4]]))


def test_probabilities_are_a_softmax_or_a_sigmoid_for_each_class():
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float16)
    torch.testing.assert_close(
        to_probs(logits, "classification"), torch.tensor([[0.25, 0.75]]), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(
        to_probs(logits, "multilabel"), torch.tensor([[0.5, 0.75]]), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("rule", [h for h in HEADS if h != "dist"])
def test_a_single_head_is_used_under_every_rule(rule):
    assert fuse_heads(HeadLogits(CLS, None), rule) is CLS


def test_a_missing_distillation_head_is_refused():
    with pytest.raises(ModelError, match="no distillation head"):
        fuse_heads(HeadLogits(CLS, None), "dist")


@pytest.mark.parametrize("dist", [DIST, None])
def test_unknown_rule_is_refused(dist):
    with pytest.raises(ModelError, match="avg-probs"):
        fuse_heads(HeadLogits(CLS, dist), "mean")


def test_timm_models_have_one_head(noise):
    model = timm.create_model("regnety_002", num_classes=4).eval()
    with torch.no_grad():
        heads = forward_heads(model, noise(1, 3, 32, 32))
    assert heads.cls.shape == (1, 4)
    assert heads.dist is None


def test_a_timm_model_with_two_outputs_gives_two_heads(noise):
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=4, img_size=32)
    model.set_distilled_training(True)
    assert forward_heads(model.train(), noise(1, 3, 32, 32)).dist is not None


def test_drop_path_mask_reaches_only_a_deit(deit, noise):
    model, images = deit().train(), noise(1, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(
            forward_heads(model, images, torch.zeros(12, 2, 1)).cls,
            forward_heads(model, images).cls,
        )
        assert forward_heads(nn.Flatten(), images, torch.zeros(12, 2, 1)).cls.shape == (
            1,
            3 * 32 * 32,
        )

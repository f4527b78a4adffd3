"""Token maps: each method against its formula on full matrices, and the forward pass that shows its attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deitctl.errors import ConfigError, ModelError
from deitctl.explanation.attention_maps import (
    METHODS,
    AttentionOutput,
    compute_head_maps,
    compute_token_maps,
    forward_with_attention,
)

KINDS = [("deit_tiny", 32), ("deit_tiny_distilled", 48), ("deit3_small", 48)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("alias", "size"), KINDS)
def test_a_map_is_a_weight_of_every_patch_for_every_token_of_the_model(
    deit, noise, alias, size, method
):
    maps = compute_token_maps(deit(alias, img_size=size), noise(2, 3, size, size), method=method)
    assert maps.cls.shape == (2, size // 16, size // 16)
    assert (maps.dist is not None) == ("distilled" in alias)
    for tokens_map in (m for m in maps if m is not None):
        assert (tokens_map >= 0).all()
        assert tokens_map.sum() > 0
        assert not tokens_map.requires_grad


def test_rollout_of_two_blocks_by_hand(deit, noise, monkeypatch):
    """One patch-to-be-found a row: N = 5 (class token, 2 x 2 patches), two blocks, two heads."""
    first = torch.tensor(
        [[0.0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    )
    other = torch.tensor(
        [[0.0, 0, 0, 0, 1], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    )
    blocks = [torch.stack([first, other])[None], torch.stack([first, first])[None]]
    monkeypatch.setattr(
        "deitctl.explanation.attention_maps.forward_with_attention",
        lambda model, images, reduce: AttentionOutput(None, [reduce(a) for a in blocks]),
    )
    # block 2, row of the class token: 1/2 itself, 1/2 patch 0. Block 1: the class token is 1/2 itself, 1/4 patch 0,
    # 1/4 patch 3; patch 0 is 1/2 + 1/4 itself and 1/4 patch 1. So the row is
    # 1/2 (1/2, 1/4, 0, 0, 1/4) + 1/2 (0, 3/4, 1/4, 0, 0) = (1/4, 1/2, 1/8, 0, 1/8).
    maps = compute_token_maps(deit(), noise(1, 3, 32, 32), method="rollout")
    torch.testing.assert_close(maps.cls[0], torch.tensor([[1 / 2, 1 / 8], [0, 1 / 8]]))


def test_rollout_is_the_product_of_full_matrices(deit, noise):
    model, images = deit("deit_tiny_distilled"), noise(2, 3, 32, 32)
    product = torch.eye(6).expand(2, 6, 6)
    for attention in forward_with_attention(model, images).attention:
        product = (0.5 * attention.mean(dim=1) + 0.5 * torch.eye(6)) @ product
    maps = compute_token_maps(model, images, method="rollout")
    torch.testing.assert_close(product.sum(dim=-1), torch.ones(2, 6))
    torch.testing.assert_close(maps.cls, product[:, 0, 2:].reshape(2, 2, 2))
    torch.testing.assert_close(maps.dist, product[:, 1, 2:].reshape(2, 2, 2))


@pytest.mark.parametrize(("alias", "size"), KINDS)
def test_gradient_relevance_is_the_papers_rule_on_full_matrices(deit, noise, alias, size):
    model, images, asked = deit(alias, img_size=size), noise(2, 3, size, size), torch.tensor([3, 1])
    maps = compute_token_maps(model, images, method="gradient", classes=asked)
    prefix = model.num_prefix_tokens
    for image in range(2):
        for token, (head, got) in enumerate(
            (h, m) for h, m in zip(("cls", "dist"), maps, strict=True) if m is not None
        ):
            logits, attention = forward_with_attention(
                model, images[image : image + 1], differentiable=True
            )
            for a in attention:
                a.retain_grad()
            getattr(logits, head)[0, asked[image]].backward()
            relevance = torch.eye(attention[0].shape[-1])
            for a in attention:
                heads = [
                    (a.grad[0, h] * a.detach()[0, h]).relu() for h in range(model.arch.num_heads)
                ]
                relevance = relevance + sum(heads) / len(heads) @ relevance
            expected = relevance[token, prefix:].reshape(size // 16, size // 16)
            torch.testing.assert_close(got[image], expected, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("alias", ["deit_tiny", "deit_tiny_distilled"])
def test_without_a_class_each_head_explains_its_own_prediction(deit, noise, alias):
    model, images = deit(alias), noise(4, 3, 32, 32)
    own = compute_token_maps(model, images, method="gradient")
    for head, got, token in zip(model(images), own, ("cls", "dist"), strict=True):
        if head is not None:
            told = compute_token_maps(model, images, method="gradient", classes=head.argmax(dim=1))
            torch.testing.assert_close(got, getattr(told, token))


def test_inputs_made_in_inference_mode_are_explained_outside_it(deit, noise):
    model = deit("deit_tiny_distilled")
    expected = compute_token_maps(model, noise(2, 3, 32, 32), classes=torch.tensor([1, 2]))
    with torch.inference_mode():
        images, classes = noise(2, 3, 32, 32), torch.tensor([1, 2])
    assert torch.equal(compute_token_maps(model, images, classes=classes).dist, expected.dist)


def test_only_the_gradient_depends_on_the_class(deit, noise):
    model, images = deit(), noise(1, 3, 32, 32)
    for method in METHODS:
        one, other = (
            compute_token_maps(model, images, method=method, classes=torch.tensor([c])).cls
            for c in (0, 1)
        )
        assert torch.equal(one, other) == (method != "gradient")


@pytest.mark.parametrize("method", METHODS)
def test_an_image_has_the_same_maps_alone_and_in_a_batch(deit, noise, method):
    model, images = deit("deit_tiny_distilled", img_size=48), noise(3, 3, 48, 48)
    together = compute_token_maps(model, images, method=method)
    for i in range(3):
        alone = compute_token_maps(model, images[i : i + 1], method=method)
        torch.testing.assert_close(alone.cls[0], together.cls[i], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(alone.dist[0], together.dist[i], atol=1e-6, rtol=1e-4)


def test_a_batch_is_split_to_bound_memory(deit, noise, monkeypatch):
    model, images, asked = deit("deit_tiny_distilled"), noise(3, 3, 32, 32), torch.tensor([3, 1, 4])
    whole = compute_token_maps(model, images, classes=asked)
    taken = []
    monkeypatch.setattr("deitctl.explanation.attention_maps.GRAPH_BYTES", 1)
    monkeypatch.setattr(
        "deitctl.explanation.attention_maps.forward_with_attention",
        lambda m, i, **options: taken.append(len(i)) or forward_with_attention(m, i, **options),
    )
    one_by_one = compute_token_maps(model, images, classes=asked)
    assert taken == [1, 1, 1]
    torch.testing.assert_close(one_by_one.cls, whole.cls, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(one_by_one.dist, whole.dist, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_equal_inside_inference_mode(deit, noise, method):
    model, images = deit("deit_tiny_distilled"), noise(2, 3, 32, 32)
    usual = compute_token_maps(model, images, method=method, classes=torch.tensor([2, 0]))
    with torch.inference_mode():
        inside = compute_token_maps(
            model, images.clone(), method=method, classes=torch.tensor([2, 0])
        )
    assert torch.equal(inside.cls, usual.cls)
    assert torch.equal(inside.dist, usual.dist)


def test_the_distillation_head_does_not_change_the_class_tokens_map(deit, noise):
    model, images = deit("deit_tiny_distilled"), noise(1, 3, 32, 32)
    before = compute_token_maps(model, images, classes=torch.tensor([0]))
    with torch.no_grad():
        model.head_dist.weight.mul_(2)
    after = compute_token_maps(model, images, classes=torch.tensor([0]))
    assert torch.equal(before.cls, after.cls)
    assert not torch.equal(before.dist, after.dist)


def test_last_layer_is_the_mean_of_the_last_blocks_heads(deit, noise):
    model, images = deit("deit_tiny_distilled", img_size=48), noise(2, 3, 48, 48)
    last = forward_with_attention(model, images).attention[-1]
    heads, maps = (
        compute_head_maps(model, images),
        compute_token_maps(model, images, method="last-layer"),
    )
    torch.testing.assert_close(heads.cls, last[:, :, 0, 2:].reshape(2, 3, 3, 3))
    torch.testing.assert_close(heads.dist, last[:, :, 1, 2:].reshape(2, 3, 3, 3))
    torch.testing.assert_close(maps.dist, heads.dist.mean(dim=1))


def test_patches_lie_as_in_the_image(deit):
    """A model that ignores everything but one bright patch must look at that patch, not at its mirror image."""
    model = deit()
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, :16, 16:] = 5  # top right
    with torch.no_grad():
        model.pos_embed.zero_()
        model.cls_token.zero_()
    first = forward_with_attention(model, images).attention[0].mean(dim=1)[0, 0, 1:].reshape(2, 2)
    odd_one = (first - first.median()).abs().argmax()
    rolled = compute_token_maps(model, images, method="rollout").cls[0]
    assert odd_one == 1
    assert (rolled - rolled.median()).abs().argmax() == 1


def test_a_model_that_is_no_deit_is_refused(noise):
    with pytest.raises(ModelError, match=r"\(Linear\) cannot be explained"):
        compute_token_maps(nn.Linear(1, 1), noise(1, 3, 32, 32))


def test_an_unknown_method_is_refused(deit, noise):
    with pytest.raises(ConfigError, match="no method 'lime'"):
        compute_token_maps(deit(), noise(1, 3, 32, 32), method="lime")


FORWARD_KINDS = [
    ("deit_tiny", 32),
    ("deit_tiny_distilled", 32),
    ("deit3_small", 32),
    ("deit_tiny_distilled", 80),
]


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize(("alias", "size"), FORWARD_KINDS)
def test_logits_equal_those_of_the_fused_forward(deit, noise, alias, size, differentiable):
    model, images = deit(alias, img_size=size), noise(3, 3, size, size)
    with torch.no_grad():
        fused = model(images)
    written_out = forward_with_attention(model, images, differentiable=differentiable).logits
    for one, other in zip(fused, written_out, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other.detach(), one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("alias", "size"), FORWARD_KINDS)
def test_every_block_is_returned_and_rows_sum_to_1(deit, noise, alias, size):
    model = deit(alias, img_size=size)
    attention = forward_with_attention(model, noise(2, 3, size, size)).attention
    tokens = model.num_prefix_tokens + (size // 16) ** 2
    assert [tuple(a.shape) for a in attention] == [
        (2, model.arch.num_heads, tokens, tokens)
    ] * model.arch.depth
    for block_attention in attention:
        torch.testing.assert_close(
            block_attention.sum(dim=-1), torch.ones(2, model.arch.num_heads, tokens)
        )


def test_the_logits_depend_on_every_attention_but_not_on_an_unread_row_of_the_last(deit, noise):
    model = deit("deit_tiny_distilled")
    logits, attention = forward_with_attention(model, noise(1, 3, 32, 32), differentiable=True)
    gradients = torch.autograd.grad(logits.cls.sum(), attention)
    assert all(g.abs().sum() > 0 for g in gradients)
    assert gradients[-1][:, :, 0].abs().sum() > 0
    assert gradients[-1][:, :, 1:].abs().sum() == 0  # the class head reads the class token alone


def test_only_the_reduced_attention_is_returned(deit, noise):
    logits, attention = forward_with_attention(
        deit(), noise(2, 3, 32, 32), reduce=lambda a: a.mean(dim=1)
    )
    assert attention[0].shape == (2, 5, 5)
    assert not attention[0].requires_grad
    assert not logits.cls.requires_grad


def test_gradients_exist_inside_inference_mode(deit, noise):
    model = deit()
    with torch.inference_mode():
        logits, attention = forward_with_attention(model, noise(1, 3, 32, 32), differentiable=True)
    assert torch.autograd.grad(logits.cls.sum(), attention)[0].abs().sum() > 0


def test_parameters_keep_their_gradients(deit, noise):
    model = deit()
    logits, attention = forward_with_attention(model, noise(1, 3, 32, 32), differentiable=True)
    torch.autograd.grad(logits.cls.sum(), attention)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())

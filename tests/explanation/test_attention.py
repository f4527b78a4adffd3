"""The attention that a fused forward never holds, from a forward that answers the same."""

from __future__ import annotations

import pytest
import torch

from deitctl.explanation.attention import attend

KINDS = [
    ("deit_tiny", 32),
    ("deit_tiny_distilled", 32),
    ("deit3_small", 32),
    ("deit_tiny_distilled", 80),
]


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize(("alias", "size"), KINDS)
def test_it_answers_as_the_fused_forward_does(deit, noise, alias, size, differentiable):
    model, images = deit(alias, img_size=size), noise(3, 3, size, size)
    with torch.no_grad():
        fused = model(images)
    written_out = attend(model, images, differentiable=differentiable).logits
    for one, other in zip(fused, written_out, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other.detach(), one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("alias", "size"), KINDS)
def test_every_block_is_kept_and_every_row_sums_to_1(deit, noise, alias, size):
    model = deit(alias, img_size=size)
    kept = attend(model, noise(2, 3, size, size)).kept
    tokens = model.num_prefix_tokens + (size // 16) ** 2
    assert [tuple(a.shape) for a in kept] == [
        (2, model.arch.num_heads, tokens, tokens)
    ] * model.arch.depth
    for attention in kept:
        torch.testing.assert_close(
            attention.sum(dim=-1), torch.ones(2, model.arch.num_heads, tokens)
        )


def test_the_logits_depend_on_every_attention_but_not_on_an_unread_row_of_the_last(deit, noise):
    model = deit("deit_tiny_distilled")
    logits, kept = attend(model, noise(1, 3, 32, 32), differentiable=True)
    gradients = torch.autograd.grad(logits.cls.sum(), kept)
    assert all(g.abs().sum() > 0 for g in gradients)
    assert gradients[-1][:, :, 0].abs().sum() > 0
    assert gradients[-1][:, :, 1:].abs().sum() == 0  # the class head reads the class token alone


def test_nothing_but_what_was_asked_for_is_kept(deit, noise):
    logits, kept = attend(deit(), noise(2, 3, 32, 32), keep=lambda a: a.mean(dim=1))
    assert kept[0].shape == (2, 5, 5)
    assert not kept[0].requires_grad
    assert not logits.cls.requires_grad


def test_it_can_be_differentiated_where_the_caller_computes_without_gradients(deit, noise):
    model = deit()
    with torch.inference_mode():
        logits, kept = attend(model, noise(1, 3, 32, 32), differentiable=True)
    assert torch.autograd.grad(logits.cls.sum(), kept)[0].abs().sum() > 0


def test_parameters_and_their_gradients_are_left_as_they_were(deit, noise):
    model = deit()
    logits, kept = attend(model, noise(1, 3, 32, 32), differentiable=True)
    torch.autograd.grad(logits.cls.sum(), kept)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())

"""The attention that trains on a CPU is torch's, to rounding, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from deitctl.models import attention
from deitctl.models.attention import cpu_attention


def pass_through(function, tensors, gradient):
    """Return the answer and the gradients of queries, keys and values."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    answer = function(*leaves)
    answer.backward(gradient)
    return [answer.detach(), *(t.grad for t in leaves)]


def draws(queries=17, scale=1.0):
    torch.manual_seed(0)
    q, k, v, gradient = (torch.randn(2, 3, n, 16) for n in (queries, 17, 17, queries))
    return (q * scale, k * scale, v), gradient


@pytest.mark.parametrize("queries", [1, 2, 17])
def test_outputs_and_gradients_equal_torchs(queries):
    tensors, gradient = draws(queries)
    ours = pass_through(cpu_attention, tensors, gradient)
    for mine, theirs in zip(
        ours, pass_through(F.scaled_dot_product_attention, tensors, gradient), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_two_tokens_by_hand():
    q, k = torch.tensor([[[[2.0]]]]), torch.tensor([[[[1.0], [0.0]]]])
    v = torch.tensor([[[[10.0], [0.0]]]])
    share = 1 / (1 + torch.e**-2)
    assert float(cpu_attention(q, k, v)) == pytest.approx(10 * share)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_bf16_gradients_are_as_close_to_exact_ones_as_torchs(scale):
    """Also where scores are large: rounding scores to bf16 would put them four to ten times as far away."""
    tensors, gradient = draws(scale=scale)
    half = [t.bfloat16() for t in tensors]
    exact = pass_through(
        F.scaled_dot_product_attention, [t.double() for t in half], gradient.bfloat16().double()
    )

    def distances(function):
        found = pass_through(function, half, gradient.bfloat16())
        return [
            float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)
        ]

    for ours, theirs in zip(
        distances(cpu_attention), distances(F.scaled_dot_product_attention), strict=True
    ):
        assert ours < max(1.5 * theirs, 0.004)


def test_autocast_does_not_round_the_scores():
    tensors, gradient = draws(scale=4.0)
    half = [t.bfloat16() for t in tensors]
    alone = pass_through(cpu_attention, half, gradient.bfloat16())

    def inside(*leaves):
        with torch.autocast("cpu", torch.bfloat16):
            return cpu_attention(*leaves)

    for a, b in zip(alone, pass_through(inside, half, gradient.bfloat16()), strict=True):
        assert torch.equal(a, b)


def test_a_second_derivative_is_refused():
    q = torch.randn(1, 1, 3, 4, requires_grad=True)
    (first,) = torch.autograd.grad(cpu_attention(q, q, q).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.sum().backward()


def test_scores_computed_in_chunks_are_equal(monkeypatch):
    tensors, gradient = draws()
    whole = pass_through(cpu_attention, tensors, gradient)
    monkeypatch.setattr(attention, "CHUNK_BYTES", 4 * 17 * 17 * 4)  # four of six at a time
    for a, b in zip(whole, pass_through(cpu_attention, tensors, gradient), strict=True):
        torch.testing.assert_close(a, b)

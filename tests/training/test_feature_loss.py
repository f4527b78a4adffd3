"""Losses of features, their gradients against formulas written out in float64, and what becomes of the whole loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deitctl.config import DistillConfig, FeatureConfig
from deitctl.training.feature_loss import FEATURE_LOSSES, FeatureTerm
from deitctl.training.objective import Distillation, StudentBatch
from deitctl.training.projector import OrthogonalProjection, build_projector

Array = NDArray[np.float64]
IMAGES, STUDENT, TEACHER = 5, 6, 9


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def multiply_reflections(values: Array) -> Array:
    """The first columns of a product of reflections, one after the other."""
    size, count = values.shape
    product = np.eye(size)
    for n in range(count):
        vector = np.concatenate([np.zeros(n), [1.0], values[n + 1 :, n]])
        product = product @ (np.eye(size) - 2 * np.outer(vector, vector) / (vector @ vector))
    return product[:, :count]


def compute_reference(loss: str, projected: Array, teacher: Array) -> tuple[float, Array]:
    """The loss, and its gradient with the projected features."""
    count, size = projected.shape
    if loss == "cosine":
        lengths = np.linalg.norm(projected, axis=1, keepdims=True)
        directions = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
        cosines = (projected / lengths * directions).sum(1, keepdims=True)
        gradient = -(directions - cosines * projected / lengths) / lengths / count
        return float(1 - cosines.mean()), gradient
    if loss == "mse":
        difference = projected - teacher
        return float((difference**2).mean()), 2 * difference / (count * size)
    mean = teacher.mean(1, keepdims=True)
    deviation = np.sqrt(((teacher - mean) ** 2).mean(1, keepdims=True) + 1e-5)
    difference = projected - (teacher - mean) / deviation
    size_of = np.abs(difference)
    values = np.where(size_of < 1, difference**2 / 2, size_of - 0.5)
    return values.mean().item(), np.clip(difference, -1, 1) / (count * size)


@pytest.mark.parametrize("loss", FEATURE_LOSSES)
def test_loss_and_gradients_equal_the_formulas(loss: str) -> None:
    (projector,) = build_projector(loss, STUDENT, [TEACHER], seed=0).double()
    student = (3 * draw(IMAGES, STUDENT)).requires_grad_()
    teacher = 2 + 4 * draw(IMAGES, TEACHER, seed=1)
    value = FEATURE_LOSSES[loss](projector(student), teacher)
    value.backward()
    s = student.detach().numpy()
    if isinstance(projector, OrthogonalProjection):
        weight, bias = multiply_reflections(projector.reflections.detach().numpy()), 0.0
    else:
        weight, bias = projector.weight.detach().numpy(), projector.bias.detach().numpy()
    expected, gradient = compute_reference(loss, s @ weight.T + bias, teacher.numpy())
    assert value.item() == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(student.grad, gradient @ weight, atol=1e-12)
    if not isinstance(projector, OrthogonalProjection):
        np.testing.assert_allclose(projector.weight.grad, gradient.T @ s, atol=1e-12)
        np.testing.assert_allclose(projector.bias.grad, gradient.sum(0), atol=1e-12)


@pytest.mark.parametrize(("student", "teacher"), [(4, 7), (7, 4), (5, 5)])
def test_gradient_of_the_projection_is_the_slope_of_the_product(student: int, teacher: int) -> None:
    projection = OrthogonalProjection(student, teacher).double()
    factors = draw(teacher, student, seed=2)
    (projection.compute_weight() * factors).sum().backward()
    values, step = projection.reflections.detach().numpy(), 1e-6
    wanted = factors.numpy().T if projection.is_wide else factors.numpy()
    np.testing.assert_allclose(
        projection.compute_weight().detach().numpy().T
        if projection.is_wide
        else projection.compute_weight().detach().numpy(),
        multiply_reflections(values),
        atol=1e-12,
    )
    for place in np.ndindex(*values.shape):
        up, down = values.copy(), values.copy()
        up[place] += step
        down[place] -= step
        slope = ((multiply_reflections(up) - multiply_reflections(down)) * wanted).sum() / step / 2
        assert float(projection.reflections.grad[place]) == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize(("student", "teacher"), [(48, 300), (300, 48), (64, 64)])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_projection_stays_orthogonal_in_training(
    student: int, teacher: int, autocast: bool
) -> None:
    projector = build_projector("vkd", student, [teacher], seed=3)
    term = FeatureTerm("vkd", 1.0, "auto", projector)
    (projection,) = projector
    before = projection.compute_weight().detach().clone()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=0.01)
    features = torch.randn(16, student, generator=torch.Generator().manual_seed(0))
    targets = torch.randn(16, teacher, generator=torch.Generator().manual_seed(1))
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            term(features, (targets,)).backward()
        optimizer.step()
    weight = projection.compute_weight().detach()
    assert (weight - before).abs().max() > 0.01
    columns = (weight.T if projection.is_wide else weight).double()
    product = columns.T @ columns
    assert (product - torch.eye(len(product))).abs().max() < 1e-6


def test_micro_batches_and_teachers_have_the_mean_of_their_losses() -> None:
    term = FeatureTerm("vkd", 1.0, "auto", build_projector("vkd", 6, [9, 4], seed=0).double())
    features, teachers = draw(8, 6), (draw(8, 9, seed=1), draw(8, 4, seed=2))
    whole = term(features, teachers)
    halves = [term(features[s], tuple(t[s] for t in teachers)) for s in (slice(4), slice(4, 8))]
    torch.testing.assert_close(torch.stack(halves).mean(), whole, rtol=0, atol=1e-12)
    alone = [
        FeatureTerm("vkd", 1.0, "auto", nn.ModuleList([projection]))(features, (teacher,))
        for projection, teacher in zip(term.projector, teachers, strict=True)
    ]
    torch.testing.assert_close(torch.stack(alone).mean(), whole, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="2 projections and 1 teachers"):
        term(features, teachers[:1])


@pytest.mark.parametrize(
    ("mode", "alpha", "parts"),
    [
        ("features", 0.0, {"task_loss": 1.0, "feature_loss": 0.7}),
        ("features+hard", 0.4, {"task_loss": 0.6, "kd_loss": 0.4, "feature_loss": 0.7}),
        ("features+soft", 0.4, {"task_loss": 0.6, "kd_loss": 0.4, "feature_loss": 0.7}),
    ],
)
def test_the_loss_is_the_sum_of_its_weighted_terms(mode, alpha, parts, deit, noise) -> None:
    config = DistillConfig(
        teacher="",
        mode=mode,
        alpha=alpha,
        tau=2.0,
        reduction="batchmean",
        dist_token=bool(alpha),
        teacher_input="unmixed",
        views=1,
        logits_topk=3,
        features=FeatureConfig(weight=0.7),
    )
    student = deit("deit_tiny_distilled_patch16_224" if alpha else "deit_tiny_patch16_224")
    width, side = student.arch.embed_dim, student.img_size
    term = FeatureTerm("vkd", 0.7, "avg", build_projector("vkd", width, [5], seed=0))
    labels = torch.eye(student.num_classes)[[0, 1]]
    batch = StudentBatch(
        noise(2, 3, side, side), labels, labels.flip(0) if alpha else None, None, (noise(2, 5),)
    )
    losses = Distillation(config, features=term)(student, batch)
    assert losses.keys() == {"loss", *parts}
    expected = sum(weight * losses[name] for name, weight in parts.items())
    torch.testing.assert_close(losses["loss"], expected)
    losses["loss"].backward()
    assert term.projector[0].reflections.grad.abs().max() > 0
    # The gradient of the average of all patches reaches each of them in the last block.
    assert student.blocks[-1].mlp.fc2.weight.grad.abs().max() > 0

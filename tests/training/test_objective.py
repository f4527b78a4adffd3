"""What a step minimises, against the formulas of the paper written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deitctl.card import ModelCard, Preprocessing
from deitctl.config import DistillConfig
from deitctl.losses import smooth_labels
from deitctl.teacher.frozen import Teacher
from deitctl.training.objective import Distillation, Supervised

PRE = Preprocessing(img_size=32)


@pytest.fixture
def batch(noise):
    return noise(4, 3, 32, 32), smooth_labels(torch.tensor([0, 1, 2, 3]), 5, 0.1)


@pytest.fixture
def teacher(deit):
    model = deit(seed=9)
    card = ModelCard(architecture="deit_tiny_patch16_224", num_classes=5, preprocessing=PRE)
    return Teacher(model, card, tuple(range(5)), PRE)


def config(mode: str, **changes: object) -> DistillConfig:
    alpha, tau = {"hard": (0.5, 1.0), "soft": (0.1, 3.0)}[mode]
    values = {"teacher": "t", "mode": mode, "alpha": alpha, "tau": tau, "reduction": "batchmean", "token": True}
    return DistillConfig(**{**values, **changes})


def test_one_head_minimises_cross_entropy(deit, batch):
    images, targets = batch
    model = deit()
    loss = Supervised()(model, images, targets, None)
    assert set(loss.parts) == {"labels"}
    torch.testing.assert_close(loss.total, F.cross_entropy(model(images).cls, targets))


def test_two_heads_without_a_teacher_both_learn_the_labels(deit, batch):
    images, targets = batch
    model = deit("deit_tiny_distilled")
    cls, dist = model(images)
    loss = Supervised()(model, images, targets, None)
    torch.testing.assert_close(loss.total, (F.cross_entropy(cls, targets) + F.cross_entropy(dist, targets)) / 2)
    loss.total.backward()
    assert model.head.weight.grad.abs().sum() > 0
    assert model.head_dist.weight.grad.abs().sum() > 0


def test_hard_distillation_is_equation_3(deit, batch, teacher):
    images, targets = batch
    student = deit("deit_tiny_distilled")
    cls, dist = student(images)
    loss = Distillation(teacher, config("hard"))(student, images, targets, None)
    expected = F.cross_entropy(cls, targets) / 2 + F.cross_entropy(dist, teacher(images).argmax(1)) / 2
    torch.testing.assert_close(loss.total, expected)


def test_soft_distillation_is_equation_2(deit, batch, teacher):
    images, targets = batch
    student = deit("deit_tiny_distilled")
    cls, dist = student(images)
    loss = Distillation(teacher, config("soft"))(student, images, targets, None)
    log_s, log_t = (dist / 3).log_softmax(1), (teacher(images) / 3).log_softmax(1)
    divergence = (log_t.exp() * (log_t - log_s)).sum(1).mean()
    torch.testing.assert_close(loss.total, 0.9 * F.cross_entropy(cls, targets) + 0.1 * 9 * divergence)
    torch.testing.assert_close(loss.parts["teacher"], 9 * divergence)


def test_reduction_of_the_released_code_is_k_times_weaker(deit, batch, teacher):
    student = deit("deit_tiny_distilled")
    parts = [
        Distillation(teacher, config("soft", reduction=r))(student, *batch, None).parts["teacher"]
        for r in ("batchmean", "elementmean")
    ]
    torch.testing.assert_close(parts[0], 5 * parts[1])


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_heads_learn_from_their_own_source_alone(mode, deit, batch, teacher):
    student = deit("deit_tiny_distilled")
    only_labels = Distillation(teacher, config(mode, alpha=0.0))(student, *batch, None).total
    only_labels.backward()
    assert student.head.weight.grad.abs().sum() > 0
    assert student.head_dist.weight.grad.abs().sum() == 0
    student.zero_grad(set_to_none=True)
    Distillation(teacher, config(mode, alpha=1.0))(student, *batch, None).total.backward()
    assert student.head.weight.grad.abs().sum() == 0
    assert student.head_dist.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_student_without_a_token_listens_with_its_one_head(mode, deit, batch, teacher):
    student = deit()
    loss = Distillation(teacher, config(mode, alpha=1.0))(student, *batch, None)
    loss.total.backward()
    assert student.head.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())


def test_stochastic_depth_reaches_the_student_and_not_the_teacher(deit, batch, teacher):
    student, keep = deit("deit_tiny_distilled"), torch.zeros(12, 2, 4)
    objective = Distillation(teacher, config("hard"))
    assert not torch.equal(objective(student, *batch, keep).total, objective(student, *batch, None).total)
    expected = F.cross_entropy(student(batch[0], keep).dist, teacher(batch[0]).argmax(1))
    torch.testing.assert_close(objective(student, *batch, keep).parts["teacher"], expected)

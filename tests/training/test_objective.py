"""What a step minimizes, against the formulas of the paper written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from deitctl.config import DistillConfig
from deitctl.training.losses import smooth_labels, teacher_targets
from deitctl.training.objective import Distillation, Supervised

TAU = {"hard": 1.0, "soft": 3.0}


@pytest.fixture
def batch(noise):
    return noise(4, 3, 32, 32), smooth_labels(torch.tensor([0, 1, 2, 3]), 5, 0.1)


@pytest.fixture
def teacher(noise):
    """Its logits on the four images."""
    return 3 * noise(4, 5, seed=9)


def config(mode: str, **changes: object) -> DistillConfig:
    values = {
        "teacher": "t",
        "mode": mode,
        "alpha": {"hard": 0.5, "soft": 0.1}[mode],
        "tau": TAU[mode],
        "reduction": "batchmean",
        "dist_token": True,
        "teacher_input": "unmixed",
        "views": 8,
        "logits_topk": 100,
    }
    return DistillConfig(**{**values, **changes})


def test_one_head_minimizes_cross_entropy(deit, batch):
    images, targets = batch
    model = deit()
    loss = Supervised()(model, images, targets, None, None)
    assert set(loss.parts) == {"labels"}
    torch.testing.assert_close(loss.total, F.cross_entropy(model(images).cls, targets))


def test_two_heads_without_a_teacher_both_learn_the_labels(deit, batch):
    images, targets = batch
    model = deit("deit_tiny_distilled")
    cls, dist = model(images)
    loss = Supervised()(model, images, targets, None, None)
    torch.testing.assert_close(
        loss.total, (F.cross_entropy(cls, targets) + F.cross_entropy(dist, targets)) / 2
    )
    loss.total.backward()
    assert model.head.weight.grad.abs().sum() > 0
    assert model.head_dist.weight.grad.abs().sum() > 0


def test_hard_distillation_is_equation_3(deit, batch, teacher):
    images, targets = batch
    student = deit("deit_tiny_distilled")
    cls, dist = student(images)
    loss = Distillation(config("hard"))(
        student, images, targets, teacher_targets(teacher, "hard", 1.0), None
    )
    expected = F.cross_entropy(cls, targets) / 2 + F.cross_entropy(dist, teacher.argmax(1)) / 2
    torch.testing.assert_close(loss.total, expected)


def test_soft_distillation_is_equation_2(deit, batch, teacher):
    images, targets = batch
    student = deit("deit_tiny_distilled")
    cls, dist = student(images)
    loss = Distillation(config("soft"))(
        student, images, targets, teacher_targets(teacher, "soft", 3.0), None
    )
    log_s, log_t = (dist / 3).log_softmax(1), (teacher / 3).log_softmax(1)
    divergence = (log_t.exp() * (log_t - log_s)).sum(1).mean()
    torch.testing.assert_close(
        loss.total, 0.9 * F.cross_entropy(cls, targets) + 0.1 * 9 * divergence
    )
    torch.testing.assert_close(loss.parts["teacher"], 9 * divergence)


def test_reduction_of_the_released_code_is_k_times_weaker(deit, batch, teacher):
    student, words = deit("deit_tiny_distilled"), teacher_targets(teacher, "soft", 3.0)
    parts = [
        Distillation(config("soft", reduction=r))(student, *batch, words, None).parts["teacher"]
        for r in ("batchmean", "mean")
    ]
    torch.testing.assert_close(parts[0], 5 * parts[1])


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_heads_learn_from_their_own_source_alone(mode, deit, batch, teacher):
    student, words = deit("deit_tiny_distilled"), teacher_targets(teacher, mode, TAU[mode])
    Distillation(config(mode, alpha=0.0))(student, *batch, words, None).total.backward()
    assert student.head.weight.grad.abs().sum() > 0
    assert student.head_dist.weight.grad.abs().sum() == 0
    student.zero_grad(set_to_none=True)
    Distillation(config(mode, alpha=1.0))(student, *batch, words, None).total.backward()
    assert student.head.weight.grad.abs().sum() == 0
    assert student.head_dist.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_student_without_a_token_listens_with_its_one_head(mode, deit, batch, teacher):
    student, words = deit(), teacher_targets(teacher, mode, TAU[mode])
    loss = Distillation(config(mode, alpha=1.0))(student, *batch, words, None)
    loss.total.backward()
    assert student.head.weight.grad.abs().sum() > 0
    torch.testing.assert_close(loss.total, loss.parts["teacher"])


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_stochastic_depth_reaches_the_student(mode, deit, batch, teacher):
    student, keep, words = (
        deit("deit_tiny_distilled"),
        torch.zeros(12, 2, 4),
        teacher_targets(teacher, mode, TAU[mode]),
    )
    objective = Distillation(config(mode))
    assert not torch.equal(
        objective(student, *batch, words, keep).total, objective(student, *batch, words, None).total
    )
    log_s = (student(batch[0], keep).dist / TAU[mode]).log_softmax(1)
    expected = (
        TAU[mode] ** 2 * (words.xlogy(words) - words * log_s).sum(1).mean()
    )  # of a decision: its cross-entropy
    torch.testing.assert_close(objective(student, *batch, words, keep).parts["teacher"], expected)


def test_distillation_without_words_is_refused(deit, batch):
    with pytest.raises(ValueError, match="needs the teacher's words"):
        Distillation(config("hard"))(deit(), *batch, None, None)

"""Losses and objectives against the formulas of the paper, hand-computed cases, timm and torch."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task.token_distillation import TokenDistillationTask

from deitctl.config import DistillConfig
from deitctl.distillation.targets import teacher_targets
from deitctl.training.objective import (
    Distillation,
    StudentBatch,
    Supervised,
    cross_entropy,
    smooth_labels,
    soft_distillation,
)

TAU = {"hard": 1.0, "soft": 3.0}


@pytest.fixture
def make_batch(noise):
    """Four images with their labels, and as the teacher's logits [4,5] have it, targets of a mode."""
    images, targets = noise(4, 3, 32, 32), smooth_labels(torch.tensor([0, 1, 2, 3]), 5, 0.1)

    def make(teacher=None, mode="", mask=None):
        soft = None if teacher is None else teacher_targets(teacher, mode, TAU[mode])
        return StudentBatch(images, targets, soft, mask)

    return make


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


def test_one_head_minimizes_cross_entropy(deit, make_batch):
    batch, model = make_batch(), deit()
    losses = Supervised()(model, batch)
    assert set(losses) == {"loss", "task_loss"}
    expected = F.cross_entropy(model(batch.images).cls, batch.targets)
    torch.testing.assert_close(losses["loss"], expected)


def test_two_heads_without_a_teacher_both_learn_the_labels(deit, make_batch):
    batch, model = make_batch(), deit("deit_tiny_distilled")
    cls, dist = model(batch.images)
    losses = Supervised()(model, batch)
    expected = (F.cross_entropy(cls, batch.targets) + F.cross_entropy(dist, batch.targets)) / 2
    torch.testing.assert_close(losses["loss"], expected)
    assert set(losses) == {"loss", "task_loss", "task_loss_dist"}
    losses["loss"].backward()
    assert model.head.weight.grad.abs().sum() > 0
    assert model.head_dist.weight.grad.abs().sum() > 0


def test_hard_distillation_is_equation_3(deit, make_batch, teacher):
    batch, student = make_batch(teacher, "hard"), deit("deit_tiny_distilled")
    cls, dist = student(batch.images)
    losses = Distillation(config("hard"))(student, batch)
    task_loss, kd_loss = (
        F.cross_entropy(cls, batch.targets),
        F.cross_entropy(dist, teacher.argmax(1)),
    )
    torch.testing.assert_close(losses["loss"], task_loss / 2 + kd_loss / 2)
    torch.testing.assert_close(losses["task_loss"], task_loss)
    torch.testing.assert_close(losses["kd_loss"], kd_loss)


def test_soft_distillation_is_equation_2(deit, make_batch, teacher):
    batch, student = make_batch(teacher, "soft"), deit("deit_tiny_distilled")
    cls, dist = student(batch.images)
    losses = Distillation(config("soft"))(student, batch)
    log_s, log_t = (dist / 3).log_softmax(1), (teacher / 3).log_softmax(1)
    divergence = (log_t.exp() * (log_t - log_s)).sum(1).mean()
    expected = 0.9 * F.cross_entropy(cls, batch.targets) + 0.1 * 9 * divergence
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(losses["kd_loss"], 9 * divergence)


def test_reduction_of_the_released_code_is_k_times_weaker(deit, make_batch, teacher):
    student, batch = deit("deit_tiny_distilled"), make_batch(teacher, "soft")
    kd_losses = [
        Distillation(config("soft", reduction=r))(student, batch)["kd_loss"]
        for r in ("batchmean", "mean")
    ]
    torch.testing.assert_close(kd_losses[0], 5 * kd_losses[1])


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_each_head_learns_from_its_own_targets_alone(mode, deit, make_batch, teacher):
    student, batch = deit("deit_tiny_distilled"), make_batch(teacher, mode)
    Distillation(config(mode, alpha=0.0))(student, batch)["loss"].backward()
    assert student.head.weight.grad.abs().sum() > 0
    assert student.head_dist.weight.grad.abs().sum() == 0
    student.zero_grad(set_to_none=True)
    Distillation(config(mode, alpha=1.0))(student, batch)["loss"].backward()
    assert student.head.weight.grad.abs().sum() == 0
    assert student.head_dist.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_without_a_token_the_one_head_learns_from_the_teacher(mode, deit, make_batch, teacher):
    student = deit()
    losses = Distillation(config(mode, alpha=1.0))(student, make_batch(teacher, mode))
    losses["loss"].backward()
    assert student.head.weight.grad.abs().sum() > 0
    torch.testing.assert_close(losses["loss"], losses["kd_loss"])


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_stochastic_depth_reaches_the_student(mode, deit, make_batch, teacher):
    student, mask = deit("deit_tiny_distilled"), torch.zeros(12, 2, 4)
    objective = Distillation(config(mode))
    batch = make_batch(teacher, mode, mask)
    losses, undropped = objective(student, batch), objective(student, make_batch(teacher, mode))
    assert not torch.equal(losses["loss"], undropped["loss"])
    log_s = (student(batch.images, mask).dist / TAU[mode]).log_softmax(1)
    targets = batch.teacher_targets
    divergence = (targets.xlogy(targets) - targets * log_s).sum(1).mean()
    # of one-hot targets the divergence is the cross-entropy
    torch.testing.assert_close(losses["kd_loss"], TAU[mode] ** 2 * divergence)


def test_distillation_without_teacher_targets_is_refused(deit, make_batch):
    with pytest.raises(ValueError, match="needs teacher targets"):
        Distillation(config("hard"))(deit(), make_batch())


def test_smoothing_by_hand():
    targets = smooth_labels(torch.tensor([2, 0]), 4, 0.1)
    torch.testing.assert_close(
        targets, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]])
    )


def test_no_smoothing_is_one_hot():
    assert torch.equal(smooth_labels(torch.tensor([1]), 3, 0.0), torch.tensor([[0.0, 1.0, 0.0]]))


def test_cross_entropy_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])  # probabilities 3/4, 1/4 and 1/2, 1/2
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert cross_entropy(logits, torch.tensor([0, 1])).item() == pytest.approx(expected)
    assert cross_entropy(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]])).item() == pytest.approx(
        expected
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_smoothed_cross_entropy_equals_torchs_and_timms(smoothing, noise):
    logits, labels = noise(8, 10), torch.arange(8)
    ours = cross_entropy(logits, smooth_labels(labels, 10, smoothing))
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, label_smoothing=smoothing))
    torch.testing.assert_close(ours, LabelSmoothingCrossEntropy(smoothing)(logits, labels))


def test_cross_entropy_with_distributions_equals_timms(noise):
    logits, targets = noise(6, 9), noise(6, 9, seed=1).softmax(1)
    torch.testing.assert_close(
        cross_entropy(logits, targets), SoftTargetCrossEntropy()(logits, targets)
    )


def test_cross_entropy_gradient_is_softmax_minus_target(noise):
    logits, targets = noise(4, 5).requires_grad_(), noise(4, 5, seed=1).softmax(1)
    cross_entropy(logits, targets).backward()
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(1) - targets) / 4)


def test_hard_distillation_by_hand():
    student = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    targets = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert cross_entropy(student, targets).item() == pytest.approx(
        (math.log(4) + math.log(4 / 3)) / 2
    )


def test_hard_distillation_of_mixed_targets_by_hand():
    """Two hard labels weighted 3 : 1, as their images were."""
    student, targets = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.75, 0.25]])
    assert cross_entropy(student, targets).item() == pytest.approx(
        0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    )


def test_hard_distillation_equals_the_released_codes(noise):
    student, teacher = noise(6, 11), noise(6, 11, seed=1)
    released = F.cross_entropy(student, teacher.argmax(dim=1))  # deit/training/losses.py
    torch.testing.assert_close(
        cross_entropy(student, teacher_targets(teacher, "hard", 1.0)), released
    )


def test_hard_distillation_does_not_smooth():
    sure = torch.tensor([[50.0, 0.0]])
    assert cross_entropy(sure, teacher_targets(sure, "hard", 1.0)).item() == pytest.approx(
        0.0, abs=1e-6
    )


def test_soft_distillation_by_hand():
    """One image, two classes, tau 2: teacher (3/4, 1/4), student (1/2, 1/2) after the division by tau."""
    targets, student = torch.tensor([[0.75, 0.25]]), torch.tensor([[0.0, 0.0]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    batchmean = soft_distillation(student, targets, tau=2.0, reduction="batchmean")
    mean = soft_distillation(student, targets, tau=2.0, reduction="mean")
    assert batchmean.item() == pytest.approx(4 * divergence, rel=1e-6)
    assert mean.item() == pytest.approx(4 * divergence / 2, rel=1e-6)  # K = 2 times weaker


def test_soft_distillation_is_finite_for_a_target_of_zero():
    """0 log 0 is 0: a probability that float16 rounded to zero must not become NaN."""
    targets, student = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]], requires_grad=True)
    loss = soft_distillation(student, targets, tau=1.0, reduction="batchmean")
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_distillation_equals_the_released_code_and_timm(tau, noise):
    student, teacher = noise(6, 11), noise(6, 11, seed=1)
    targets = teacher_targets(teacher, "soft", tau)
    released = (
        F.kl_div(  # deit/training/losses.py
            F.log_softmax(student / tau, dim=1),
            F.log_softmax(teacher / tau, dim=1),
            reduction="sum",
            log_target=True,
        )
        * (tau * tau)
        / student.numel()
    )
    torch.testing.assert_close(
        soft_distillation(student, targets, tau=tau, reduction="mean"), released
    )
    timms = (
        F.kl_div(  # timm/task/token_distillation.py
            F.log_softmax(student / tau, dim=-1),
            F.softmax(teacher / tau, dim=-1),
            reduction="batchmean",
        )
        * tau**2
    )
    torch.testing.assert_close(
        soft_distillation(student, targets, tau=tau, reduction="batchmean"), timms
    )


def test_timm_has_no_other_soft_distillation_to_compare_with():
    """The formula above is timm's as long as this text stands in its source."""
    source = inspect.getsource(TokenDistillationTask)
    assert "reduction='batchmean'" in source
    assert "log_softmax" in source


def test_soft_distillation_gradient_is_tau_times_the_difference(noise):
    student, targets = (
        noise(3, 4).requires_grad_(),
        teacher_targets(noise(3, 4, seed=1), "soft", 3.0),
    )
    soft_distillation(student, targets, tau=3.0, reduction="batchmean").backward()
    torch.testing.assert_close(
        student.grad, 3.0 * ((student.detach() / 3).softmax(1) - targets) / 3
    )


def test_soft_distillation_of_equal_logits_is_zero(noise):
    targets = teacher_targets(noise(3, 4), "soft", 3.0)
    assert soft_distillation(
        noise(3, 4), targets, tau=3.0, reduction="batchmean"
    ).item() == pytest.approx(0, abs=1e-6)


def test_an_unknown_reduction_is_refused(noise):
    with pytest.raises(ValueError, match="'sum'"):
        soft_distillation(noise(1, 2), noise(1, 2).softmax(1), tau=1.0, reduction="sum")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    student = torch.full((2, 4), 100.0, dtype=dtype)  # the sum of exponentials would overflow
    for loss in (
        cross_entropy(student, torch.tensor([0, 1])),
        cross_entropy(student, teacher_targets(student, "hard", 1.0)),
        soft_distillation(
            student, teacher_targets(student, "soft", 1.0), tau=1.0, reduction="batchmean"
        ),
    ):
        assert loss.dtype is torch.float32
        assert loss.isfinite()

"""Every loss against a hand-computed case, another implementation, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task.token_distillation import TokenDistillationTask

from deitctl.training.losses import (
    combine,
    cross_entropy,
    hard_distillation,
    smooth_labels,
    soft_distillation,
    teacher_targets,
)


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


def test_a_hard_word_is_the_decision_and_nothing_else():
    logits = torch.tensor([[0.1, 5.0, -2.0], [2.0, 1.9, 1.8]])
    assert torch.equal(
        teacher_targets(logits, "hard", 1.0), torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    )


def test_temperature_does_not_change_a_decision(noise):
    assert torch.equal(
        teacher_targets(noise(6, 9), "hard", 1.0), teacher_targets(noise(6, 9), "hard", 50.0)
    )


def test_a_soft_word_by_hand():
    """Logits 2 ln 3 and 0 are probabilities 9/10 and 1/10 at temperature 1, 3/4 and 1/4 at temperature 2."""
    logits = torch.tensor([[2 * math.log(3.0), 0.0]])
    torch.testing.assert_close(teacher_targets(logits, "soft", 1.0), torch.tensor([[0.9, 0.1]]))
    torch.testing.assert_close(teacher_targets(logits, "soft", 2.0), torch.tensor([[0.75, 0.25]]))


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_word_is_a_distribution_in_float32_whatever_the_teacher_computes_in(mode, dtype, noise):
    word = teacher_targets((30 * noise(5, 7)).to(dtype), mode, 3.0)
    assert word.dtype is torch.float32
    assert float(word.min()) >= 0
    torch.testing.assert_close(word.sum(1), torch.ones(5))


def test_hard_distillation_by_hand():
    student = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    word = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert hard_distillation(student, word).item() == pytest.approx(
        (math.log(4) + math.log(4 / 3)) / 2
    )


def test_hard_distillation_of_a_mixed_word_by_hand():
    """Two decisions weighed 3 : 1, as their images were."""
    student, word = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.75, 0.25]])
    assert hard_distillation(student, word).item() == pytest.approx(
        0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    )


def test_hard_distillation_equals_the_released_codes(noise):
    student, teacher = noise(6, 11), noise(6, 11, seed=1)
    released = F.cross_entropy(student, teacher.argmax(dim=1))  # deit/training/losses.py
    torch.testing.assert_close(
        hard_distillation(student, teacher_targets(teacher, "hard", 1.0)), released
    )


def test_hard_distillation_does_not_smooth():
    sure = torch.tensor([[50.0, 0.0]])
    assert hard_distillation(sure, teacher_targets(sure, "hard", 1.0)).item() == pytest.approx(
        0.0, abs=1e-6
    )


def test_soft_distillation_by_hand():
    """One image, two classes, tau 2: teacher (3/4, 1/4), student (1/2, 1/2) after the division by tau."""
    word, student = torch.tensor([[0.75, 0.25]]), torch.tensor([[0.0, 0.0]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    batchmean = soft_distillation(student, word, tau=2.0, reduction="batchmean")
    mean = soft_distillation(student, word, tau=2.0, reduction="mean")
    assert batchmean.item() == pytest.approx(4 * divergence, rel=1e-6)
    assert mean.item() == pytest.approx(4 * divergence / 2, rel=1e-6)  # K = 2 times weaker


def test_soft_distillation_minds_no_class_that_the_teacher_rules_out():
    """0 log 0 is 0: a word that float16 rounded down to nothing must not become NaN."""
    word, student = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]], requires_grad=True)
    loss = soft_distillation(student, word, tau=1.0, reduction="batchmean")
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_distillation_equals_the_released_code_and_timm(tau, noise):
    student, teacher = noise(6, 11), noise(6, 11, seed=1)
    word = teacher_targets(teacher, "soft", tau)
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
        soft_distillation(student, word, tau=tau, reduction="mean"), released
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
        soft_distillation(student, word, tau=tau, reduction="batchmean"), timms
    )


def test_timm_has_no_other_soft_distillation_to_compare_with():
    """The formula above is timm's as long as this text stands in its source."""
    import inspect

    source = inspect.getsource(TokenDistillationTask)
    assert "reduction='batchmean'" in source
    assert "log_softmax" in source


def test_soft_distillation_gradient_is_tau_times_the_difference(noise):
    student, word = noise(3, 4).requires_grad_(), teacher_targets(noise(3, 4, seed=1), "soft", 3.0)
    soft_distillation(student, word, tau=3.0, reduction="batchmean").backward()
    torch.testing.assert_close(student.grad, 3.0 * ((student.detach() / 3).softmax(1) - word) / 3)


def test_soft_distillation_of_equals_is_zero(noise):
    word = teacher_targets(noise(3, 4), "soft", 3.0)
    assert soft_distillation(
        noise(3, 4), word, tau=3.0, reduction="batchmean"
    ).item() == pytest.approx(0, abs=1e-6)


def test_unknown_reduction_is_refused(noise):
    with pytest.raises(ValueError, match="'sum'"):
        soft_distillation(noise(1, 2), noise(1, 2).softmax(1), tau=1.0, reduction="sum")


def test_equation_3_is_one_half_each():
    assert combine(torch.tensor(2.0), torch.tensor(4.0), 0.5).item() == 3.0


def test_equation_2_weighs_by_lambda():
    assert combine(torch.tensor(2.0), torch.tensor(4.0), 0.1).item() == pytest.approx(2.2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    student = torch.full((2, 4), 100.0, dtype=dtype)  # the sum of exponentials would overflow
    for loss in (
        cross_entropy(student, torch.tensor([0, 1])),
        hard_distillation(student, teacher_targets(student, "hard", 1.0)),
        soft_distillation(
            student, teacher_targets(student, "soft", 1.0), tau=1.0, reduction="batchmean"
        ),
    ):
        assert loss.dtype is torch.float32
        assert loss.isfinite()

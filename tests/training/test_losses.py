"""Formulas of the losses against hand-computed cases, timm, torch and the released code."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import (
    AsymmetricLossMultiLabel,
    BinaryCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from timm.task.token_distillation import TokenDistillationTask

from deitctl.distillation.targets import teacher_targets
from deitctl.training.losses import (
    asymmetric_loss,
    binary_cross_entropy,
    cross_entropy,
    make_targets,
    smooth_binary_labels,
    smooth_labels,
    soft_binary_distillation,
    soft_distillation,
)


def test_smoothing_by_hand():
    targets = smooth_labels(make_targets(torch.tensor([2, 0]), 4), 0.1)
    torch.testing.assert_close(
        targets, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]])
    )


def test_no_smoothing_is_one_hot():
    assert torch.equal(
        smooth_labels(make_targets(torch.tensor([1]), 3), 0.0), torch.tensor([[0.0, 1.0, 0.0]])
    )


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
    ours = cross_entropy(logits, smooth_labels(make_targets(labels, 10), smoothing))
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


def test_binary_cross_entropy_by_hand():
    """Probabilities 3/4 and 1/2 of two classes, of which the image has the first."""
    logits, targets = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[1.0, 0.0]])
    terms = math.log(4 / 3) + math.log(2)
    assert binary_cross_entropy(logits, targets).item() == pytest.approx(terms / 2)
    summed = binary_cross_entropy(logits, targets, sum_classes=True)
    assert summed.item() == pytest.approx(terms)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_cross_entropy_equals_timms(threshold, sums, weighted, noise):
    logits, targets = 3 * noise(6, 5), noise(6, 5, seed=1).sigmoid() * (noise(6, 5, seed=2) > 0)
    weights, pos = noise(5, seed=3).exp(), noise(5, seed=4).exp()
    theirs = BinaryCrossEntropy(
        0.0,
        threshold,
        weight=weights if weighted else None,
        pos_weight=pos if weighted else None,
        sum_classes=sums,
    )
    ours = binary_cross_entropy(
        logits,
        targets,
        class_weights=weights if weighted else None,
        pos_weights=pos if weighted else None,
        target_thresh=threshold,
        sum_classes=sums,
    )
    torch.testing.assert_close(ours, theirs(logits, targets), rtol=0, atol=1e-6)


def test_asymmetric_loss_by_hand():
    """A positive of probability 3/4 is 1/4 wrong; a negative of 1/2 costs as one of 0.45, to the fourth power."""
    logits, targets = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[1.0, 0.0]])
    loss = asymmetric_loss(logits, targets, gamma_neg=4, gamma_pos=1, clip=0.05)
    expected = 0.25 * math.log(4 / 3) - 0.45**4 * math.log(0.55)
    assert loss.item() == pytest.approx(expected)


def test_a_negative_below_the_clip_costs_nothing():
    logits, targets = torch.tensor([[-4.0]]), torch.zeros(1, 1)  # a probability of 0.018
    assert asymmetric_loss(logits, targets, gamma_neg=4, gamma_pos=1, clip=0.05).item() == 0


@pytest.mark.parametrize(("gamma_neg", "gamma_pos", "clip"), [(4, 1, 0.05), (2, 0, 0), (0, 0, 0.1)])
@pytest.mark.parametrize("mixed", [False, True])
def test_asymmetric_loss_and_its_gradient_equal_timms(gamma_neg, gamma_pos, clip, mixed, noise):
    weights, pos = noise(5, seed=3).exp(), noise(5, seed=4).exp()
    targets = noise(6, 5, seed=1).sigmoid() if mixed else (noise(6, 5, seed=1) > 0).float()
    theirs = AsymmetricLossMultiLabel(gamma_neg, gamma_pos, clip, weight=weights, pos_weight=pos)
    ours_in, theirs_in = ((4 * noise(6, 5)).requires_grad_() for _ in range(2))
    ours = asymmetric_loss(
        ours_in,
        targets,
        gamma_neg=gamma_neg,
        gamma_pos=gamma_pos,
        clip=clip,
        class_weights=weights,
        pos_weights=pos,
    )
    expected = theirs(theirs_in, targets)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    ours.backward()
    expected.backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, rtol=1e-5, atol=1e-6)


def test_mixed_and_smoothed_labels_of_several_equal_timms(noise):
    labels = noise(4, 5) > 0
    mixed = 0.3 * make_targets(labels, 5) + 0.7 * make_targets(labels, 5).flip(0)
    theirs = mixup_target(labels, 5, lam=0.3, smoothing=0.1, multi_label=True)
    torch.testing.assert_close(smooth_binary_labels(mixed, 0.1), theirs)


def test_smoothing_of_each_class_is_that_of_its_images(noise):
    """Of one label an image each row is as with its own class's smoothing; of several each column."""
    by_class = torch.tensor([0.3, 0.0, 0.1])
    rows = torch.cat([smooth_labels(torch.eye(3)[c : c + 1], float(by_class[c])) for c in range(3)])
    torch.testing.assert_close(smooth_labels(torch.eye(3), by_class), rows)
    columns = [smooth_binary_labels(torch.eye(3), float(s))[:, c] for c, s in enumerate(by_class)]
    torch.testing.assert_close(
        smooth_binary_labels(torch.eye(3), by_class), torch.stack(columns, dim=1)
    )


def test_soft_distillation_of_several_labels_by_hand():
    """One class, tau 2: teacher 3/4, student 1/2 after the division by tau."""
    student, targets = torch.zeros(1, 1), torch.tensor([[0.75]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = soft_binary_distillation(student, targets, tau=2.0, reduction="batchmean")
    assert loss.item() == pytest.approx(4 * divergence, rel=1e-6)


def test_soft_distillation_of_several_labels_is_that_of_two_outcomes_a_class(noise):
    """A sigmoid is the softmax of its logit and 0."""
    student, teacher, tau = noise(6, 5), 3 * noise(6, 5, seed=1), 2.0

    def pair(x):
        return torch.stack([x, torch.zeros_like(x)], dim=-1).reshape(-1, 2)

    targets = teacher_targets(teacher, "soft", tau, is_multilabel=True)
    outcomes = teacher_targets(pair(teacher), "soft", tau)
    of_pairs = soft_distillation(pair(student), outcomes, tau=tau, reduction="batchmean")
    mean = soft_binary_distillation(student, targets, tau=tau, reduction="mean")
    batchmean = soft_binary_distillation(student, targets, tau=tau, reduction="batchmean")
    torch.testing.assert_close(mean, of_pairs)  # a mean over images and classes
    torch.testing.assert_close(batchmean, 5 * of_pairs)


def test_soft_distillation_of_several_labels_is_finite_for_certain_teachers():
    student = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = soft_binary_distillation(
        student, torch.tensor([[0.0, 1.0]]), tau=1.0, reduction="batchmean"
    )
    loss.backward()
    assert loss.item() == pytest.approx(400)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 4.0])
def test_asymmetric_loss_of_labels_that_are_met_has_no_gradient_for_any_focus(gamma):
    """A negative below the clip, and a positive whose probability is 1 in fp32; the third is missed."""
    logits = torch.tensor([[-5.0, 30.0, 0.5]], requires_grad=True)
    targets = torch.tensor([[0.0, 1.0, 1.0]])
    loss = asymmetric_loss(logits, targets, gamma_neg=gamma, gamma_pos=gamma, clip=0.05)
    loss.backward()
    p = 1 / (1 + math.exp(-0.5))
    assert loss.item() == pytest.approx(-math.log(p) * (1 - p) ** gamma, rel=1e-6)
    slope = (1 - p) ** gamma * (gamma * p * math.log(p) - (1 - p))
    assert logits.grad.tolist()[0] == pytest.approx([0, 0, slope], rel=1e-6, abs=1e-12)

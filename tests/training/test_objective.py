"""Losses and objectives against the formulas of the paper, hand-computed cases, timm and torch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from deitctl.config import BceConfig, DistillConfig, TrainConfig
from deitctl.distillation.targets import teacher_targets
from deitctl.errors import ConfigError
from deitctl.recipes import SMALL
from deitctl.settings import override
from deitctl.training.class_balance import ClassCounts
from deitctl.training.extensions import guard_objective
from deitctl.training.losses import make_targets
from deitctl.training.objective import (
    BinaryLoss,
    CrossEntropy,
    Distillation,
    StudentBatch,
    Supervised,
    build_objective,
    estimate_guess_loss,
    find_task_loss,
    report_loss,
    uses_sigmoids,
)

TAU = {"hard": 1.0, "soft": 3.0}


@pytest.fixture
def make_batch(noise):
    """Four images with their labels, and as the teacher's logits [4,5] have it, targets of a mode."""
    images, targets = noise(4, 3, 32, 32), make_targets(torch.tensor([0, 1, 2, 3]), 5)

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
    student, mask = deit("deit_tiny_distilled").train(), torch.zeros(12, 2, 4)
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


UNEVEN = ClassCounts(torch.tensor([50.0, 20.0, 10.0, 5.0, 1.0]).double(), 86, False, tuple("abcde"))
SEVERAL = replace(UNEVEN, num_images=60, is_multilabel=True)


def objective_of(counts=UNEVEN, distill=None, **recipe):
    config = TrainConfig(model="m", data="d", recipe=override(SMALL, recipe), distill=distill)
    return build_objective(config, counts)


def test_the_loss_follows_from_the_labels():
    assert isinstance(objective_of().task_loss, CrossEntropy)
    several = objective_of(SEVERAL).task_loss
    assert isinstance(several, BinaryLoss)
    assert several.asl is None
    assert objective_of(SEVERAL, loss="asl").task_loss.asl.gamma_neg == 4


def test_weighted_cross_entropy_equals_torchs_but_for_what_it_is_divided_by(noise):
    """torch divides by the weights of the batch, here by its images: so micro-batches add up."""
    logits, labels = noise(8, 5), torch.tensor([0, 0, 0, 1, 2, 3, 4, 0])
    loss = objective_of(class_weights="inverse", smoothing=0.0).task_loss
    weights = loss.class_weights
    expected = F.cross_entropy(logits, labels, weights, reduction="sum") / 8
    torch.testing.assert_close(loss(logits, make_targets(labels, 5), smooth=True), expected)


def test_a_smoothed_image_counts_as_its_label_does(noise):
    """In torch the share of a label that is moved to a rare class has that class's weight."""
    logits, labels = noise(8, 5), torch.tensor([0, 0, 0, 1, 2, 3, 4, 0])
    loss = objective_of(class_weights="inverse", smoothing=0.2).task_loss
    each = F.cross_entropy(logits, labels, label_smoothing=0.2, reduction="none")
    expected = (each * loss.class_weights[labels]).mean()
    torch.testing.assert_close(loss(logits, make_targets(labels, 5), smooth=True), expected)


def test_adjusted_logits_are_those_of_menon(noise):
    logits, labels = noise(8, 5), torch.arange(8) % 5
    loss = objective_of(logit_adjustment=1.5, smoothing=0.0).task_loss
    prior = (UNEVEN.counts / 86).float()
    expected = F.cross_entropy(logits + 1.5 * prior.log(), labels)
    torch.testing.assert_close(loss(logits, make_targets(labels, 5), smooth=True), expected)


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_both_heads_are_adjusted(mode, deit, make_batch, teacher):
    student, batch = deit("deit_tiny_distilled"), make_batch(teacher, mode)
    objective = objective_of(distill=config(mode), logit_adjustment=1.0, smoothing=0.0)
    losses = objective(student, batch)
    with torch.no_grad():
        for head in (student.head, student.head_dist):
            head.bias += (UNEVEN.counts / 86).log().float()
    plain = Distillation(config(mode))(student, batch)
    for name in ("task_loss", "kd_loss"):
        torch.testing.assert_close(losses[name], plain[name])


def test_a_teacher_of_several_labels_teaches_each_class_by_itself(deit, make_batch, teacher):
    batch, student = make_batch(), deit("deit_tiny_distilled")
    labels = (teacher > 0).float()
    for mode in ("hard", "soft"):
        targets = teacher_targets(teacher, mode, TAU[mode], is_multilabel=True)
        both = batch._replace(targets=labels, teacher_targets=targets)
        objective = objective_of(SEVERAL, config(mode, reduction="mean"), smoothing=0.0)
        losses = objective(student, both)
        cls, dist = student(both.images)
        bce = F.binary_cross_entropy_with_logits
        torch.testing.assert_close(losses["task_loss"], bce(cls, labels))
        tau = TAU[mode]
        kd_loss = bce(dist / tau, targets) - bce(targets.logit(), targets).nan_to_num(0.0)
        torch.testing.assert_close(losses["kd_loss"], tau**2 * kd_loss)


@pytest.mark.parametrize(
    ("counts", "settings"),
    [
        (UNEVEN, {"class_weights": "effective", "logit_adjustment": 1.0}),
        (UNEVEN, {"loss": "bce", "class_weights": "neg_pos"}),
        (SEVERAL, {"loss": "asl", "class_weights": "inverse", "smoothing_by": "class"}),
    ],
)
def test_two_micro_batches_have_the_gradient_of_one(counts, settings, noise):
    """Whatever classes fall into which: the loss is a mean over images."""
    loss = objective_of(counts, **settings).task_loss
    labels = make_targets(torch.tensor([0, 0, 0, 0, 1, 4]), 5)
    whole, parts = (noise(6, 5).requires_grad_() for _ in range(2))
    loss(whole, labels, smooth=True).backward()
    for rows in (slice(0, 4), slice(4, 6)):
        (loss(parts[rows], labels[rows], smooth=True) * len(labels[rows]) / 6).backward()
    torch.testing.assert_close(parts.grad, whole.grad)


@pytest.mark.parametrize(
    ("counts", "settings", "message"),
    [
        (SEVERAL, {"loss": "ce"}, "one label an image, and these images may have several"),
        (UNEVEN, {"loss": "asl"}, "several labels an image, and these have one"),
        (SEVERAL, {"logit_adjustment": 1.0}, "binary cross-entropy has none"),
        (UNEVEN, {"loss": "bce", "logit_adjustment": 1.0}, "binary cross-entropy has none"),
        (UNEVEN, {"class_weights": "neg_pos"}, "cross-entropy does not have"),
        (UNEVEN, {"bce.sum_classes": True}, "bce.sum_classes is a setting of loss bce"),
        (SEVERAL, {"asl.clip": 0.1}, "asl.clip is a setting of loss asl, and the loss is bce"),
        (UNEVEN, {"smoothing": 0.0, "smoothing_by": "class"}, "smoothing is 0"),
        (UNEVEN, {"loss": "bce", "bce.target_thresh": 0.0}, "every class of every image positive"),
        (SEVERAL, {"bce.target_thresh": 0.96}, "no class of any image positive"),
    ],
)
def test_what_does_not_go_together_is_refused_in_words(counts, settings, message):
    with pytest.raises(ConfigError, match=message):
        objective_of(counts, **settings)


def test_two_remedies_for_one_thing_are_warned_of(reporter):
    recipe = override(SMALL, {"class_weights": "inverse", "logit_adjustment": 1.0})
    report_loss(TrainConfig(model="m", data="d", recipe=recipe), UNEVEN, reporter)
    assert len(reporter.notes) == 2
    (warning,) = reporter.warnings
    assert "class weights and logit adjustment each make up for rare classes" in warning
    recipe = override(SMALL, {"class_weights": "inverse", "sampling": "balanced"})
    report_loss(TrainConfig(model="m", data="d", recipe=recipe), UNEVEN, reporter)
    assert "class weights and balanced sampling each make up" in reporter.warnings[-1]


def test_a_usual_training_has_nothing_to_say_of_its_loss(reporter):
    report_loss(TrainConfig(model="m", data="d", recipe=SMALL), UNEVEN, reporter)
    report_loss(TrainConfig(model="m", data="d", recipe=SMALL), SEVERAL, reporter)
    assert (reporter.notes, reporter.warnings) == ([], [])


@pytest.mark.parametrize(
    ("counts", "settings", "expected"),
    [
        (UNEVEN, {}, math.log(5)),
        (UNEVEN, {"loss": "bce"}, math.log(2)),
        (SEVERAL, {}, math.log(2)),
        (SEVERAL, {"bce.sum_classes": True}, 5 * math.log(2)),
    ],
)
def test_the_loss_of_a_guess_is_that_of_even_probabilities(counts, settings, expected):
    loss = objective_of(counts, **settings).task_loss
    assert estimate_guess_loss(loss, counts) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "weigh"),
    [
        ({}, lambda share: (1, 1)),
        ({"class_weights": "inverse", "class_weight_power": 1.0}, lambda share: (1 / share,) * 2),
        ({"class_weights": "neg_pos"}, lambda share: ((1 - share) / share, 1)),
    ],
)
def test_the_asymmetric_loss_of_a_guess_is_that_of_images_that_have_a_class_or_not(settings, weigh):
    """At p = 1/2: -log(1/2) 1/2^1 of an image that has it, -log(0.55) 0.45^4 of one that has not."""
    task_loss = objective_of(SEVERAL, loss="asl", smoothing=0.0, **settings).task_loss
    shares = (SEVERAL.counts / SEVERAL.num_images).tolist()
    weights = [weigh(share) for share in shares]
    mean = sum(w for w, _ in weights) / len(weights) if "class_weight_power" in settings else 1
    with_it, without = -math.log(0.5) * 0.5, -math.log(0.55) * 0.45**4
    expected = sum(
        (of_positive * share * with_it + of_negative * (1 - share) * without) / mean
        for share, (of_positive, of_negative) in zip(shares, weights, strict=True)
    )
    assert estimate_guess_loss(task_loss, SEVERAL) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_guess_keeps_its_positives_where_labels_have_a_threshold():
    task_loss = objective_of(UNEVEN, loss="bce", class_weights="neg_pos").task_loss
    hard = replace(task_loss, bce=BceConfig(target_thresh=0.5))
    plain = replace(task_loss, smoothing=0.0)
    assert estimate_guess_loss(hard, UNEVEN) == estimate_guess_loss(plain, UNEVEN)


def focus(logits, labels, *, smooth):
    """A loss of a caller's."""
    return 3 * (labels - logits.sigmoid()).abs().pow(3).mean()


def test_an_objective_that_names_no_loss_is_taken_for_that_of_its_labels():
    def own(student, batch): ...

    assert find_task_loss(own) == CrossEntropy()
    several = find_task_loss(own, is_multilabel=True)
    assert several == BinaryLoss(True, BceConfig())
    assert find_task_loss(guard_objective(own), is_multilabel=True) == several
    own.task_loss = focus
    assert find_task_loss(guard_objective(own), is_multilabel=True) is focus
    assert estimate_guess_loss(focus, SEVERAL) == pytest.approx(3 / 8)
    assert uses_sigmoids(focus, is_multilabel=True)
    assert not uses_sigmoids(focus, is_multilabel=False)
    assert not uses_sigmoids(CrossEntropy(), is_multilabel=True)


def test_the_loss_of_a_guess_allows_for_a_batch_of_the_rarest_class() -> None:
    loss = objective_of(UNEVEN, class_weights="inverse").task_loss
    assert estimate_guess_loss(loss, UNEVEN) == pytest.approx(86 / 5 * math.log(5), rel=1e-5)
    counts = ClassCounts(torch.tensor([90.0, 10.0]).double(), 100, False, ("a", "b"))
    plain, weighted = CrossEntropy(), CrossEntropy(class_weights=torch.tensor([0.5556, 5.0]))
    assert estimate_guess_loss(plain, counts) == pytest.approx(math.log(2))
    assert estimate_guess_loss(weighted, counts) == pytest.approx(5 * math.log(2))

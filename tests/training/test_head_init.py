"""Closed-form heads: leave-one-out without refitting, the features' classes from the first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from deitctl.config import BceConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.subsets import Subset
from deitctl.device import choose_device
from deitctl.evaluation.multilabel import average_precision, mean_average_precision, rank
from deitctl.events import SilentReporter
from deitctl.models.catalog import find
from deitctl.models.vit import VisionTransformer
from deitctl.training import head_init
from deitctl.training.head_init import fit_new_heads, fit_ridge, fit_sigmoids
from deitctl.training.objective import BinaryLoss, CrossEntropy

Pair = tuple[ImageDataset, ImageDataset]


def make_blobs(
    count: int, dim: int, num_classes: int, *, spread: float
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % num_classes
    centers = torch.randn(num_classes, dim, generator=generator)
    return centers[labels] + spread * torch.randn(count, dim, generator=generator), labels


@pytest.mark.parametrize(("count", "dim"), [(40, 6), (12, 30)])
def test_the_head_is_a_ridge_regression_of_the_one_hot_classes(count, dim, monkeypatch):
    """One penalty and one scale to choose from: scikit-learn's Ridge has the same coefficients."""
    monkeypatch.setattr(head_init, "PENALTIES", (0.1,))
    monkeypatch.setattr(head_init, "SCALES", (2.0,))
    x, labels = make_blobs(count, dim, 4, spread=0.5)
    centered = (x - x.mean(0)).double()
    alpha = 0.1 * float((centered**2).sum()) / dim
    expected = Ridge(alpha=alpha).fit(x.double().numpy(), np.eye(4)[labels.numpy()])
    fitted = fit_ridge(x, labels, 4, smoothing=0.1)
    np.testing.assert_allclose(fitted.weight.numpy(), 2 * expected.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fitted.bias.numpy(), 2 * expected.intercept_, rtol=1e-4, atol=1e-6)


def test_leaving_one_out_is_what_fitting_again_without_each_image_gives(monkeypatch):
    """The penalty is fixed; the closed form must equal N fits of N - 1 images."""
    monkeypatch.setattr(head_init, "PENALTIES", (0.01,))
    x, labels = make_blobs(30, 5, 3, spread=1.2)
    alpha = 0.01 * float(((x - x.mean(0)).double() ** 2).sum()) / 5
    one_hot, right = np.eye(3)[labels.numpy()], 0
    for left_out in range(30):
        others = np.arange(30) != left_out
        again = Ridge(alpha=alpha).fit(x[others].double().numpy(), one_hot[others])
        prediction = again.predict(x[left_out : left_out + 1].double().numpy())
        right += int(prediction.argmax() == int(labels[left_out]))
    assert 10 < right < 30  # so that it is no accuracy that every mistake has, too
    assert fit_ridge(x, labels, 3, smoothing=0.1).loo_score == pytest.approx(100 * right / 30)


def test_images_that_are_far_apart_get_a_small_penalty_and_a_large_scale():
    near, labels = make_blobs(200, 8, 4, spread=0.1)
    far, _ = make_blobs(200, 8, 4, spread=5.0)
    sure, unsure = (fit_ridge(x, labels, 4, smoothing=0.0) for x in (near, far))
    confidence = [
        float((x @ head.weight.T + head.bias).softmax(1).amax(1).mean())
        for x, head in ((near, sure), (far, unsure))
    ]
    assert confidence[0] > 0.95 > 0.5 > confidence[1] > 0.25


@pytest.mark.parametrize("alias", ["deit_tiny", "deit_tiny_distilled"])
def test_a_fitted_head_knows_images_that_a_random_one_does_not(
    alias: str, deit: Callable[..., VisionTransformer], little: Pair
):
    train, _ = little
    model = deit(alias, classes=10)
    arch = find(alias)
    assert arch is not None
    config = arch.to_model_config().at_size(32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accuracy = fit_new_heads(
        model,
        replace(config, num_classes=10, class_names=train.class_names),
        train,
        task_loss=CrossEntropy(0.1),
        seed=0,
        device=choose_device("cpu", "fp32"),
        workers=0,
        reporter=SilentReporter(),
    )
    assert accuracy is not None
    assert accuracy > 30  # of random features; a guess is 10
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    heads = ("head", "head_dist") if alias.endswith("distilled") else ("head",)
    assert changed == {f"{head}.{part}" for head in heads for part in ("weight", "bias")}


def test_features_that_are_not_finite_leave_the_head_as_it_is_with_a_warning(
    deit: Callable[..., VisionTransformer], little: Pair, reporter
):
    model, arch = deit(classes=10), find("deit_tiny")
    assert arch is not None
    with torch.no_grad():
        model.pos_embed[0, 0, 0] = torch.nan
    before = {name: value.clone() for name, value in model.head.state_dict().items()}
    fitted = fit_new_heads(
        model,
        replace(arch.to_model_config().at_size(32), num_classes=10),
        little[0],
        task_loss=CrossEntropy(0.1),
        seed=0,
        device=choose_device("cpu", "fp32"),
        workers=0,
        reporter=reporter,
    )
    assert fitted is None
    assert all(torch.equal(v, before[n]) for n, v in model.head.state_dict().items())
    (warning,) = reporter.warnings
    assert "deit_tiny_patch16_224 in fp32 gives 60 of 60 images features that are not" in warning


def test_a_head_that_is_no_linear_layer_stays_as_it_is(
    deit: Callable[..., VisionTransformer], little: Pair
):
    model = deit(classes=10)
    model.head = nn.Sequential(model.head)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arch = find("deit_tiny")
    assert arch is not None
    fitted = fit_new_heads(
        model,
        arch.to_model_config().at_size(32),
        little[0],
        task_loss=CrossEntropy(0.1),
        seed=0,
        device=choose_device("cpu", "fp32"),
        workers=0,
        reporter=SilentReporter(),
    )
    assert fitted is None
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_heads_of_sigmoids_have_the_frequencies_of_the_classes():
    """One with few images, one with none: the mean probability is the share of images, of Platt's too."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.rand(300, 4, generator=draw) < torch.tensor([0.5, 0.2, 0.02, 0.0])
    x = labels.float() @ torch.randn(4, 20, generator=draw) + torch.randn(300, 20, generator=draw)
    fitted = fit_ridge(x, labels, 4, smoothing=0.0, has_sigmoid=True)
    probs = (x @ fitted.weight.T + fitted.bias).sigmoid()
    shares = labels.float().mean(0)
    torch.testing.assert_close(probs.mean(0), shares, atol=0.01, rtol=0)
    ours = average_precision(rank(labels.numpy(), probs.numpy()))
    assert 50 < fitted.loo_score < 100 * mean_average_precision(ours)


def test_scale_and_shift_of_sigmoids_are_those_of_logistic_regression():
    """scikit-learn's without a penalty, on targets that are softened as Platt's by repeating images."""
    draw = torch.Generator().manual_seed(1)
    labels = (torch.rand(200, 1, generator=draw) < 0.3).double()
    values = labels + torch.randn(200, 1, generator=draw).double()
    fit = fit_sigmoids(values, labels)
    low, high = 1 / (200 - labels.sum() + 2), (labels.sum() + 1) / (labels.sum() + 2)
    softened = low + labels * (high - low)
    x = torch.cat([values, values]).numpy()
    y = [1] * 200 + [0] * 200
    weights = torch.cat([softened, 1 - softened])[:, 0].numpy()
    theirs = LogisticRegression(C=1e10, tol=1e-10, max_iter=1000).fit(x, y, weights)
    assert float(fit.scale[0]) == pytest.approx(theirs.coef_[0, 0], rel=1e-4)
    assert float(fit.shift[0]) == pytest.approx(theirs.intercept_[0], rel=1e-4)


def test_a_head_that_the_loss_adjusts_starts_with_the_adjustment_taken_off(deit, little):
    model, arch = deit(classes=10), find("deit_tiny")
    config = replace(arch.to_model_config().at_size(32), num_classes=10)
    biases = []
    for adjustment in (None, torch.arange(10.0)):
        fit_new_heads(
            model,
            config,
            little[0],
            task_loss=CrossEntropy(0.1, adjustment=adjustment),
            seed=0,
            device=choose_device("cpu", "fp32"),
            workers=0,
            reporter=SilentReporter(),
        )
        biases.append(model.head.bias.detach().clone())
    torch.testing.assert_close(biases[0] - biases[1], torch.arange(10.0))


def test_a_head_for_a_callers_loss_of_several_labels_is_one_of_sigmoids(deit, little):
    """As that for binary cross-entropy, though the loss says nothing of itself; of one label a softmax's."""
    model, arch = deit(classes=10), find("deit_tiny")
    config = replace(arch.to_model_config().at_size(32), num_classes=10)
    train = little[0]
    several = Subset(train, np.arange(60), np.eye(10, dtype=bool)[train.labels], train.class_names)
    losses = (BinaryLoss(True, BceConfig()), lambda logits, labels, *, smooth: logits.sum())
    for images, is_equal in ((several, True), (train, False)):
        weights = []
        for task_loss in losses:
            fit_new_heads(
                model,
                config,
                images,
                task_loss=task_loss,
                seed=0,
                device=choose_device("cpu", "fp32"),
                workers=0,
                reporter=SilentReporter(),
            )
            weights.append(model.head.weight.detach().clone())
        assert torch.equal(*weights) == is_equal

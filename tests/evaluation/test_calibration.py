"""The temperature is the one that minimizes the loss, is judged on other images, and does not exist where it cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data.readers.digits import ArrayDataset
from deitctl.device import choose_device
from deitctl.evaluation import validate as module
from deitctl.evaluation.calibration import calibrate, fit_temperature
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.metrics import compute_reliability, expected_calibration_error
from deitctl.evaluation.validate import validate
from deitctl.models.heads import fuse_heads
from deitctl.models.vit import HeadLogits

CPU = choose_device("cpu", "fp32")


def answers(count=4000, classes=6, sharpness=1.0, seed=0):
    """Logits whose softmax at temperature 1 is true of the labels, drawn from it, times `sharpness`."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=draw)
    labels = torch.multinomial(logits.softmax(1), 1, generator=draw)[:, 0]
    return sharpness * logits, labels


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 2.5])
def test_a_temperature_undoes_the_sharpness_of_true_logits(sharpness):
    logits, labels = answers(sharpness=sharpness)
    assert fit_temperature(logits, labels) == pytest.approx(sharpness, rel=0.05)


def test_two_classes_by_hand():
    """Three of four right at a margin of 2: softmax(2 / T) is 3/4 at 2 / T = ln 3."""
    logits = torch.tensor([[2.0, 0.0]]).expand(4, 2)
    assert fit_temperature(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(
        2 / np.log(3), rel=1e-5
    )


@given(st.integers(0, 1000), st.floats(0.2, 4.0), st.integers(2, 8))
def test_no_other_temperature_has_a_smaller_loss(seed, sharpness, classes):
    logits, labels = answers(60, classes, sharpness, seed)
    best = fit_temperature(logits, labels)
    if best is None:  # too little to learn from: the loss falls up to an end
        return
    losses = [
        float(torch.nn.functional.cross_entropy(logits.double() / t, labels))
        for t in (best, best * 1.02, best / 1.02)
    ]
    assert losses[0] <= min(losses[1:]) + 1e-9


def test_the_temperature_is_scikit_learns():
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LogisticRegression

    logits, labels = answers(500, sharpness=3.0)
    model = LogisticRegression()  # whose decision function gives the logits back
    model.classes_, model.coef_, model.intercept_ = np.arange(6), np.eye(6), np.zeros(6)
    model.n_features_in_ = 6
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(
        logits.numpy(), labels.numpy()
    )
    ours = (logits / fit_temperature(logits, labels)).softmax(1)
    np.testing.assert_allclose(theirs.predict_proba(logits.numpy()), ours, atol=2e-3)


@pytest.mark.parametrize("wrong", [False, True])
def test_without_a_mistake_or_with_nothing_right_there_is_no_temperature(wrong):
    logits = 5 * torch.eye(4)
    assert fit_temperature(logits, torch.arange(4).roll(int(wrong))) is None


def test_reliability_by_hand():
    low, high = compute_reliability(
        torch.tensor([0.1, 0.5, 0.9, 1.0]), torch.tensor([False, True, True, False]), bins=2
    )
    assert (low.lower, low.upper, low.num_images, low.accuracy) == (0.0, 0.5, 2, 0.5)
    assert (high.lower, high.upper, high.num_images, high.accuracy) == (0.5, 1.0, 2, 0.5)
    assert (low.confidence, high.confidence) == pytest.approx((0.3, 0.95))


def test_a_bin_without_images_is_left_out():
    (only,) = compute_reliability(torch.tensor([0.9]), torch.tensor([True]), bins=2)
    assert (only.lower, only.num_images, only.accuracy) == (0.5, 1, 1.0)
    assert only.confidence == pytest.approx(0.9)


class Oracle(torch.nn.Module):
    """Answers an image of brightness n with the n-th row of logits."""

    def __init__(self, logits, dist=None):
        super().__init__()
        self.logits, self.dist = logits, dist

    def forward(self, images):
        n = (images.mean(dim=(1, 2, 3)) * 0.2256 + 0.449) * 255
        rows = n.round().long().clamp(0, len(self.logits) - 1)
        return self.logits[rows] if self.dist is None else (self.logits[rows], self.dist[rows])


def calibrate_result(result):
    return calibrate(result.logits, result.targets[result.logit_rows], result.head)


def evaluated(logits, labels, dist=None, temperature=1.0, head="cls", **options):
    images = np.stack([np.full((8, 8), n, np.uint8) for n in range(len(labels))])
    dataset = ArrayDataset(images, np.asarray(labels), tuple("abcdef"), "rows")
    from deitctl.events import SilentReporter
    from deitctl.models.model_config import Preprocessing

    eval_model = EvalModel(
        model=Oracle(logits, dist),
        preprocessing=Preprocessing(img_size=8, crop_pct=1.0),
        rows=tuple(range(6)),
        head=head,
        temperature=temperature,
    )
    (calibration,) = validate(
        [eval_model],
        dataset,
        device=CPU,
        batch_size=37,
        workers=0,
        reporter=SilentReporter(),
        store_logits=True,
        **options,
    )
    return calibration


def test_calibration_lowers_the_error_of_a_model_that_is_too_sure_and_keeps_its_predictions():
    logits, labels = answers(250, sharpness=4.0)
    raw = evaluated(logits, labels)
    calibration = calibrate_result(raw)
    assert calibration.temperature == pytest.approx(fit_temperature(logits, labels), rel=1e-5)
    assert (calibration.num_images, calibration.temperatures) == (
        250,
        {"cls": calibration.temperature},
    )
    assert calibration.ece < raw.ece / 2
    assert calibration.loss < raw.loss
    assert sum(b.num_images for b in calibration.reliability) == 250
    again = evaluated(logits, labels, temperature=calibration.temperature)
    assert torch.equal(again.preds, raw.preds)
    assert again.loss == pytest.approx(calibration.loss, rel=0.05)
    # of the raw logits, not on top
    assert calibrate_result(again).temperature == pytest.approx(calibration.temperature)


def test_the_error_is_measured_on_images_that_the_temperature_was_not_fitted_to():
    logits, labels = answers(250, sharpness=4.0)
    order = torch.randperm(250, generator=torch.Generator().manual_seed(0))
    cooled = torch.empty_like(logits)
    for fold in range(5):
        held = order % 5 == fold
        cooled[held] = logits[held] / fit_temperature(logits[~held], labels[~held])
    confidence, answer = cooled.softmax(1).max(1)
    assert calibrate_result(evaluated(logits, labels)).ece == pytest.approx(
        expected_calibration_error(confidence, answer == labels), rel=1e-4
    )


def test_the_order_of_the_data_decides_nothing():
    """Labels that go round and round would put a whole class into a fold."""
    logits, labels = answers(1000, 5, sharpness=3.0)
    logits[labels < 2] *= 0.4  # two classes of which it is less sure
    by_class = torch.sort(labels, stable=True).indices
    cyclic = torch.argsort(
        torch.cat([torch.arange(int(n)) for n in labels.bincount()]), stable=True
    )
    first, second = (
        calibrate(HeadLogits(logits[order], None), labels[order], "cls")
        for order in (by_class, by_class[cyclic])
    )
    assert first.temperature == pytest.approx(second.temperature)
    assert first.loss == pytest.approx(second.loss, rel=0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_there_is_no_temperature_for_what_is_no_number(bad):
    logits, labels = answers(100)
    logits[7, 3] = bad
    assert fit_temperature(logits, labels) is None


def test_every_head_rule_has_a_temperature_of_its_own():
    cls, labels = answers(250, sharpness=4.0)
    dist = 0.5 * cls + 0.1 * torch.randn(250, 6, generator=torch.Generator().manual_seed(3))
    scores = evaluated(cls, labels, dist, head="avg-probs")
    calibration = calibrate_result(scores)
    assert calibration.temperatures == {
        rule: pytest.approx(fit_temperature(fuse_heads(scores.logits, rule), labels), rel=1e-5)
        for rule in ("cls", "dist", "avg-logits", "avg-probs")
    }
    assert calibration.temperature == calibration.temperatures["avg-probs"]


@pytest.mark.parametrize("room", [6 * 250, 6 * 100, 6])
def test_logits_are_kept_of_so_many_images_as_there_is_room_for(room, monkeypatch):
    monkeypatch.setattr(module, "MAX_LOGITS", room)
    logits, labels = answers(250, sharpness=4.0)
    scores = evaluated(logits, labels)
    assert len(scores.logit_rows) == room // 6
    assert torch.equal(scores.logits.cls, logits[scores.logit_rows])
    assert scores.num_images == 250
    assert (calibrate_result(scores) is None) == (room == 6)

"""A pass over images of several labels each gives scikit-learn's figures, for each head rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn

from deitctl.data.readers.digits import ArrayDataset
from deitctl.device import choose_device
from deitctl.evaluation import multilabel, multilabel_accumulator
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.multilabel_accumulator import MultilabelAccumulator
from deitctl.evaluation.multilabel_bootstrap import bootstrap_multilabel
from deitctl.evaluation.multilabel_result import MultilabelResult
from deitctl.evaluation.thresholds import scale_thresholds
from deitctl.evaluation.validate import validate
from deitctl.models.model_config import HEADS, Preprocessing
from deitctl.models.vit import HeadLogits

PRE = Preprocessing(img_size=16, crop_pct=1.0)
NAMES = ("a", "b", "c", "never")


def expit(logits: Tensor) -> np.ndarray:
    return logits.double().sigmoid().numpy()


def draw(count=60):
    draw = np.random.default_rng(0)
    labels = draw.random((count, 4)) < [0.5, 0.3, 0.1, 0]
    cls, dist = (torch.tensor(draw.normal(size=(count, 4)) + labels).float() for _ in range(2))
    return labels, cls, dist


def accumulate(
    labels: np.ndarray, cls: Tensor, dist: Tensor | None = None, size: int = 7, **fields
) -> MultilabelResult:
    eval_model = EvalModel(
        model=nn.Identity(), preprocessing=PRE, rows=(0, 1, 2, 3), head="avg-logits"
    )
    accumulator = MultilabelAccumulator(replace(eval_model, **fields), NAMES)
    # In an order that is none of the data.
    for rows in torch.split(torch.arange(len(labels)).flip(0), size):
        own = None if dist is None else dist[rows]
        accumulator.append(accumulator.score(cls[rows], own, torch.tensor(labels)[rows], rows))
    return accumulator.compute(1.0)


def test_scores_are_scikit_learns_for_each_head_rule():
    labels, cls, dist = draw()
    result = accumulate(labels, cls, dist)
    probs = {
        "cls": expit(cls),
        "dist": expit(dist),
        "avg-logits": expit((cls + dist) / 2),
        "avg-probs": (expit(cls) + expit(dist)) / 2,
    }
    assert set(result.heads) == set(HEADS)
    for rule, values in probs.items():
        expected = average_precision_score(labels[:, :3], values[:, :3], average="macro")
        assert result.heads[rule] == pytest.approx(100 * expected, abs=1e-10), rule
    assert result.map == result.heads["avg-logits"]
    np.testing.assert_allclose(result.probs, probs["avg-logits"], atol=1e-12, rtol=0)
    micro = average_precision_score(labels, probs["avg-logits"], average="micro")
    assert result.micro_ap == pytest.approx(100 * micro, abs=1e-10)
    loss = nn.functional.binary_cross_entropy(
        torch.tensor(result.probs), torch.tensor(labels).double()
    )
    assert result.loss == pytest.approx(float(loss), abs=1e-12)
    assert result.get_score("map") == result.map
    assert result.get_score("loss") == -result.loss
    both = f1_score(cls >= 0, dist >= 0, average="micro")
    assert result.head_agreement == pytest.approx(100 * both)


def test_f1_is_that_of_the_models_thresholds():
    labels, cls, _ = draw()
    result = accumulate(labels, cls, thresholds=(0.4, 0.5, 0.6, 0.9))
    preds = expit(cls) >= [0.4, 0.5, 0.6, 0.9]
    assert (result.preds == preds).all()
    assert result.thresholds_from == "model"
    for average, score in (("micro", result.micro_f1), ("samples", result.sample_f1)):
        expected = f1_score(labels, preds, average=average, zero_division=1)
        assert score == pytest.approx(100 * expected, abs=1e-10)
    macro = f1_score(labels, preds, average="macro", labels=[0, 1, 2])
    assert result.macro_f1 == pytest.approx(100 * macro, abs=1e-10)
    assert result.exact_match == pytest.approx(100 * (preds == labels).all(1).mean())


def test_without_thresholds_f1_is_cross_fitted():
    labels, cls, _ = draw()
    result = accumulate(labels, cls)
    assert result.thresholds_from == "cross-fitted"
    assert result.macro_f1 == result.fitted.macro_f1
    assert list(result.fitted.thresholds) == list(NAMES)
    assert result.fitted.classes_without_images == ["never"]
    # Of its own images the fit would be at least as good.
    own = f1_score(labels, result.probs >= result.thresholds, average="macro", labels=[0, 1, 2])
    assert result.macro_f1 <= 100 * own


def test_the_result_does_not_depend_on_batches():
    labels, cls, dist = draw()
    expected = accumulate(labels, cls, dist, size=60)
    other = accumulate(labels, cls, dist, size=4)
    assert (other.map, other.macro_f1, other.loss) == (
        expected.map,
        expected.macro_f1,
        expected.loss,
    )
    assert (other.labels == labels).all()


def test_the_temperature_divides_the_logits():
    labels, cls, _ = draw()
    result = accumulate(labels, cls, temperature=2.0)
    np.testing.assert_allclose(result.probs, expit(cls / 2), atol=1e-7)
    assert result.map == accumulate(labels, cls).map


def test_agreement_with_a_teacher_leaves_out_images_without_its_targets():
    labels, cls, _ = draw()
    teacher = torch.from_numpy(labels).to(torch.int8)
    teacher[:10] = -1
    result = accumulate(labels, cls, teacher_preds=teacher)
    expected = f1_score(labels[10:], cls[10:] >= 0, average="micro")
    assert result.teacher_agreement == {"cls": pytest.approx(100 * expected)}


def test_without_any_label_the_map_is_null_and_scores_nothing():
    result = accumulate(np.zeros((3, 4), bool), torch.randn(3, 4))
    assert (result.map, result.micro_ap, result.get_score("map")) == (None, None, 0.0)


def test_logits_that_are_no_numbers_score_too():
    """A run that diverges is validated before it ends."""
    labels, cls, _ = draw()
    result = accumulate(labels, torch.full_like(cls, float("nan")))
    assert 0 <= result.map <= 100


class Brightness(nn.Module):
    """The brighter, the likelier is class 1 of three, and the less class 2; class 0 never."""

    def forward(self, images):
        gray = images.mean(dim=(1, 2, 3))
        return torch.stack([torch.full_like(gray, -9), gray, -gray], 1)


def test_validate_takes_the_kind_of_the_data(reporter):
    images = np.stack([np.full((8, 8), v, np.uint8) for v in (0, 100, 150, 255)])
    labels = np.array([[0, 1], [0, 0], [1, 1], [1, 0]], bool)
    dataset = ArrayDataset(images, labels, ("bright", "dark"), "grays")
    eval_model = EvalModel(model=Brightness(), preprocessing=PRE, rows=(1, 2), head="cls")
    (result,) = validate(
        [eval_model],
        dataset,
        device=choose_device("cpu", "fp32"),
        batch_size=3,
        workers=0,
        reporter=reporter,
    )
    assert isinstance(result, MultilabelResult)
    assert result.average_precisions.tolist() == [1.0, pytest.approx((1 + 2 / 3) / 2)]
    assert result.heads is None
    assert result.head_agreement is None
    assert isinstance(result.logits, HeadLogits)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_images_are_ranked_by_logits_where_probabilities_are_equal(temperature):
    """Sigmoids of 38 and more are 1 in float64."""
    labels, cls, dist = draw()
    cls, dist = 5 * cls + 60, 5 * dist + 60
    result = accumulate(labels, cls, dist, temperature=temperature)
    for rule, logits in {"cls": cls, "dist": dist, "avg-logits": (cls + dist) / 2}.items():
        expected = average_precision_score(labels[:, :3], logits[:, :3])
        assert result.heads[rule] == pytest.approx(100 * expected, abs=1e-10), rule
    # 1 - p is what differs of the mean of two such probabilities.
    expected = average_precision_score(labels[:, :3], -(expit(-cls) + expit(-dist))[:, :3])
    assert result.heads["avg-probs"] == pytest.approx(100 * expected, abs=1e-10)
    micro = average_precision_score(labels, (cls + dist) / 2, average="micro")
    assert result.micro_ap == pytest.approx(100 * micro, abs=1e-10)
    own = (0.5,) * 4
    again = accumulate(labels, cls, dist, temperature=temperature, thresholds=own)
    assert bootstrap_multilabel(again)["map"] == bootstrap_multilabel(result)["map"]
    assert bootstrap_multilabel(result)["map"].lower < result.map


def test_blocks_of_classes_change_nothing(monkeypatch):
    labels, cls, dist = draw()
    whole = accumulate(labels, cls, dist)
    monkeypatch.setattr(multilabel, "BLOCK", 130)  # two classes
    monkeypatch.setattr(multilabel_accumulator, "BLOCK", 130)
    blocks = accumulate(labels, cls, dist)
    assert (blocks.heads, blocks.fitted, blocks.loss, blocks.ece) == (
        whole.heads,
        whole.fitted,
        whole.loss,
        whole.ece,
    )
    assert (blocks.preds == whole.preds).all()


def test_thresholds_that_were_fitted_to_the_images_are_known():
    labels, cls, _ = draw()
    fitted = accumulate(labels, cls)
    assert not fitted.has_seen_images  # cross-fitted
    own = tuple(fitted.fitted.thresholds.values())
    assert accumulate(labels, cls, thresholds=own).has_seen_images
    warm = tuple(scale_thresholds(own, 0.5))  # as a temperature that is stored changes them
    assert accumulate(labels, cls, thresholds=warm, temperature=2.0).has_seen_images
    assert not accumulate(labels, cls, thresholds=(0.5,) * 4).has_seen_images
    other = accumulate(labels[:30], cls[:30], thresholds=own)
    assert not other.has_seen_images

"""The report of several labels an image says what the result has."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

from deitctl.data.readers.digits import ArrayDataset
from deitctl.device import choose_device
from deitctl.evaluation.details import add_label_details, count_co_confusions
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.results import EvalResults
from deitctl.evaluation.subject import EvalSubject
from deitctl.evaluation.validate import validate
from deitctl.events import SilentReporter
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.report.labels_build import build_labels_contents
from deitctl.report.labels_contents import compute_threshold_curves
from deitctl.report.labels_page import render_labels_page

NAMES = ("bright", "dark", "</script><b>never")


class Brightness(nn.Module):
    def forward(self, images):
        gray = images.mean(dim=(1, 2, 3))
        return torch.stack([gray, -gray, torch.full_like(gray, -3)], 1)


@pytest.fixture(scope="module")
def result():
    draw = np.random.default_rng(0)
    values = draw.integers(0, 256, 30)
    images = np.stack([np.full((8, 8), v, np.uint8) for v in values])
    labels = np.stack([values > 100, values < 160, values < 0], 1)
    labels[:4] = ~labels[:4]
    labels[:, 2] = False
    dataset, config = (
        ArrayDataset(images, labels, NAMES, "grays"),
        ModelConfig(architecture="x", num_classes=3, class_names=NAMES, task="multilabel"),
    )
    preprocessing = Preprocessing(img_size=16, crop_pct=1.0)
    eval_model = EvalModel(
        model=Brightness(), preprocessing=preprocessing, rows=(0, 1, 2), head="cls"
    )
    subject = EvalSubject(
        ref="gray",
        protocol="native",
        eval_model=eval_model,
        model_config=config,
        dataset=dataset,
        match=None,
        class_titles=NAMES,
    )
    device = choose_device("cpu", "fp32")
    options = {"device": device, "batch_size": 8, "workers": 0, "reporter": SilentReporter()}
    (scored,) = validate([eval_model], dataset, **options)
    return add_label_details(scored, subject, is_main=True)


def test_every_class_and_the_hardest_images_are_in_the_page(result):
    contents = build_labels_contents(
        EvalResults(
            data="grays", evaluations=[result], comparisons=[], device=choose_device("cpu", "fp32")
        ),
        created="today",
        command="deitctl eval",
        facts=[("data", "grays")],
        facts_of={result.name: []},
        curves=None,
        reporter=SilentReporter(),
    )
    page = render_labels_page(contents)
    assert "<b>never" not in page  # a name is never markup
    text = re.search(r'id="contents">(.*?)</script>', page, re.DOTALL)[1]
    (model,) = json.loads(text)["models"]
    assert [row[0] for row in model["classes"]] == list(NAMES)
    assert model["classes"][2][2] is None  # no image has the class
    assert sorted(model["thresholds"]) == ["0", "1"]
    losses = [image["loss"] for image in model["images"]]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(result.losses.max(), rel=1e-5)
    assert f"{result.map:.2f}" in page


def test_curves_are_scikit_learns_f1_at_each_threshold(result):
    f1, _, recall = compute_threshold_curves(result, 0, points=11)
    for n, threshold in enumerate(np.linspace(0, 1, 11)):
        preds = result.probs[:, 0] >= threshold
        expected = f1_score(result.labels[:, 0], preds, zero_division=0)
        assert f1[n] == pytest.approx(expected, abs=1e-12)
    assert recall[0] == 1.0


def test_confusions_pair_a_missed_class_with_a_wrong_one():
    labels = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], bool)
    preds = np.array([[0, 1, 0], [0, 1, 1], [0, 1, 0], [1, 1, 1]], bool)
    assert count_co_confusions(labels, preds) == [(0, 1, 2), (0, 2, 1)]

"""Thresholds and temperatures are kept for each head rule, and belong together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.multilabel import count_classes
from deitctl.evaluation.multilabel_accumulator import MultilabelAccumulator
from deitctl.evaluation.multilabel_result import MultilabelResult
from deitctl.evaluation.thresholds import (
    fit_by_head,
    save_thresholds,
    scale_thresholds,
    store_temperatures,
    store_thresholds,
)
from deitctl.models.checkpoint_io import CONFIG, load_model_config
from deitctl.models.heads import fuse_heads, to_probs
from deitctl.models.model_config import HEADS, ModelConfig, Preprocessing, to_timm_config
from deitctl.models.tasks import choose_labels

TEMPERATURES = {"cls": 0.4, "dist": 2.5, "avg-logits": 1.7, "avg-probs": 0.8}


@pytest.fixture(scope="module")
def result() -> MultilabelResult:
    """A distilled model whose heads have logits of other scales, under the rule `dist`."""
    draw = np.random.default_rng(0)
    labels = draw.random((80, 3)) < [0.5, 0.3, 0.1]
    cls, dist = (
        torch.tensor(scale * (draw.normal(size=(80, 3)) + 2 * labels - 3)).float()
        for scale in (1, 4)
    )
    eval_model = EvalModel(
        model=nn.Identity(),
        preprocessing=Preprocessing(img_size=16),
        rows=(0, 1, 2),
        head="dist",
    )
    accumulator = MultilabelAccumulator(eval_model, ("a", "b", "c"))
    accumulator.append(accumulator.score(cls, dist, torch.tensor(labels), torch.arange(80)))
    return accumulator.compute(1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model's config alone."""
    config = ModelConfig(
        architecture="deit_tiny_distilled_patch16_224",
        num_classes=4,
        class_names=("b", "x", "c", "a"),
        task="multilabel",
        head="avg-logits",
    )
    layers = {"classifier": ("head", "head_dist"), "first_conv": "proj", "fixed_input_size": True}
    (tmp_path / CONFIG).write_text(json.dumps(to_timm_config(config, **layers)))
    return tmp_path


def of_model(result: MultilabelResult, folder: Path, **changes) -> MultilabelResult:
    """Let a result be of the model in a folder, whose classes are in another order."""
    subject = SimpleNamespace(match=SimpleNamespace(rows=(3, 0, 2)))
    return replace(result, model=str(folder), subject=subject, **changes)


def predict(result: MultilabelResult, folder: Path, rule: str) -> np.ndarray:
    """Return the labels that `deitctl predict --head RULE` gives the result's images."""
    config = load_model_config(folder)
    logits = fuse_heads(result.logits, rule, config.task) / config.temperature(rule)
    thresholds = np.array(config.list_thresholds(rule))[[3, 0, 2]]
    return choose_labels(to_probs(logits, config.task).numpy(), thresholds)


def test_each_head_rule_gets_the_thresholds_of_its_own_probabilities(result, folder, reporter):
    save_thresholds(of_model(result, folder), reporter)
    stored = load_model_config(folder).thresholds
    assert set(stored) == set(HEADS)
    assert len(set(stored.values())) == len(HEADS)
    assert {values[1] for values in stored.values()} == {0.5}  # a class that the data lacks
    assert [stored["dist"][row] for row in (3, 0, 2)] == list(result.fitted.thresholds.values())
    for rule in HEADS:
        f1 = count_classes(result.labels, predict(result, folder, rule)).macro_f1
        at_half = count_classes(
            result.labels, fuse_heads(result.logits, rule, "multilabel").numpy() >= 0
        )
        assert f1 > at_half.macro_f1 + 0.1, rule


@pytest.mark.parametrize("head", HEADS)
def test_a_stored_temperature_changes_no_label_of_any_head_rule(result, folder, head, reporter):
    save_thresholds(of_model(result, folder, head=head), reporter)
    before = {rule: predict(result, folder, rule) for rule in HEADS}
    for temperatures in (TEMPERATURES, {"dist": 0.3}, {}):  # rules that none fits have 1 again
        store_temperatures(folder, temperatures)
        assert load_model_config(folder).temperatures == temperatures
        for rule in HEADS:
            np.testing.assert_array_equal(predict(result, folder, rule), before[rule], rule)


def test_thresholds_are_fitted_to_the_temperatures_that_are_kept(result, folder, reporter):
    plain = fit_by_head(result, {})
    store_temperatures(folder, TEMPERATURES)
    save_thresholds(of_model(result, folder), reporter)
    stored = load_model_config(folder).thresholds
    assert [stored["cls"][row] for row in (3, 0, 2)] == fit_by_head(result, TEMPERATURES)["cls"]
    for rule in HEADS:
        probs = to_probs(fuse_heads(result.logits, rule, "multilabel"), "multilabel").numpy()
        expected = choose_labels(probs, plain[rule])
        np.testing.assert_array_equal(predict(result, folder, rule), expected, rule)


def test_a_model_of_one_head_has_thresholds_of_its_rule_alone(result):
    one = replace(result, head="cls", logits=result.logits._replace(dist=None))
    assert fit_by_head(one, {}) == {"cls": fit_by_head(result, {})["cls"]}


def test_stored_thresholds_leave_those_of_other_rules(folder):
    store_thresholds(folder, {"cls": [0.1] * 4, "dist": [0.2] * 4})
    store_thresholds(folder, {"dist": [0.3] * 4})
    assert load_model_config(folder).thresholds == {"cls": (0.1,) * 4, "dist": (0.3,) * 4}


def test_a_scaled_threshold_is_zero_only_where_it_was():
    """Every image reaches 0, also in the fp32 of an export."""
    scaled = np.array(scale_thresholds([0.0, 1e-9, 0.5, 1.0], 1000), np.float32)
    assert scaled[0] == 0
    assert 0 < scaled[1] < 1e-37
    assert scaled[2:].tolist() == [0.5, 1]

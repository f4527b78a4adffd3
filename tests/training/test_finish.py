"""The end of a run keeps thresholds that go with what is kept beside them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.multilabel_accumulator import MultilabelAccumulator
from deitctl.evaluation.thresholds import store_temperatures
from deitctl.models.checkpoint_io import CONFIG, load_model_config
from deitctl.models.heads import fuse_heads, to_probs
from deitctl.models.model_config import HEADS, ModelConfig, Preprocessing, to_timm_config
from deitctl.models.tasks import choose_labels
from deitctl.training.finish import keep_thresholds


def test_thresholds_of_a_resumed_run_go_with_the_temperatures_that_it_keeps(tmp_path, reporter):
    """A temperature may have been stored between the epochs, and the best weights stay."""
    config = ModelConfig(
        architecture="deit_tiny_distilled_patch16_224",
        num_classes=2,
        class_names=("a", "b"),
        task="multilabel",
        head="avg-logits",
    )
    layers = {"classifier": ("head", "head_dist"), "first_conv": "proj", "fixed_input_size": True}
    (tmp_path / CONFIG).write_text(json.dumps(to_timm_config(config, **layers)))
    draw = np.random.default_rng(1)
    labels = draw.random((60, 2)) < [0.5, 0.2]
    heads = [torch.tensor(draw.normal(size=(60, 2)) + 3 * labels - 4).float() for _ in range(2)]
    eval_model = EvalModel(
        model=nn.Identity(),
        preprocessing=Preprocessing(img_size=16),
        rows=(0, 1),
        head="avg-logits",
    )
    accumulator = MultilabelAccumulator(eval_model, ("a", "b"))
    accumulator.append(accumulator.score(*heads, torch.tensor(labels), torch.arange(60)))
    evaluation = accumulator.compute(1.0)
    trainer = SimpleNamespace(
        run=SimpleNamespace(root=tmp_path), world=SimpleNamespace(is_main=True), reporter=reporter
    )

    def predict(rule: str) -> np.ndarray:
        stored = load_model_config(tmp_path)
        logits = fuse_heads(evaluation.logits, rule, stored.task) / stored.temperature(rule)
        return choose_labels(to_probs(logits, stored.task).numpy(), stored.list_thresholds(rule))

    assert keep_thresholds(trainer, evaluation) == evaluation.fitted.thresholds
    before = {rule: predict(rule) for rule in HEADS}
    store_temperatures(tmp_path, dict.fromkeys(HEADS, 0.3))
    kept = keep_thresholds(trainer, evaluation)
    assert tuple(kept.values()) == load_model_config(tmp_path).thresholds["avg-logits"]
    assert max(kept.values()) < min(evaluation.fitted.thresholds.values())
    for rule in HEADS:
        np.testing.assert_array_equal(predict(rule), before[rule], rule)
    assert "The thresholds of 2 classes (0.0" in reporter.notes[-1]

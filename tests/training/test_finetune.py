"""From weights that know something to other classes, other resolutions, with a teacher, and with only a part learning."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.evaluation.result import Evaluation
from deitctl.events import SilentReporter
from deitctl.models.checkpoint_io import load_tensors
from deitctl.models.factory import load_model
from deitctl.training.launch import run_training
from deitctl.training.trainer import Trainer

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]


def with_recipe(config: TrainConfig, **changes: object) -> TrainConfig:
    return replace(config, recipe=replace(config.recipe, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("start", ["deit_tiny", "deit_tiny_distilled"])
@pytest.mark.parametrize("size", [48, 16])
def test_distilled_fine_tuning_changes_resolution_with_the_teacher_at_its_own(
    start: str, size: int, little_config: Make, distilled: Make, little: Pair
) -> None:
    first = run_training(
        with_recipe(little_config("first", model=start), epochs=1), datasets=little
    ).run
    config = with_recipe(distilled("second", views=1), epochs=1, img_size=size)
    result = run_training(replace(config, weights=str(first)), datasets=little)
    loaded = load_model(str(result.run), reporter=SilentReporter())
    assert loaded.model_config.preprocessing.img_size == size
    assert result.teacher is not None
    assert result.teacher.preprocessing["img_size"] == 32
    assert set(result.shipped.heads or ()) == {"cls", "dist", "avg-logits", "avg-probs"}


def test_the_words_of_a_teacher_serve_students_of_every_resolution(
    distilled: Make, little: Pair, reporter: SilentReporter
) -> None:
    run_training(with_recipe(distilled("a"), img_size=32, epochs=4), datasets=little)
    run_training(
        with_recipe(distilled("b"), img_size=48, epochs=1), datasets=little, reporter=reporter
    )
    assert any("checked earlier" in note for note in reporter.notes)  # type: ignore[attr-defined]


def test_a_linear_probe_moves_the_head_alone(little_config: Make, little: Pair) -> None:
    first = run_training(with_recipe(little_config("first"), epochs=1), datasets=little).run
    config = with_recipe(little_config("probe"), epochs=2, freeze="backbone", ema_decay=0.0)
    second = run_training(replace(config, weights=str(first)), datasets=little).run
    before, after = (
        load_tensors(first / "model.safetensors"),
        load_tensors(second / "model.safetensors"),
    )
    assert {n for n in after if not torch.equal(before[n], after[n])} == {
        "head.weight",
        "head.bias",
    }


def test_layer_decay_slows_the_lower_layers(little_config: Make, little: Pair) -> None:
    config = with_recipe(little_config("run"), epochs=1, ema_decay=0.0)
    config = with_recipe(
        config, optim=replace(config.recipe.optim, layer_decay=0.5, weight_decay=0.0)
    )
    still = with_recipe(
        config, optim=replace(config.recipe.optim, lr=1e-12, min_lr=0.0, warmup_lr=0.0)
    )
    start = load_tensors(
        run_training(replace(still, output_dir=f"{config.output_dir}-start"), datasets=little).run
        / "model.safetensors"
    )
    end = load_tensors(run_training(config, datasets=little).run / "model.safetensors")
    moved = [
        float((end[f"blocks.{i}.mlp.fc1.weight"] - start[f"blocks.{i}.mlp.fc1.weight"]).norm())
        for i in (0, 6, 11)
    ]
    assert 8 * moved[0] < moved[1] < moved[2] / 8


@pytest.mark.parametrize("better", ["raw", "average"])
def test_validation_chooses_between_raw_and_averaged_weights(
    better: str, little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever validates better is evaluated, shipped and recorded."""
    evaluate = Trainer._evaluate

    def biased(self: Trainer, kind: str, *rest: object) -> Evaluation:
        score = evaluate(self, kind, *rest)  # type: ignore[arg-type]
        return replace(score, top1=90.0 if kind == better else 10.0)

    monkeypatch.setattr(Trainer, "_evaluate", biased)
    config = with_recipe(
        little_config("run"), epochs=1, batch_size=4
    )  # 15 steps: an average of more than one
    run = run_training(config, datasets=little).run
    shipped = load_tensors(run / "model.safetensors")
    name = "model" if better == "raw" else "ema"
    kept, other = (
        load_tensors(run / "state" / f"{n}.safetensors")
        for n in (name, {"model": "ema", "ema": "model"}[name])
    )
    assert all(torch.equal(shipped[k], kept[k]) for k in kept)
    assert not all(torch.equal(shipped[k], other[k]) for k in kept)
    epoch = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert epoch["weights"] == better
    assert epoch["top1_by_weights"] == {
        "raw": epoch["top1_by_weights"]["raw"],
        "average": epoch["top1_by_weights"]["average"],
    }
    assert json.loads((run / "result.json").read_text())["best"]["weights"] == better


def test_without_an_average_the_raw_weights_are_shipped(little_config: Make, little: Pair) -> None:
    result = run_training(
        with_recipe(little_config("run"), epochs=1, ema_decay=0.0), datasets=little
    )
    assert result.best_weights == "raw"

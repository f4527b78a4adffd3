"""Fine-tuning: other classes, other resolutions, with a teacher, with a frozen backbone, with layer decay."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.evaluation.result import EvalResult
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
    assert result.teacher.preprocessing.img_size == 32
    assert set(result.evaluation.heads or ()) == {"cls", "dist", "avg-logits", "avg-probs"}


def test_the_targets_of_a_teacher_serve_students_of_every_resolution(
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
    deep = little_config("run", model_args={})
    config = with_recipe(deep, epochs=1, ema_decay=0.0)
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


@pytest.mark.parametrize("better", ["model", "ema"])
def test_the_weights_that_validate_better_are_saved(
    better: str, little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether those of the model or their EMA; the log and the result say which."""
    validate = Trainer.validate

    def biased(self: Trainer, label: str) -> dict[str, EvalResult]:
        metrics = validate(self, label)
        return {k: replace(m, top1=90.0 if k == better else 10.0) for k, m in metrics.items()}

    monkeypatch.setattr(Trainer, "validate", biased)
    # 15 steps, so that the EMA is of more than the last
    config = with_recipe(little_config("run"), epochs=1, batch_size=4)
    run = run_training(config, datasets=little).run
    saved = load_tensors(run / "model.safetensors")
    states = {k: load_tensors(run / "checkpoint" / f"{k}.safetensors") for k in ("model", "ema")}
    other = states["ema" if better == "model" else "model"]
    assert all(torch.equal(saved[k], states[better][k]) for k in saved)
    assert not all(torch.equal(saved[k], other[k]) for k in saved)
    epoch = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert epoch["weights"] == better
    expected = (90.0, 10.0) if better == "model" else (10.0, 90.0)
    assert (epoch["top1_model"], epoch["top1_ema"]) == expected
    assert json.loads((run / "result.json").read_text())["best"]["weights"] == better


def test_without_an_ema_the_models_weights_are_saved(little_config: Make, little: Pair) -> None:
    config = with_recipe(little_config("run"), epochs=1, ema_decay=0.0)
    assert run_training(config, datasets=little).best.weights == "model"

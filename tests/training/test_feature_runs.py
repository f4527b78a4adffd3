"""A student of features trains alike from the cache, live, and after a kill; its projector is no part of the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deitctl.config import FeatureConfig, ProgressiveResize, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.errors import Interrupted, Signalled
from deitctl.events import SilentReporter
from deitctl.models.factory import load_model
from deitctl.models.vit import VisionTransformer
from deitctl.training.launch import resume, run_training
from deitctl.training.projector import OrthogonalProjection, build_projector
from deitctl.training.trainer import Trainer

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
FILES = ("model.safetensors", "ema.safetensors", "projector.safetensors", "optimizer.safetensors")


def features(make: Make, output: str, loss: str, mode: str, **changes: object) -> TrainConfig:
    alpha = 0.0 if mode == "features" else 0.5
    group = FeatureConfig(loss=loss, weight=0.7)  # type: ignore[arg-type]
    config = make(output, mode=mode, alpha=alpha, dist_token=bool(alpha), features=group, **changes)
    recipe = replace(config.recipe, epochs=2, ema_decay=0.9)
    optim = replace(recipe.optim, clip_grad=0.5)
    return replace(config, recipe=replace(recipe, optim=optim))


def read_state(run: Path) -> dict[str, bytes]:
    return {name: (run / "checkpoint" / name).read_bytes() for name in FILES}


@pytest.mark.parametrize(
    ("mode", "loss"),
    [("features", "vkd"), ("features+hard", "cosine"), ("features+soft", "mse")],
)
def test_cached_live_and_resumed_runs_end_with_the_same_bytes(
    mode: str, loss: str, distilled: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = run_training(
        features(distilled, "live", loss, mode, teacher_cache="off"), datasets=little
    ).run
    cached = features(distilled, "cached", loss, mode)
    with monkeypatch.context() as patch:

        def stop(self: Trainer) -> None:
            if self.state.progress.step == 6:  # in the middle of the second epoch
                raise Signalled(15)

        patch.setattr(Trainer, "handle_signals", lambda self, stats: stop(self))
        with pytest.raises(Interrupted):
            run_training(cached, datasets=little)
    resumed = resume(Path(cached.output_dir), datasets=little).run
    assert read_state(live) == read_state(resumed)
    records = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    terms = {"loss", "task_loss", "feature_loss", *(["kd_loss"] if "+" in mode else [])}
    assert [r["train"].keys() for r in records if r["kind"] == "epoch"] == [terms, terms]
    model = load_model(str(resumed), reporter=SilentReporter()).model
    assert isinstance(model, VisionTransformer)
    assert (model.head_dist is None) == (mode == "features")
    assert not any("projector" in name for name in load_file(resumed / "model.safetensors"))


def test_a_teacher_of_other_classes_teaches_features_as_it_is(
    distilled: Make, imagenet_teacher: Callable[..., Path], little: Pair
) -> None:
    """Also where early images are smaller, blocks are frozen until the last epoch, and batches come in parts; the
    projection is orthogonal all the same."""
    config = features(distilled, "run", "vkd", "features", teacher=str(imagenet_teacher()))
    resize = ProgressiveResize(scale=0.5, fraction=0.5)
    recipe = replace(config.recipe, progressive_resize=resize, freeze_blocks=1, thaw_epoch=2)
    result = run_training(replace(config, recipe=recipe, micro_batch_size=6), datasets=little)
    teacher = json.loads((result.run / "teacher.json").read_text())
    assert (teacher["finetuned"], teacher["class_match"], teacher["top1"]) == ("no", "none", None)
    saved = load_file(result.run / "checkpoint" / "projector.safetensors")
    (reflections,) = saved.values()
    projection = OrthogonalProjection(192, 96)
    start = build_projector("vkd", 192, [96], config.seed)
    assert (reflections - start[0].reflections).abs().max() > 1e-4
    projection.load_state_dict({"reflections": reflections})
    weight = projection.compute_weight().detach().double()
    assert (weight @ weight.T - torch.eye(96)).abs().max() < 1e-6

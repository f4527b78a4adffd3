"""A student of features trains alike from the cache, live, and after a kill; its projector is no part of the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deitctl.config import FeatureConfig, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.errors import Interrupted, Signalled
from deitctl.models.factory import load_model
from deitctl.training.launch import resume, run_training
from deitctl.training.projector import OrthogonalProjection
from deitctl.training.trainer import Trainer

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
FILES = ("model.safetensors", "ema.safetensors", "projector.safetensors", "optimizer.safetensors")


def features(make: Make, output: str, loss: str, mode: str, **changes: object) -> TrainConfig:
    alpha = 0.0 if mode == "features" else 0.5
    group = FeatureConfig(loss=loss, weight=0.7)  # type: ignore[arg-type]
    config = make(
        output, mode=mode, alpha=alpha, dist_token=bool(alpha), features=group, **changes
    )
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

"""A real little data set and a configuration that trains on it in seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deitctl.checkpoint import save_model
from deitctl.config import DistillConfig, TrainConfig
from deitctl.data.sources import Source, subset
from deitctl.events import SilentReporter
from deitctl.models import timm_models
from deitctl.models.build import build_model
from deitctl.models.layers import layer_names, shipping_card
from deitctl.recipes import DIGITS
from deitctl.workflows.train import run_training


@pytest.fixture(scope="session")
def little(digit_sources: tuple[Source, Source]) -> tuple[Source, Source]:
    """60 training and 30 validation digits of all ten classes."""
    train, val = digit_sources
    pick = [np.concatenate([np.flatnonzero(s.labels == d)[:n] for d in range(10)]) for s, n in ((train, 6), (val, 3))]
    return subset(train, pick[0]), subset(val, pick[1])


@pytest.fixture
def little_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainConfig]:
    """Make a configuration of the digits recipe at 32 pixels, with every random part on; runs go below `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def make(output: str, **changes: object) -> TrainConfig:
        augment = replace(
            DIGITS.augment,
            rand_augment="rand-m9-mstd0.5-inc1",
            erase_prob=0.5,
            mixup=0.8,
            cutmix=1.0,
            repeats=2,
            on_top=(6.0, 0.06, 0.05),
        )
        recipe = replace(DIGITS, img_size=32, epochs=3, batch_size=16, drop_path_rate=0.2, augment=augment)
        config = TrainConfig(
            model="deit_tiny", data="digits", recipe=recipe, precision="fp32", workers=0, output=str(tmp_path / output)
        )
        return replace(config, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def taught_once(tmp_path_factory: pytest.TempPathFactory, little: tuple[Source, Source]) -> Path:
    """A convnet that has learnt a little of the digits: a run folder that no test may change."""
    root = tmp_path_factory.mktemp("teacher") / "teacher"
    recipe = replace(DIGITS, img_size=32, epochs=8, batch_size=16)
    config = TrainConfig(
        model="test_resnet", data="digits", recipe=recipe, precision="fp32", workers=0, output=str(root)
    )
    return run_training(config, sources=little).run


@pytest.fixture
def digits_teacher(taught_once: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    (tmp_path / "teacher").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(taught_once / name, tmp_path / "teacher" / name)
    return tmp_path / "teacher"


@pytest.fixture
def imagenet_teacher(tmp_path: Path) -> Callable[..., Path]:
    """Make a timm folder of an untrained classifier of ImageNet's thousand classes."""

    def make(architecture: str = "test_resnet", seed: int = 0) -> Path:
        torch.manual_seed(seed)
        model = timm_models.create(architecture, num_classes=1000, img_size=32)
        card = timm_models.card_of(model, architecture, 1000).at_size(32)
        folder = tmp_path / f"imagenet-{architecture}-{seed}"
        save_model(folder, model.state_dict(), card, layer_names(model))
        return folder

    return make


@pytest.fixture
def distilled(little_config: Callable[..., TrainConfig], digits_teacher: Path) -> Callable[..., TrainConfig]:
    """Make a configuration of a student that listens to `digits_teacher` about 2 views; `distill` settings by name."""

    def make(output: str, **changes: object) -> TrainConfig:
        values: dict[str, object] = {
            "teacher": str(digits_teacher), "mode": "hard", "alpha": 0.5, "tau": 3.0, "reduction": "batchmean",
            "token": True, "teacher_sees": "view", "views": 2, "topk": 4, "force": True,
        }  # fmt: skip
        return little_config(output, distill=DistillConfig(**{**values, **changes}))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small distilled digits classifier in a folder, which no test may change."""
    torch.manual_seed(0)
    loaded = build_model(
        "deit_tiny", class_names=[str(d) for d in range(10)], img_size=32, drop_path_rate=0.0, pretrained=False,
        weights="", distilled=True, reporter=SilentReporter(),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model") / "seven"
    card = shipping_card(loaded.model, loaded.card)
    save_model(folder, loaded.model.state_dict(), card, layer_names(loaded.model))
    return folder

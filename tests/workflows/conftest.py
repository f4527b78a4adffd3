"""A real little data set and a configuration that trains on it in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deitctl.config import TrainConfig
from deitctl.data.sources import Source, subset
from deitctl.recipes import DIGITS


@pytest.fixture
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
            DIGITS.augment, rand_augment="rand-m9-mstd0.5-inc1", erase_prob=0.5, mixup=0.8, cutmix=1.0, repeats=2
        )
        recipe = replace(DIGITS, img_size=32, epochs=3, batch_size=16, drop_path_rate=0.2, augment=augment)
        config = TrainConfig(
            model="deit_tiny", data="digits", recipe=recipe, precision="fp32", workers=0, output=str(tmp_path / output)
        )
        return replace(config, **changes)  # type: ignore[arg-type]

    return make

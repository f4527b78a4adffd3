"""Need and free space are compared before a run, by file system; the need is that of a real run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from deitctl.config import Recipe, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.errors import WeightsNotFound
from deitctl.events import SilentReporter
from deitctl.models import weights
from deitctl.recipes import DIGITS
from deitctl.training import disk_space
from deitctl.training.build import build_student
from deitctl.training.disk_space import (
    MIB,
    count_run_bytes,
    measure_folder,
    plan_disks,
    warn_of_small_shared_memory,
)
from deitctl.training.launch import run_training
from deitctl.training.optim import build_optimizer
from deitctl.training.plan import plan_training
from deitctl.training.state import Progress, TrainState
from tests.conftest import Recorder

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]


def state_of(model: nn.Module, recipe: Recipe) -> TrainState:
    scaler = torch.amp.GradScaler(enabled=False)
    return TrainState(model, build_optimizer(model, recipe.optim), scaler, None, Progress())


def test_bytes_of_a_run_by_hand() -> None:
    """Ten numbers of four bytes: weights, and a checkpoint of weights, two moments and the average; and
    two counts of steps."""
    model = nn.Linear(4, 2)
    with_ema, without = replace(DIGITS, ema_decay=0.9), replace(DIGITS, ema_decay=0.0)
    assert count_run_bytes(state_of(model, with_ema), with_ema) == 2 * (40 + 4 * 40 + 8)
    assert count_run_bytes(state_of(model, without), without) == 2 * (40 + 3 * 40 + 8)
    lion = replace(without, optim=replace(without.optim, opt="lion"))  # one moment, no count
    assert count_run_bytes(state_of(model, lion), lion) == 2 * (40 + 2 * 40)
    model.weight.requires_grad_(False)  # eight of the ten have no moments
    frozen = state_of(model, without)
    assert count_run_bytes(frozen, without) == 2 * (40 + 40 + 2 * 8 + 4)
    frozen.frozen = ("weight",)
    thawing = replace(without, freeze_blocks=1, thaw_epoch=2)
    assert count_run_bytes(frozen, thawing) == 2 * (40 + 3 * 40 + 8)


def test_the_bytes_are_those_of_a_real_run(little_config: Make, little: Pair) -> None:
    config = little_config("run")
    config = replace(config, recipe=replace(config.recipe, epochs=1))
    run = run_training(config, datasets=little).run
    student = build_student(config, little[0], SilentReporter())
    needed = count_run_bytes(state_of(student.model, config.recipe), config.recipe)
    # names and the record of progress are in the files too
    assert 2 * measure_folder(run) == pytest.approx(needed, rel=0.01)


def test_folders_of_one_file_system_are_added(tmp_path: Path) -> None:
    (need,) = plan_disks(tmp_path / "runs" / "x", 3 * 2**20, tmp_path / "cache", 2**20)
    assert (need.folder, need.needed_mib) == (str(tmp_path / "runs" / "x"), 4.0)
    assert need.free_mib == pytest.approx(shutil.disk_usage(tmp_path).free / 2**20, rel=0.05)
    assert need.is_enough


def test_a_disk_that_is_too_small_is_warned_of_in_the_plan_and_before_the_start(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch, reporter
) -> None:
    config = little_config("run")
    config = replace(config, recipe=replace(config.recipe, epochs=1))
    small = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=5 * 2**20))
    monkeypatch.setattr(disk_space, "shutil", small)
    planned = plan_training(config, datasets=little, reporter=reporter)
    (disk,) = planned.disks
    assert (disk.free_mib, disk.is_enough) == (5.0, False)
    assert disk.needed_mib == pytest.approx(10 * 4 * planned.num_params / 2**20, rel=0.01)
    warning = f"{config.output_dir} has 5 MiB free, and the run needs {disk.needed_mib:,.0f} MiB"
    assert [text.startswith(warning) for text in reporter.warnings] == [True]
    run_training(config, datasets=little, reporter=reporter)
    assert [text.startswith(warning) for text in reporter.warnings] == [True, True]


def test_a_plan_has_the_expected_time_and_whether_its_weights_are_here(
    little_config: Make, little: Pair, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = little_config("run", model_args={})
    planned = plan_training(config, datasets=little)
    assert planned.expected_seconds is not None
    assert 0 < planned.expected_seconds < 1000
    assert planned.is_local is None  # random weights
    published = replace(config, recipe=replace(config.recipe, pretrained=True))
    with pytest.raises(WeightsNotFound, match="not on this machine"):  # as the run would, offline
        plan_training(published, datasets=little)
    for name in ("require_hub", "require_published"):  # the hub has them
        monkeypatch.setattr(weights, name, lambda *_: None)
    assert plan_training(published, datasets=little).is_local is False
    assert plan_training(replace(config, model=str(saved)), datasets=little).is_local is True


@pytest.mark.parametrize(
    ("kind", "processes", "free", "warned"),
    [
        ("cuda", "8", 64 * MIB, True),  # what Docker gives a container
        ("cuda", "8", 1024 * MIB, False),
        ("cuda", "1", 64 * MIB, False),
        ("cpu", "8", 64 * MIB, False),
    ],
)
def test_gpus_that_exchange_over_little_shared_memory_are_warned_of(
    kind: str,
    processes: str,
    free: int,
    warned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    device: Any = SimpleNamespace(torch_device=torch.device(kind))
    recorder = Recorder()
    environ = {"LOCAL_WORLD_SIZE": processes}
    warn_of_small_shared_memory(device, recorder, environ, tmp_path)
    assert ["--shm-size" in line for line in recorder.warnings] == [True] * warned

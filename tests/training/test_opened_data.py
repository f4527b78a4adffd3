"""A run that was written before its data was opened is settled when it is: order and commits, as any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.readers import hub
from deitctl.distributed import SINGLE_PROCESS
from deitctl.training.extensions import NO_EXTENSIONS
from deitctl.training.opened_data import open_run_data, store_settled
from deitctl.training.run_dir import Run
from tests.data.block_images import make_block_images

Make = Callable[..., TrainConfig]
HUB = "hf://datasets/ann/a"
COMMIT = f"{HUB}@{'1' * 40}"


@pytest.fixture
def blocks() -> tuple[ImageDataset, ImageDataset]:
    labels = [n // 20 for n in range(80)]
    train, val = (make_block_images(labels, block_size=4, num_cached=8) for _ in range(2))
    return train, val


def test_a_waiting_run_gets_the_order_and_the_commit_of_its_data(
    little_config: Make, blocks, reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_opened", {HUB: COMMIT})
    monkeypatch.setattr("deitctl.training.opened_data.require_same_images", lambda *_: None)
    waiting = replace(little_config("run"), data=HUB)
    run = Run.create(Path(waiting.output_dir), waiting)
    _, written = Run.open(run.root)
    assert (written.data, written.data_order) == (HUB, "auto")
    here = replace(written, workers=1)  # a machine's setting stays as it was written
    config, _ = open_run_data(here, blocks, reporter, SINGLE_PROCESS, NO_EXTENSIONS, resume=True)
    assert (config.data, config.data_order, config.window) == (COMMIT, "window", 6)
    store_settled(run, config)
    settled = Run.open(run.root)[1]
    assert (settled.data, settled.data_order, settled.window) == (COMMIT, "window", 6)
    assert settled.workers == written.workers
    elsewhere = tuple(replace(dataset, num_cached=100) for dataset in blocks)
    again, _ = open_run_data(
        settled, elsewhere, reporter, SINGLE_PROCESS, NO_EXTENSIONS, resume=True
    )
    assert (again.data_order, again.window) == ("window", 6)


def test_a_run_that_has_a_checkpoint_keeps_the_order_that_it_has(
    little_config: Make, blocks, reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = little_config("run")
    Run.create(Path(config.output_dir), config)
    monkeypatch.setattr(Run, "saved_position", lambda _: (1, 3))
    opened, _ = open_run_data(config, blocks, reporter, SINGLE_PROCESS, NO_EXTENSIONS, resume=True)
    assert (opened.data_order, opened.window) == ("auto", 0)

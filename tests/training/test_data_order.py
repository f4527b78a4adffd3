"""Images that are read by blocks are read in windows of them, which a run keeps wherever it goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.errors import ConfigError, DataError, Interrupted
from deitctl.settings import read_toml
from deitctl.training import plan
from deitctl.training.configure import check
from deitctl.training.data_order import make_windows, note_order, settle_order
from deitctl.training.earlier_runs import find_unfinished
from deitctl.training.launch import resume, run_training
from deitctl.training.run_dir import WEIGHTS, Run
from deitctl.training.trainer import Trainer
from tests.data.block_images import BlockImages, make_block_images

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
SORTED = [n // 60 for n in range(1200)]
"""Labels of 20 classes, one after the other."""
SHUFFLED = np.random.default_rng(0).permutation(SORTED).tolist()


@pytest.fixture
def config(little_config: Make) -> TrainConfig:
    return replace(little_config("x"), recipe=replace(little_config("x").recipe, batch_size=64))


def test_images_that_are_read_one_by_one_have_a_full_order_and_no_line(config, little, reporter):
    settled = settle_order(config, little[0])
    assert (settled.data_order, settled.window) == ("full", 0)
    assert note_order(settled, little[0], reporter) is None
    assert not [*reporter.notes, *reporter.warnings]
    for named in ({"data_order": "window"}, {"window": 8}):
        with pytest.raises(ConfigError, match="are read one by one"):
            settle_order(replace(config, **named), little[0])
    with pytest.raises(ConfigError, match="each is a request to its store, or in a cache"):
        settle_order(replace(config, data="s3://bucket/wds", window=8), little[0])


@pytest.mark.parametrize(
    ("num_cached", "named", "order", "window"),
    [
        (60, {}, "full", 0),  # all 60 blocks are at hand
        (59, {}, "window", 44),  # three quarters of them
        (4, {}, "window", 3),
        (1, {}, "window", 1),
        (4, {"window": 7}, "window", 7),
        (60, {"window": 7}, "window", 7),
        (60, {"data_order": "window"}, "window", 45),
        (4, {"data_order": "full"}, "full", 0),
    ],
)
def test_the_order_is_by_what_the_cache_holds_unless_it_is_named(
    config, num_cached, named, order, window
):
    images = make_block_images(SHUFFLED, block_size=20, num_cached=num_cached)
    settled = settle_order(replace(config, **named), images)
    assert (settled.data_order, settled.window) == (order, window)
    assert settle_order(settled, replace(images, num_cached=2)) == settled  # on another machine


def test_a_window_of_large_blocks_is_as_wide_as_mixing_needs(config):
    images = make_block_images([0, 1] * 400, block_size=2, num_cached=300)
    assert settle_order(config, images).window == 225  # 65,536 images would be all blocks
    blocks = replace(images, block_size=1)
    object.__setattr__(blocks, "labels", np.zeros(200_000, np.int64))
    blocks = replace(blocks, block_size=1500, num_cached=100)
    assert settle_order(config, blocks).window == 64


def test_images_without_labels_in_blocks_of_their_own_share_the_cache(config):
    images = make_block_images([0, 1] * 400, block_size=10, num_cached=16)
    is_unlabeled = np.arange(800) >= 400
    apart = replace(images, labels=np.where(is_unlabeled, -1, images.labels))
    mixed = replace(images, labels=np.where(np.arange(800) % 3 > 0, -1, images.labels))
    windows = [settle_order(config, data).window for data in (images, apart, mixed)]
    assert windows == [12, 6, 12]


def test_a_window_beside_a_full_order_is_refused(config):
    with pytest.raises(ConfigError, match="--window 4 is of window order"):
        check(replace(config, window=4, data_order="full"))


def test_shuffled_blocks_are_noted_in_a_line(config, reporter):
    images = make_block_images(SHUFFLED, block_size=20, num_cached=16)
    plan = note_order(settle_order(config, images), images, reporter)
    assert not reporter.warnings
    assert reporter.notes == [
        "digits is read by windows of 12 of 60 blocks: a batch has 17 classes, 17 in a random order "
        "over all images."
    ]
    assert (plan.data_order, plan.window, plan.num_blocks) == ("window", 12, 60)
    assert plan.classes_per_batch > 0.97 * plan.classes_shuffled > 15
    wider = note_order(replace(config, data_order="window", window=99), images, reporter)
    assert wider.window == 60
    assert "windows of 60 of 60 blocks" in reporter.notes[1]


def test_blocks_that_are_sorted_by_class_are_warned_of_with_a_window_that_mixes(config, reporter):
    images = make_block_images(SORTED, block_size=20, num_cached=8)
    plan = note_order(settle_order(config, images), images, reporter)
    assert not reporter.notes
    assert reporter.warnings == [
        "digits is sorted by class: a batch has 6 classes in windows of 6 of 60 blocks, 17 in a random "
        "order over all images. Use --window 60 with 7.5 times the --cache-size, or write the images anew "
        "in random order: deitctl pack digits OUT --shuffle"
    ]
    assert plan.classes_per_batch < 8
    wider = settle_order(replace(config, window=60), images)
    assert note_order(wider, images, reporter).classes_per_batch > 14
    assert len(reporter.warnings) == 1


def test_a_full_order_that_reads_blocks_again_and_again_is_warned_of(config, reporter):
    images = make_block_images(SHUFFLED, block_size=20, num_cached=8)
    plan = note_order(replace(config, data_order="full"), images, reporter)
    assert "the cache holds 8 of its 60 blocks" in reporter.warnings[0]
    assert (plan.data_order, plan.window) == ("full", 0)
    assert plan.classes_per_batch == plan.classes_shuffled


def in_blocks(images: ImageDataset, num_cached: int) -> BlockImages:
    """Digits in blocks of eight."""
    pixels = np.stack([np.asarray(images.read(n))[:, :, 0] for n in range(len(images.labels))])
    return BlockImages(
        pixels, images.labels, images.class_names, "little", block_size=8, num_cached=num_cached
    )


def shorten(config: TrainConfig) -> TrainConfig:
    """Two epochs, of plain views."""
    augment = replace(config.recipe.augment, rand_augment="", random_erase_prob=0.0)
    return replace(config, recipe=replace(config.recipe, epochs=2, augment=augment))


def test_a_run_keeps_its_order_where_the_cache_is_another(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch, reporter
) -> None:
    train, val = in_blocks(little[0], 4), little[1]
    everywhere = replace(train, num_cached=100)
    monkeypatch.setattr(plan, "estimate_seconds", lambda _: None)
    planned = plan.plan_training(little_config("plan"), datasets=(train, val), reporter=reporter)
    assert planned.order is not None
    assert (planned.config.data_order, planned.config.window) == ("window", 3)
    assert any("windows of 3 of" in warning for warning in reporter.warnings)  # sorted by class
    whole = run_training(shorten(little_config("whole")), datasets=(train, val))
    train_epoch = Trainer.train_epoch

    def stop(self: Trainer, *arguments: object) -> float:
        if self.state.progress.epoch == 1:
            signal.raise_signal(signal.SIGTERM)
        return train_epoch(self, *arguments)  # type: ignore[arg-type]

    config = shorten(little_config("run"))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", stop)
        with pytest.raises(Interrupted):
            run_training(config, datasets=(train, val))
    run = Path(config.output_dir)
    written = read_toml(run / "run.toml")
    assert (written["data_order"], written["window"]) == ("window", 3)
    assert find_unfinished(config, reporter) == run
    with pytest.raises(DataError, match="in an order of blocks"):
        resume(run, datasets=(little[0], val))
    with pytest.raises(DataError, match="lies in other blocks"):
        resume(run, datasets=(replace(train, block_size=7), val))
    resume(run, datasets=(everywhere, val))
    assert (run / WEIGHTS).read_bytes() == (Path(whole.run) / WEIGHTS).read_bytes()


def test_runs_of_earlier_versions_have_a_full_order(
    little_config: Make, little: Pair, tmp_path: Path
) -> None:
    config = little_config("old")
    Run.create(tmp_path / "old", config)
    file = tmp_path / "old" / "run.toml"
    lines = file.read_text().splitlines()
    file.write_text(
        "\n".join(line for line in lines if not line.startswith(("data_order", "window")))
    )
    _, opened = Run.open(tmp_path / "old")
    assert opened.data_order == "full"
    assert make_windows(opened, in_blocks(little[0], 2)) is None

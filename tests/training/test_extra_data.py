"""A run that trains on several sources goes on as it began, and plans what it does."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.run_data import write_split
from deitctl.data.training_data import Source, open_for_training
from deitctl.distributed import SINGLE_PROCESS
from deitctl.errors import ConfigError, DataError, Interrupted
from deitctl.events import SilentReporter
from deitctl.settings import write_toml
from deitctl.training import plan
from deitctl.training.configure import check, make_absolute, name_source
from deitctl.training.launch import resume, run_training
from deitctl.training.resumption import require_same_data
from deitctl.training.run_dir import WEIGHTS
from deitctl.training.trainer import Trainer
from tests.conftest import Recorder
from tests.data.test_extra import write_images

Make = Callable[..., TrainConfig]


def test_settings_of_sources_are_paths_and_as_many_weights(little_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    absolute = make_absolute({"extra_data": ["a,b", "s3://bucket/x"], "extra_weight": [1, 2]})
    assert absolute["extra_data"] == [str(tmp_path / "a,b"), "s3://bucket/x"]
    assert name_source("d", absolute).extra_data == tuple(absolute["extra_data"])
    with pytest.raises(ConfigError, match="2 --extra-data and 1 --extra-weight"):
        name_source("d", {**absolute, "extra_weight": ["2"]})
    config = little_config("x", extra_data=("a",), extra_weight=(0.5,))
    check(config)
    assert "extra_weight = [\n    0.5,\n]" in write_toml(config)
    balanced = replace(config, recipe=replace(config.recipe, sampling="balanced"))
    with pytest.raises(ConfigError, match="draws every class equally often"):
        check(balanced)
    check(replace(balanced, extra_weight=(1.0,)))


def test_a_run_of_two_sources_goes_on_as_it_began(
    little_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "own", {"cat": 12, "dog": 12}, 0)
    write_images(tmp_path / "more", {"cat": 4, "dog": 4}, 1)

    def configure(output: str) -> TrainConfig:
        config = little_config(
            output,
            data=str(tmp_path / "own"),
            extra_data=(str(tmp_path / "more"),),
            extra_weight=(2.5,),
        )
        augment = replace(config.recipe.augment, rand_augment="", random_erase_prob=0.0)
        recipe = replace(config.recipe, epochs=2, augment=augment)
        return replace(config, recipe=recipe)

    monkeypatch.setattr(plan, "estimate_seconds", lambda _: None)
    planned = plan.plan_training(configure("plan"))
    num_own = planned.num_train_images - 8
    assert (planned.num_extra_images, planned.num_epoch_images) == (8, num_own + 20)
    whole = run_training(configure("whole"))
    assert whole.images_seen == 2 * (num_own + 20)
    train_epoch = Trainer.train_epoch

    def stop(self: Trainer, *arguments: object) -> float:
        if self.state.progress.epoch == 1:
            signal.raise_signal(signal.SIGTERM)
        return train_epoch(self, *arguments)  # type: ignore[arg-type]

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", stop)
        with pytest.raises(Interrupted):
            run_training(configure("run"))
    shutil.move(tmp_path / "more" / "cat" / "000.png", tmp_path / "000.png")
    with pytest.raises(
        DataError,
        match=r"--extra-data .*more is not the data that .*: images that are gone .* label: cat/000.png\.",
    ):
        resume(run)
    shutil.move(tmp_path / "000.png", tmp_path / "more" / "cat" / "000.png")
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "more", moved)
    resume(run, settings={"extra_data": [str(moved)]})
    assert (run / WEIGHTS).read_bytes() == (Path(whole.run) / WEIGHTS).read_bytes()


def resume_with(run: Path, data: tuple[ImageDataset, ImageDataset], **began: object) -> list[str]:
    """Compare data with that of a run, and return the warnings."""
    reporter = Recorder()
    config = SimpleNamespace(data="own", extra_data=("more",), distill=None)
    trainer = SimpleNamespace(
        run=SimpleNamespace(root=run),
        setup=SimpleNamespace(train=data[0], val=data[1], windows=None, num_unlabeled=0),
        config=config,
        world=SINGLE_PROCESS,
        reporter=reporter,
    )
    then = SimpleNamespace(num_train_images=len(data[0].labels), data_fingerprint="", **began)
    require_same_data(trainer, then, "")  # type: ignore[arg-type]
    return reporter.warnings


def test_an_image_of_a_source_that_has_other_contents_is_counted(tmp_path: Path) -> None:
    """Also where its size is the same."""
    write_images(tmp_path / "own", {"cat": 6, "dog": 6}, 0)
    write_images(tmp_path / "more", {"cat": 2, "dog": 1}, 1)
    source = Source(str(tmp_path / "own"), extra_data=(str(tmp_path / "more"),))

    def open_pair() -> tuple[ImageDataset, ImageDataset]:
        return open_for_training(source, reporter=SilentReporter())

    (tmp_path / "run.toml").write_text("data = 'own'\n")
    write_split(tmp_path, *open_pair())
    assert resume_with(tmp_path, open_pair()) == []
    image = tmp_path / "more" / "cat" / "001.png"
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    (warning,) = resume_with(tmp_path, open_pair())
    assert warning.startswith("1 images have other contents")
    assert str(image) in warning

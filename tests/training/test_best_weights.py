"""Best weights that a kill leaves newer than the checkpoint: no epoch is lost, none is taken from the future."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.errors import Interrupted
from deitctl.evaluation.result import EvalResult
from deitctl.models.checkpoint_io import WEIGHTS, load_tensors, save_tensors
from deitctl.training.best_weights import SCORE_KEY
from deitctl.training.launch import resume, run_training
from deitctl.training.run_dir import Run
from deitctl.training.saved_state import RECORD_CHECKSUM
from deitctl.training.trainer import Trainer

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
FILES = ("checkpoint/model.safetensors", "checkpoint/optimizer.safetensors", WEIGHTS)
SCORES = (40.0, 50.0, 45.0, 60.0, 55.0)
"""Of the epochs; an epoch is better, another worse, and the last better one is followed by one."""
SHAPE = {"depth": 2, "embed_dim": 24, "num_heads": 2}


@pytest.fixture(autouse=True)
def scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the epochs score as `SCORES` has it."""
    validate = Trainer.validate

    def validate_so(self: Trainer, label: str) -> dict[str, EvalResult]:
        score = SCORES[self.state.progress.epoch]
        return {kind: replace(r, top1=score) for kind, r in validate(self, label).items()}  # type: ignore

    monkeypatch.setattr(Trainer, "validate", validate_so)


def configure(config: TrainConfig, patience: int) -> TrainConfig:
    recipe = replace(config.recipe, img_size=16, epochs=5, batch_size=30, ema_decay=0.0)
    return replace(config, recipe=recipe, model_args=SHAPE, patience=patience)


def kill_after(run: Path, epoch: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Keep a copy of the run as a SIGKILL after an epoch leaves it; return what puts it in the run's place."""
    copy, log_epoch = run.with_name("copy"), Trainer.log_epoch

    def log(self: Trainer, *arguments: object) -> object:
        record = log_epoch(self, *arguments)  # type: ignore[arg-type]
        if self.state.progress.epoch == epoch and not copy.exists():
            shutil.copytree(run, copy)
        return record

    monkeypatch.setattr(Trainer, "log_epoch", log)

    def restore() -> None:
        shutil.rmtree(run)
        copy.rename(run)

    return restore


def stop_before(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let SIGTERM come when an epoch begins."""
    train_epoch = Trainer.train_epoch

    def train(self: Trainer, *arguments: object) -> float:
        if self.state.progress.epoch + 1 == epoch:
            signal.raise_signal(signal.SIGTERM)
        return train_epoch(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train_epoch", train)


def state_of(run: Path) -> dict[str, object]:
    return json.loads((run / "checkpoint" / "state.json").read_text())


def test_killed_without_a_checkpoint_then_stopped_then_resumed_a_run_ends_as_unbroken(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint of epoch 1, weights of epoch 4; stopped in epoch 3 while it catches up, and again in epoch 4.

    It is never out of patience, as it would be in epoch 3 if epoch 4 were the best already.
    """
    whole = run_training(configure(little_config("whole"), 2), datasets=little)
    config = configure(little_config("run"), 2)
    run = Path(config.output_dir)
    with monkeypatch.context() as patch:
        stop_before(2, patch)
        with pytest.raises(Interrupted):
            run_training(config, datasets=little)
    assert state_of(run)["epoch"] == 1
    with monkeypatch.context() as patch:
        restore = kill_after(run, 4, patch)
        resume(run, datasets=little)
    restore()
    ahead = (run / WEIGHTS).read_bytes()
    assert state_of(run)["epoch"] == 1
    for epoch in (3, 4):
        with monkeypatch.context() as patch:
            stop_before(epoch, patch)
            with pytest.raises(Interrupted):
                resume(run, datasets=little)
        state = state_of(run)
        assert (state["epoch"], state["best_epoch"], state["best_score"]) == (epoch - 1, 2, 50.0)
        assert (run / WEIGHTS).read_bytes() == ahead  # better than what the checkpoint knows
    resumed = resume(run, datasets=little)
    for file in FILES:
        assert (run / file).read_bytes() == (whole.run / file).read_bytes(), file
    known = ("best_epoch", "best_score", "improved_epoch", "epoch", "stopped")
    assert [state_of(run)[name] for name in known] == [state_of(whole.run)[name] for name in known]
    assert (resumed.best.epoch, resumed.epochs, resumed.stopped) == (4, 5, None)


@pytest.fixture
def stopped(little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped after three of its epochs."""
    config = configure(little_config("run"), 0)
    with monkeypatch.context() as patch:
        stop_before(4, patch)
        with pytest.raises(Interrupted):
            run_training(config, datasets=little)
    return Path(config.output_dir)


def keep_weights_of(run: Path, epoch: int, score: float) -> None:
    note = {"epoch": epoch, "select": "top1", "score": score, "weights": "model", "images": 30}
    save_tensors(run / WEIGHTS, load_tensors(run / WEIGHTS), {SCORE_KEY: json.dumps(note)})


def test_a_checkpoint_that_has_adopted_an_epoch_to_come_is_read_and_knows_the_best_before_it(
    stopped: Path, little: Pair
) -> None:
    file = stopped / "checkpoint" / "state.json"
    state = {**state_of(stopped), "best_epoch": 4, "best_score": 60.0, "improved_epoch": 1}
    del state[RECORD_CHECKSUM]
    file.write_text(json.dumps(state))
    keep_weights_of(stopped, 4, 60.0)
    result = resume(stopped, datasets=little)
    assert (result.best.epoch, result.epochs) == (4, 5)
    state = state_of(stopped)
    assert (state["best_epoch"], state["best_score"], state["improved_epoch"]) == (4, 60.0, 4)
    assert [r["epoch"] for r in Run(stopped).records("epoch")] == [1, 2, 3, 4, 5]


def test_weights_that_do_not_come_out_again_stay_the_best(stopped: Path, little: Pair) -> None:
    """As on another machine: of epoch 4, which scored 99 there and scores 60 here."""
    keep_weights_of(stopped, 4, 99.0)
    before = (stopped / WEIGHTS).read_bytes()
    assert resume(stopped, datasets=little).best.epoch == 4
    assert (state_of(stopped)["best_score"], (stopped / WEIGHTS).read_bytes()) == (99.0, before)

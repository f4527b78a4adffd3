"""Whatever ends a run, what is in memory is saved, and what it says of that is true."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.readers.digits import ArrayDataset
from deitctl.errors import DataError, DeitctlError, LoaderLost, ModelError
from deitctl.events import SilentReporter
from deitctl.models.checkpoint_io import WEIGHTS
from deitctl.paths import DiskError
from deitctl.training import trainer as module
from deitctl.training.best_weights import keep_best
from deitctl.training.launch import resume, run_training
from deitctl.training.run_dir import Run
from deitctl.training.trainer import Trainer

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]


def step_of(run: Path) -> int:
    return int(json.loads((run / "checkpoint" / "state.json").read_text())["step"])


def fail_at(step: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `error` come while the batch of a step is waited for."""
    read_batches = Trainer.read_batches

    def read(self: Trainer, batches: Any, count: int) -> Any:
        for batch in read_batches(self, batches, count):
            if self.state.progress.step == step:
                raise error
            yield batch

    monkeypatch.setattr(Trainer, "read_batches", read)


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (LoaderLost("A loader is gone.", "Use none."), LoaderLost, "A loader is gone."),
        (DataError("x.png is damaged.", ""), DataError, "x.png is damaged."),
        (MemoryError(), DeitctlError, "There is not enough memory to go on."),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            DeitctlError,
            "not enough memory",
        ),
        (ModelError("The logits are not finite."), ModelError, "The logits are not finite."),
    ],
)
def test_a_failure_between_steps_saves_the_step_and_says_how_to_go_on(
    error: Exception,
    raised: type[Exception],
    said: str,
    little_config: Make,
    little: Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = little_config("run", save_every="1h")
    run = Path(config.output_dir)
    with monkeypatch.context() as patch:
        fail_at(6, error, patch)
        with pytest.raises(raised) as failure:
            run_training(config, datasets=little)
    assert said in str(failure.value)
    assert "The last checkpoint, of step 6 (epochs done: 1), is whole." in str(failure.value)
    assert f"deitctl train --resume {run}" in str(failure.value)
    assert step_of(run) == 6


def test_an_error_of_the_caller_keeps_its_type_and_gets_a_note(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception of one's own data set or reporter is no line of ours; the run ends as if never stopped."""
    config = little_config("run", save_every="1h")
    with monkeypatch.context() as patch:
        fail_at(5, KeyError("mine"), patch)
        with pytest.raises(KeyError, match="mine") as failure:
            run_training(config, datasets=little)
    (note,) = failure.value.__notes__
    assert note.startswith("The last checkpoint, of step 5")
    resume(Path(config.output_dir), datasets=little)
    other = little_config("other")
    run_training(other, datasets=little)
    resumed, unbroken = (Path(c.output_dir) / WEIGHTS for c in (config, other))
    assert resumed.read_bytes() == unbroken.read_bytes()


@pytest.mark.parametrize("place", ["optimizer_step", "log_epoch"])
def test_a_failure_within_a_step_or_an_epochs_end_saves_nothing_and_says_so(
    place: str, little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of half a step would be another run's, and an epoch without a record no epoch."""
    config = little_config("run", save_every="1h")

    def fail(*_: object) -> None:
        raise ValueError("mine")

    if place == "log_epoch":
        monkeypatch.setattr(Trainer, "log_epoch", fail)
    else:
        monkeypatch.setattr(module, "optimizer_step", fail)
    with pytest.raises(ValueError, match="mine") as failure:
        run_training(config, datasets=little)
    saved = "Of the training nothing" if place == "log_epoch" else "Nothing was saved."
    assert failure.value.__notes__[0].startswith(saved)
    assert not (Path(config.output_dir) / "checkpoint").exists()


def test_a_log_that_cannot_be_written_does_not_lose_the_step(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = little_config("run", save_every="1h")
    log = Run.log

    def fail(run: Run, record: dict[str, Any]) -> None:
        if record["kind"] == "step" and record["step"] == 3:
            raise DiskError.from_os_error(
                run.metrics_file, PermissionError(13, "Permission denied")
            )
        log(run, record)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", fail)
        with pytest.raises(DeitctlError, match="Permission denied. The last checkpoint, of step 4"):
            run_training(config, datasets=little)
    assert resume(Path(config.output_dir), datasets=little).epochs == 3


def test_a_reporter_that_fails_at_an_epochs_line_does_not_lose_the_epoch(
    little_config: Make, little: Pair
) -> None:
    class Fails(SilentReporter):
        def note(self, message: str) -> None:
            if message.startswith("epoch 2/3"):
                raise ValueError("mine")

    config = little_config("run", save_every="1h")
    with pytest.raises(ValueError, match="mine") as failure:
        run_training(config, datasets=little, reporter=Fails())
    assert failure.value.__notes__[0].startswith("The last checkpoint, of step 8 (epochs done: 2)")
    assert resume(Path(config.output_dir), datasets=little).epochs == 3


def test_a_convnet_is_not_saved_after_half_a_step(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forward pass has moved the statistics of its batch norms."""

    def fail(*_: object, **options: object) -> None:
        raise ValueError("mine")

    for model, is_saved in (("test_resnet", False), ("deit_tiny", True)):
        config = little_config(model, model=model, save_every="1h")
        with monkeypatch.context() as patch:
            patch.setattr(module, "forward_backward", fail)
            with pytest.raises(ValueError, match="mine"):
                run_training(config, datasets=little)
        assert (Path(config.output_dir) / "checkpoint").exists() is is_saved


def test_a_save_that_fails_too_does_not_hide_what_happened_first(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = little_config("run", save_every="1h")
    fail_at(3, KeyError("first"), monkeypatch)

    def fail(*_: object) -> None:
        raise OSError("second")

    monkeypatch.setattr("deitctl.training.state.Snapshot.write", fail)
    with pytest.raises(KeyError, match="first") as failure:
        run_training(config, datasets=little)
    assert failure.value.__notes__[0] == "The state could not be saved either: second"
    assert "Nothing was saved." in failure.value.__notes__[1]


# -- validation images that vanish -----------------------------------------------------------


LIMIT: list[int] = []


class Vanishing(ArrayDataset):
    """Images of which only the first can be read while `LIMIT` has a number."""

    def read(self, index: int) -> Any:
        if LIMIT and index >= LIMIT[0]:
            raise DataError(f"{index} cannot be read.")
        return super().read(index)


class Recording(SilentReporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class During(Recording):
    @contextmanager
    def task(self, label: str, total: int | None, unit: str = "images") -> Any:
        if label.startswith("epoch"):
            LIMIT[:] = [4] if "epoch 2/3" in label and "validate" in label else []
        with super().task(label, total, unit) as task:
            yield task


def test_scores_of_fewer_validation_images_do_not_choose_the_best_epoch(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = little
    images = [val.read(i) for i in range(len(val.labels))]
    stacked = np.stack([np.asarray(image.convert("L")) for image in images])
    vanishing = Vanishing(stacked, val.labels, val.class_names, "digits")
    reporter = During()
    # Of four images any epoch would look perfect.
    counts = []

    def keep(self: Trainer, metrics: Any) -> None:
        number = metrics["model"].num_images
        counts.append(number)
        perfect = {k: replace(v, top1=100.0) if number == 4 else v for k, v in metrics.items()}
        keep_best(self, perfect)

    monkeypatch.setattr(module, "keep_best", keep)
    result = run_training(little_config("run"), datasets=(train, vanishing), reporter=reporter)
    assert counts == [30, 4, 30]
    assert result.best.epoch in (1, 3)
    assert result.best.top1 < 100
    (warning,) = [w for w in reporter.warnings if "validation images could be read" in w]
    assert warning.startswith("4 of 30 validation images could be read, 30 in epoch 1")
    assert "too few" in warning


def test_the_best_epoch_is_scored_again_on_the_images_that_are_left(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image that is gone for good does not make the first epoch the best for ever."""
    train, val = little
    images = np.stack([np.asarray(val.read(i).convert("L")) for i in range(len(val.labels))])
    vanishing = Vanishing(images, val.labels, val.class_names, "digits")
    scores = []

    def keep(self: Trainer, metrics: Any) -> None:
        first = self.state.progress.epoch == 1
        # as if the image that vanishes had made the first epoch look perfect
        kept = {k: replace(v, top1=100.0) if first else v for k, v in metrics.items()}
        keep_best(self, kept)
        LIMIT[:] = [29]
        progress = self.state.progress
        scores.append((progress.best_num_images, progress.best_epoch, progress.best_score))

    monkeypatch.setattr(module, "keep_best", keep)
    reporter = Recording()
    try:
        run_training(little_config("run"), datasets=(train, vanishing), reporter=reporter)
    finally:
        LIMIT.clear()
    assert scores[0] == (30, 1, 100.0)
    assert scores[1][0] == scores[2][0] == 29
    assert scores[2][2] < 100
    (warning,) = [w for w in reporter.warnings if "scored again" in w]
    assert warning.startswith("29 of 30 validation images could be read, 30 in epoch 1")

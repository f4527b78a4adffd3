"""A disk that fills while a run writes: the message says what is saved, and the run goes on from it to the same end."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from deitctl import paths
from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.errors import DeitctlError
from deitctl.models import checkpoint_io
from deitctl.training.launch import resume, run_training
from deitctl.training.run_dir import Run

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]


@pytest.fixture
def config(little_config: Make) -> TrainConfig:
    """Two epochs of two steps, and a checkpoint every two steps, so after each epoch."""
    config = little_config("run", save_every="2")
    return replace(config, recipe=replace(config.recipe, epochs=2, batch_size=30))


def fill_disk(monkeypatch: pytest.MonkeyPatch, name: str, nth: int) -> None:
    """Let the `nth` write, from 1, of a file of that name fail for lack of space."""
    write, count = paths.atomic_path, [0]

    @contextmanager
    def full(path: Path, *arguments: str) -> Iterator[Path]:
        count[0] += path.name == name
        if path.name == name and count[0] == nth:
            error = OSError(errno.ENOSPC, "No space left on device")
            raise paths.DiskError.from_os_error(path, error)
        with write(path, *arguments) as temporary:
            yield temporary

    monkeypatch.setattr(paths, "atomic_path", full)
    monkeypatch.setattr(checkpoint_io, "atomic_path", full)


NOTHING = "Nothing was saved."
WEIGHTS = "Of the training nothing was saved but its best weights, {run}/model.safetensors."
STEP_2 = (
    "The last checkpoint, of step 2 (epochs done: 0), is whole."  # its epoch is not yet validated
)
STEP_4 = "The last checkpoint, of step 4 (epochs done: 2), is whole."


@pytest.mark.parametrize(
    ("name", "nth", "saved"),
    [
        ("model.safetensors", 1, NOTHING),
        ("config.json", 1, NOTHING),
        ("state.json", 1, WEIGHTS),
        ("ema.safetensors", 1, WEIGHTS),
        ("optimizer.safetensors", 2, STEP_2),
        ("state.json", 2, STEP_2),
        ("result.json", 1, STEP_4),
    ],
)
def test_a_full_disk_says_what_is_saved_and_how_to_go_on(
    name: str,
    nth: int,
    saved: str,
    config: TrainConfig,
    little: Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(Path(config.output_dir))
    with monkeypatch.context() as patch:
        fill_disk(patch, name, nth)
        with pytest.raises(DeitctlError) as error:
            run_training(config, datasets=little)
    message = error.value.message
    assert message.endswith(f": No space left on device. {saved.format(run=run.root)}")
    assert error.value.hint == f"Free some space, then: deitctl train --resume {run.root}"
    assert not list(run.root.rglob("*.new"))
    position = {NOTHING: None, WEIGHTS: None, STEP_2: (0, 2), STEP_4: (2, 4)}[saved]
    assert run.saved_position() == position
    assert resume(run.root, datasets=little).epochs == 2


def test_a_full_log_is_a_full_disk(
    config: TrainConfig, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Run.log

    def full(run: Run, record: dict[str, object]) -> None:
        if record["kind"] == "epoch" and record["epoch"] == 2:
            raise paths.DiskError.from_os_error(
                run.metrics_file, OSError(errno.ENOSPC, "No space left on device")
            )
        measure(run, record)

    monkeypatch.setattr(Run, "log", full)
    with pytest.raises(DeitctlError, match=r"metrics\.jsonl: No space left on device") as error:
        run_training(config, datasets=little)
    assert error.value.message.endswith(STEP_2)


def test_a_folder_that_is_gone_is_no_lack_of_space(tmp_path: Path) -> None:
    run = Run(tmp_path / "my run")
    gone = paths.DiskError.from_os_error(run.checkpoint, OSError(errno.EACCES, "Permission denied"))
    error = run.explain_full_disk(gone)
    assert error.message.endswith("Permission denied. Nothing was saved.")
    assert error.hint == f"Make it writable, then: deitctl train --resume '{run.root}'"


def test_a_checkpoint_between_its_two_renames_counts_as_saved(
    config: TrainConfig, little: Pair
) -> None:
    run = Run(run_training(config, datasets=little).run)
    shutil.move(run.checkpoint, run.root / "checkpoint.old")
    assert run.saved_position() == (2, 4)
    assert run.describe_saved() == STEP_4

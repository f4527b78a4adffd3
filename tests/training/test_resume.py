"""Which run is gone on with: the same configuration, the newest, the unfinished one; and one writer at a time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.errors import ConfigError
from deitctl.lock import Busy, locked
from deitctl.settings import write_toml
from deitctl.training.earlier_runs import find_unfinished, require_same
from deitctl.training.launch import resume, run_training, start_or_resume
from deitctl.training.run_dir import Run

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]


def begun(
    config: TrainConfig, root: Path | str, *, age: float = 0.0, finished: bool = False
) -> Path:
    """A run's folder with a configuration, so many seconds old."""
    run = Run(Path(root))
    run.root.mkdir(parents=True)
    run.config_file.write_text(write_toml(replace(config, output_dir=str(root))))
    if finished:
        run.result_file.write_text("{}")
    when = run.config_file.stat().st_mtime - age
    os.utime(run.config_file, (when, when))
    return run.root


@pytest.fixture
def wanted(little_config: Make) -> TrainConfig:
    """A configuration that names no folder; the current folder is empty."""
    config = replace(little_config("x"), output_dir="")
    return replace(config, recipe=replace(config.recipe, epochs=1, batch_size=30))


def longer(config: TrainConfig) -> TrainConfig:
    return replace(config, recipe=replace(config.recipe, epochs=7))


def test_where_nothing_was_begun_nothing_is_found(wanted: TrainConfig, reporter) -> None:
    assert find_unfinished(wanted, reporter) is None
    assert find_unfinished(replace(wanted, output_dir="no/such/folder"), reporter) is None
    Path("runs/empty").mkdir(parents=True)
    Path("runs/file").write_text("")
    assert find_unfinished(wanted, reporter) is None


def test_the_newest_unfinished_run_of_the_same_configuration_is_found(
    wanted: TrainConfig, reporter
) -> None:
    begun(wanted, "runs/a", age=30)
    newest = begun(wanted, "runs/b", age=20)
    begun(wanted, "runs/c", age=40)
    begun(wanted, "runs/d", age=5, finished=True)
    begun(longer(wanted), "runs/e", age=1)
    assert find_unfinished(wanted, reporter) == newest
    # the last to be worked on, not the last to be begun
    (Path("runs/c") / "metrics.jsonl").write_text("")
    assert find_unfinished(wanted, reporter) == Path("runs/c")


@pytest.mark.parametrize("text", ["a = = 1", "", "seed = 'x'", "model = 3\nunknown = 1", "\x00"])
def test_a_broken_configuration_is_passed_over(text: str, wanted: TrainConfig, reporter) -> None:
    good = begun(wanted, "runs/good", age=100)
    broken = begun(wanted, "runs/broken")
    (broken / "run.toml").write_text(text)
    assert find_unfinished(wanted, reporter) == good


def test_where_and_how_a_run_goes_on_makes_no_difference(wanted: TrainConfig, reporter) -> None:
    root = begun(wanted, "runs/a")
    other = replace(
        wanted, workers=3, micro_batch_size=4, save_every="7", on_bad_image="stop", precision="bf16"
    )
    assert find_unfinished(other, reporter) == root


def test_an_unfinished_run_that_differs_is_reported(wanted: TrainConfig, reporter) -> None:
    begun(longer(wanted), "runs/a")
    begun(replace(wanted, model="deit_small"), "runs/b")  # somebody else's business
    assert find_unfinished(wanted, reporter) is None
    assert reporter.notes == [
        "runs/a is unfinished, but of another configuration: epochs is 7, not 1."
    ]


def test_a_folder_that_is_named_is_the_only_place(wanted: TrainConfig, reporter) -> None:
    begun(wanted, "runs/a")
    mine = begun(wanted, "mine", age=100)
    assert find_unfinished(replace(wanted, output_dir="mine"), reporter) == mine
    assert find_unfinished(replace(wanted, output_dir="new"), reporter) is None


def test_another_configuration_in_the_folder_that_is_named_is_refused(
    wanted: TrainConfig, reporter
) -> None:
    begun(longer(wanted), "mine")
    with pytest.raises(
        ConfigError,
        match=r"mine holds a run of another configuration: epochs is 7, not 1\.",
    ):
        find_unfinished(replace(wanted, output_dir="mine"), reporter)


def test_a_finished_run_in_the_folder_that_is_named_is_found(wanted: TrainConfig, reporter) -> None:
    """The same line of a job script ends well twice; a launcher's restart is no such line."""
    root = begun(wanted, "mine", finished=True)
    assert find_unfinished(replace(wanted, output_dir="mine"), reporter) == root
    (root / "launch_id").write_text("job-7")
    assert find_unfinished(replace(wanted, output_dir="mine"), reporter, launch="job-7") is None


def test_a_restarted_launch_finds_the_run_that_it_began_and_no_other(
    wanted: TrainConfig, reporter
) -> None:
    begun(wanted, "runs/other")
    ours = begun(wanted, "runs/ours", age=100)
    assert find_unfinished(wanted, reporter, launch="job-7") is None
    (Path("runs/other") / "launch_id").write_text("job-8")
    (ours / "launch_id").write_text("job-7")
    assert find_unfinished(wanted, reporter, launch="job-7") == ours


def test_settings_that_are_given_again_must_be_the_runs_own(wanted: TrainConfig) -> None:
    root = Path("r")
    require_same(root, wanted, {})
    require_same(
        root, wanted, {"recipe.epochs": "1", "model": "deit_tiny", "workers": 9, "save_every": "3"}
    )
    changes = {"recipe.epochs": 2, "seed": 5, "recipe.optim.lr": wanted.recipe.optim.lr}
    with pytest.raises(ConfigError) as error:
        require_same(root, wanted, changes)
    assert "seed is 0, not 5" in error.value.message
    assert "epochs is 1, not 2" in error.value.message
    assert "lr is" not in error.value.message
    assert f"deitctl train --config {root / 'run.toml'}" in error.value.hint
    with pytest.raises(ConfigError, match="no setting 'epochz'"):
        require_same(root, wanted, {"recipe.epochz": 2})


@pytest.mark.parametrize(("name", "value"), [("workers", -9), ("micro_batch_size", -4)])
def test_machine_settings_of_a_resumed_run_are_in_range(
    wanted: TrainConfig, name: str, value: int
) -> None:
    root = begun(wanted, "runs/ours")
    with pytest.raises(ConfigError, match=f"{name} = {value} is out of range"):
        resume(root, settings={name: value})


def test_auto_begins_a_run_goes_on_with_it_and_leaves_it_when_it_is_finished(
    wanted: TrainConfig, little: Pair, reporter
) -> None:
    first = start_or_resume(wanted, auto=True, datasets=little, reporter=reporter)
    assert reporter.notes[0] == "No unfinished run of this configuration: a new one begins."
    assert first.run == Path("runs/deit_tiny-digits")
    weights = (first.run / "model.safetensors").read_bytes()

    (first.run / "result.json").unlink()  # as if it had been stopped before its last word
    again = start_or_resume(wanted, auto=True, datasets=little, reporter=reporter)
    assert again.run == first.run
    assert again.evaluation.loss == first.evaluation.loss
    assert f"Resuming {first.run}." in reporter.notes
    assert (first.run / "model.safetensors").read_bytes() == weights

    third = start_or_resume(wanted, auto=True, datasets=little, reporter=reporter)
    assert third.run == Path("runs/deit_tiny-digits-2")  # the first is finished
    named = replace(wanted, output_dir=str(first.run))
    assert (
        start_or_resume(named, auto=True, datasets=little, reporter=reporter).evaluation.loss
        == first.evaluation.loss
    )


def test_without_auto_a_run_is_always_a_new_one(
    wanted: TrainConfig, little: Pair, reporter
) -> None:
    root = begun(wanted, "runs/deit_tiny-digits")
    result = start_or_resume(wanted, auto=False, datasets=little, reporter=reporter)
    assert result.run == Path("runs/deit_tiny-digits-2")
    assert os.listdir(root) == ["run.toml"]


def test_a_run_that_stopped_before_its_first_save_starts_again(
    wanted: TrainConfig, little: Pair, reporter
) -> None:
    root = begun(wanted, "mine")
    (root / "metrics.jsonl").write_text('{"kind": "step"}\n' * 5)
    result = start_or_resume(
        replace(wanted, output_dir="mine"), auto=True, datasets=little, reporter=reporter
    )
    assert (result.run, result.epochs) == (root, 1)
    steps = [json.loads(line)["step"] for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] == 0  # without what was logged before


def test_a_second_writer_is_refused_while_the_first_is_at_work(
    wanted: TrainConfig, little: Pair
) -> None:
    root = begun(wanted, "mine")
    before = sorted(os.listdir(root))
    with (
        locked(Run(root).lock_file, what="it"),
        pytest.raises(Busy, match="mine is being written by another process"),
    ):
        resume(root, datasets=little)
    assert sorted(os.listdir(root)) == sorted([*before, "lock"])
    assert resume(root, datasets=little).epochs == 1


def test_a_second_beginning_in_the_same_folder_is_refused(
    wanted: TrainConfig, little: Pair
) -> None:
    config = replace(wanted, output_dir="mine")
    with locked(Run(Path("mine")).lock_file, what="it"), pytest.raises(Busy):
        run_training(config, datasets=little)
    shutil.rmtree("mine")
    assert run_training(config, datasets=little).epochs == 1

"""The batch size is the largest that memory, recipe and data allow and that gains; nothing else changes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deitctl.cli.app import app, run_commands
from deitctl.config import TrainConfig
from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.subsets import select
from deitctl.device import choose_device
from deitctl.errors import ConfigError, DataError
from deitctl.events import SilentReporter
from deitctl.models.checkpoint_io import load_tensors
from deitctl.profiling import batch_size
from deitctl.profiling.batch_size import (
    Trial,
    choose_batch_size,
    floor_power_of_two,
    search_batch_size,
    with_chosen_batch_size,
)
from deitctl.profiling.trial_run import build_trial
from deitctl.settings import read_toml
from deitctl.training.launch import run_training, start_or_resume

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
CPU = choose_device("cpu", "fp32")


def machine(
    gain: float = 2.0,
    per_image: int = 10,
    fixed: int = 100,
    breaks: int = 10**9,
    start: float = 1e4,
):
    """A device whose images/s rises by a factor with each doubling, and whose steps take memory by a straight line."""

    def attempt(size: int) -> Trial | None:
        if size >= breaks:
            return None
        return Trial(
            size,
            start * gain ** (floor_power_of_two(size).bit_length() - 4),
            fixed + per_image * size,
        )

    return attempt


def choose(
    attempt, usual: int = 64, num_images: int = 10**6, room: int | None = 10**9
) -> tuple[int, str, list[int]]:
    size, reason, sizes = search_batch_size(attempt, usual, num_images, room, SilentReporter())
    return size, reason, [t.batch_size for t in sizes]


def test_the_size_is_at_most_four_times_the_recipes() -> None:
    assert choose(machine())[0] == 256
    assert "within 4 times the recipe's 64" in choose(machine())[1]
    # 192, 384 and 12 are no powers of two
    assert [choose(machine(), usual=usual)[0] for usual in (48, 96, 3)] == [128, 256, 8]


def test_the_size_is_at_most_the_number_of_images() -> None:
    size, reason, sizes = choose(machine(), num_images=60)
    assert (size, sizes) == (60, [8, 16, 32])  # as without auto: not 32 of the 60
    assert "60 training images" in reason
    assert choose(machine(), num_images=5)[0] == 5
    assert choose(machine(), num_images=2)[0] == 2


@pytest.mark.parametrize(
    ("num_images", "size"),
    [(65, 64), (1000, 64), (6399, 64), (6400, 128), (12_799, 128), (12_800, 256), (10**6, 256)],
)
def test_above_the_recipes_size_an_epoch_keeps_fifty_steps(num_images: int, size: int) -> None:
    chosen, reason, _ = choose(machine(), num_images=num_images)
    assert chosen == size
    assert ("fewer than 50 steps an epoch" in reason) == (size < 256)


def test_sizes_beyond_the_free_memory_are_not_tried() -> None:
    size, reason, sizes = choose(machine(), room=100 + 10 * 100)
    assert (size, sizes) == (64, [8, 16, 32, 64])
    assert "a step of 128 images would take" in reason


def test_a_step_that_fits_to_the_byte_fits() -> None:
    assert choose(machine(), room=100 + 10 * 128)[0] == 128
    assert choose(machine(), room=100 + 10 * 128 - 1)[0] == 64


def test_unknown_free_memory_is_no_limit() -> None:
    assert choose(machine(), room=None)[0] == 256


def test_the_size_is_halved_where_memory_runs_out_all_the_same() -> None:
    size, reason, _ = choose(machine(breaks=64))
    assert (size, reason) == (32, "memory runs out with 64")


def test_the_recipes_size_is_taken_where_a_doubled_batch_gains_nothing() -> None:
    size, reason, sizes = choose(machine(gain=1.02))
    assert (size, sizes) == (64, [8, 16])
    assert "from 8 to 16 images, images/s changes by +2 %" in reason
    assert choose(machine(gain=1.04))[0] == 256


def test_above_the_recipes_size_the_last_that_gained_is_taken() -> None:
    rises = {8: 100.0, 16: 190.0, 32: 300.0, 64: 400.0, 128: 450.0, 256: 455.0}
    assert choose(lambda size: Trial(size, rises[size] * 100, size))[0] == 128


def test_memory_limits_the_recipes_size_too() -> None:
    assert choose(machine(gain=1.0), room=100 + 10 * 20)[0] == 16


def test_slow_steps_are_predicted_not_taken() -> None:
    size, _, sizes = choose(machine(start=4.0, gain=1.5), usual=1024)
    # 16 run at 6 images a second, so that a try of 32 would take more than 8 seconds
    assert sizes == [8, 16]
    assert size == 1024  # whose memory is reckoned; more than the recipe's is not taken untried


@given(
    st.integers(2, 5000),
    st.integers(2, 10**6),
    st.integers(0, 10**5),
    st.integers(0, 10**4),
    st.integers(0, 10**7),
    st.floats(0.5, 2.1),
)
def test_the_size_is_within_its_limits_on_any_machine(
    usual, images, per_image, fixed, room, gain
) -> None:
    size, _, sizes = choose(machine(gain, per_image, fixed), usual, images, room)
    assert 2 <= size <= max(2, min(4 * usual, images))
    assert size <= min(usual, images) or (size == floor_power_of_two(size) and images // size >= 50)
    if len(sizes) > 1:
        assert size == 2 or fixed + per_image * size <= room


def test_a_real_choice_leaves_everything_but_the_batch_size(
    little_config: Make, little: Pair, reporter
) -> None:
    config = little_config("x")
    chosen = with_chosen_batch_size(config, little, reporter)
    size = chosen.recipe.batch_size
    assert size == 16  # larger ones would make less than 50 steps of the 60 images
    assert chosen == replace(config, recipe=replace(config.recipe, batch_size=size))
    assert [n for n in reporter.notes if n.startswith(f"Batch size {size} chosen: ")]
    assert f"Peak learning rate: {8e-3 * size / 512:.3g}" in reporter.notes[-1]
    assert not Path("runs").exists()
    assert not Path(config.output_dir).exists()


def test_a_step_of_more_images_takes_more_memory(little_config: Make, little: Pair) -> None:
    trial = build_trial(little_config("x"), little, CPU)
    batch_size._measure_free_memory(trial)
    tries = [batch_size._try(trial.with_batch_size(size)) for size in (64, 256)]
    assert tries[1].memory_bytes > tries[0].memory_bytes + 2**22


def test_names_of_the_weights_change_nothing_that_is_measured(
    little_config: Make, little: Pair
) -> None:
    named = replace(little_config("x"), weights="w.pth", classes="names.txt")
    assert build_trial(named, little, CPU).context.num_classes == 10


@pytest.mark.parametrize("mode", ["features", "features+hard"])
def test_a_teachers_features_are_in_the_measured_steps(
    distilled: Make, little: Pair, mode: str
) -> None:
    trial = build_trial(distilled("x", mode=mode), little, CPU)
    assert trial.teacher_network.feature_pool == "auto"
    assert trial.context.objective.features.projector[0].reflections.numel() > 0
    assert trial.teacher_network.gives_logits == (mode != "features")


def test_the_teacher_is_in_the_measured_steps(distilled: Make, little: Pair) -> None:
    for sees, views in (("unmixed", 2), ("mixed", 0)):
        trial = build_trial(distilled("x", teacher_input=sees, views=views), little, CPU)
        computed: list[int] = []
        trial.teacher_network.model.register_forward_hook(
            lambda *_, computed=computed: computed.append(1)
        )
        trial.step(trial.batch())
        assert computed == [1]


def read_losses(run: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses = [(r["step"], r["loss"]) for r in records if "step" in r and "loss" in r]
    assert losses
    return losses


def test_a_chosen_size_gives_the_run_of_that_number(little_config: Make, little: Pair) -> None:
    """The same seed gives the same weights, whether the size was chosen or passed."""
    config = little_config("chosen")
    config = replace(config, recipe=replace(config.recipe, epochs=1))
    chosen = start_or_resume(
        config,
        auto=False,
        datasets=little,
        reporter=SilentReporter(),
        choose=lambda c: with_chosen_batch_size(c, little, SilentReporter()),
    )
    size = read_toml(chosen.run / "run.toml")["recipe"]["batch_size"]
    named = replace(
        config,
        output_dir=str(chosen.run.with_name("named")),
        recipe=replace(config.recipe, batch_size=size),
    )
    torch.manual_seed(123)
    other = run_training(named, datasets=little)
    ours, theirs = (load_tensors(r.run / "model.safetensors") for r in (chosen, other))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert read_losses(chosen.run) == read_losses(other.run)


def test_an_unfinished_run_goes_on_with_the_size_that_was_chosen(
    little_config: Make, little: Pair
) -> None:
    config = replace(little_config("x"), output_dir="")
    config = replace(config, recipe=replace(config.recipe, epochs=1))
    begun = start_or_resume(
        config,
        auto=True,
        datasets=little,
        reporter=SilentReporter(),
        choose=lambda c: replace(c, recipe=replace(c.recipe, batch_size=30)),
    ).run
    (begun / "result.json").unlink()

    def fail(_: TrainConfig) -> TrainConfig:
        raise AssertionError("an unfinished run has a size")

    resumed = start_or_resume(
        config, auto=True, datasets=little, reporter=SilentReporter(), choose=fail
    )
    assert resumed.run == begun
    other = replace(config, seed=5)
    new = start_or_resume(
        other, auto=True, datasets=little, reporter=SilentReporter(), choose=lambda c: c
    )
    assert new.run != begun


def test_unreadable_images_are_not_in_the_trial_batch(
    little_config: Make, little: Pair, image_folder
) -> None:
    files = sorted(image_folder({"a": 10, "b": 10}).rglob("*.png"))
    for file in files[3:]:
        file.write_bytes(b"no image")
    train = FileDataset([str(f) for f in files], np.arange(20) // 10, ("a", "b"))
    some = build_trial(little_config("x"), (train, little[1]), CPU)
    batch = some.batch()
    assert {key.index for key in batch.keys} <= {0, 1, 2}
    assert (len(batch.keys), len(batch.images)) == (10, 10)  # two steps an epoch
    files[0].write_bytes(b"")
    files[1].write_bytes(b"")
    files[2].write_bytes(b"")
    with pytest.raises(DataError, match="None of 20 images can be read; the first: "):
        some.batch()


def test_auto_is_refused_for_several_processes(
    little_config: Make, little: Pair, monkeypatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="for one process"):
        with_chosen_batch_size(little_config("x"), little, SilentReporter())


def test_a_tiny_data_set_is_a_batch(little_config: Make, little: Pair) -> None:
    pair = (select(little[0], range(0, 60, 20)), little[1])
    assert choose_batch_size(little_config("x"), pair, CPU, SilentReporter()).batch_size == 3


def test_the_command_line_plans_with_the_number(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = [
        "train",
        "digits",
        "--batch-size",
        "auto",
        "--dry-run",
        "--format",
        "json",
        "--set",
        "batch_size=8",
    ]
    result = CliRunner().invoke(app, line)
    plan = json.loads(result.stdout)
    assert plan["config"]["recipe"]["batch_size"] in (8, 16, 32)
    assert plan["batch_size"] == plan["config"]["recipe"]["batch_size"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["autos", "0", "-3", "1.5", ""])
def test_an_invalid_size_is_a_usage_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["deitctl", "train", "--batch-size", text])
    with pytest.raises(SystemExit) as stop:
        run_commands()  # not `main`, whose thread would end this process at the signals of other tests
    assert stop.value.code == 2

"""The batch size is the largest that memory, recipe and data allow and that gains; nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deitctl.cli.app import app
from deitctl.config import TrainConfig
from deitctl.data.dataset import FileDataset, ImageDataset, select
from deitctl.device import choose_device
from deitctl.errors import ConfigError, DataError
from deitctl.events import SilentReporter
from deitctl.models.checkpoint_io import load_tensors
from deitctl.profiling import batch_size
from deitctl.profiling.batch_size import (
    Trial,
    choose_batch_size,
    power_of_two,
    search,
    with_chosen_batch,
)
from deitctl.profiling.trial_run import rehearse
from deitctl.settings import read_toml
from deitctl.training.launch import run_training, start_or_resume

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
CPU = choose_device("cpu", "fp32")


def machine(
    gain: float = 2.0, a_image: int = 10, fixed: int = 100, breaks: int = 10**9, start: float = 1e4
):
    """A device whose images/s rises by a factor with each doubling, and whose steps take memory by a straight line."""

    def attempt(size: int) -> Trial | None:
        if size >= breaks:
            return None
        return Trial(
            size, start * gain ** (power_of_two(size).bit_length() - 4), fixed + a_image * size
        )

    return attempt


def choose(
    attempt, usual: int = 64, num_images: int = 10**6, room: int | None = 10**9
) -> tuple[int, str, list[int]]:
    size, why, tries = search(attempt, usual, num_images, room, SilentReporter())
    return size, why, [t.size for t in tries]


def test_at_most_four_times_the_recipes() -> None:
    assert choose(machine())[0] == 256
    assert "within 4 times the recipe's 64" in choose(machine())[1]
    assert [choose(machine(), usual=usual)[0] for usual in (48, 96, 3)] == [
        128,
        256,
        8,
    ]  # 192, 384 and 12 are no powers of two


def test_at_most_the_data() -> None:
    size, why, tries = choose(machine(), images=60)
    assert (size, tries) == (60, [8, 16, 32])  # as without auto: not 32 of the 60
    assert "60 training images" in why
    assert choose(machine(), images=5)[0] == 5
    assert choose(machine(), images=2)[0] == 2


@pytest.mark.parametrize(
    ("images", "size"),
    [(65, 64), (1000, 64), (6399, 64), (6400, 128), (12_799, 128), (12_800, 256), (10**6, 256)],
)
def test_above_the_recipes_size_an_epoch_keeps_fifty_steps(num_images: int, size: int) -> None:
    found, why, _ = choose(machine(), num_images=num_images)
    assert found == size
    assert ("less than 50 steps an epoch" in why) == (size < 256)


def test_what_memory_allows_is_reckoned_before_it_is_tried() -> None:
    size, why, tries = choose(machine(), room=100 + 10 * 100)
    assert (size, tries) == (64, [8, 16, 32, 64])
    assert "a step of 128 images would take" in why


def test_a_step_that_fits_to_the_byte_fits() -> None:
    assert choose(machine(), room=100 + 10 * 128)[0] == 128
    assert choose(machine(), room=100 + 10 * 128 - 1)[0] == 64


def test_unknown_memory_limits_nothing() -> None:
    assert choose(machine(), room=None)[0] == 256


def test_memory_that_runs_out_all_the_same_halves() -> None:
    size, why, _ = choose(machine(breaks=64))
    assert (size, why) == (32, "memory runs out with 64")


def test_where_twice_the_images_gain_nothing_the_recipes_size_is_kept() -> None:
    size, why, tries = choose(machine(gain=1.02))
    assert (size, tries) == (64, [8, 16])
    assert "from 8 to 16 images images/s changes by +2 %" in why
    assert choose(machine(gain=1.04))[0] == 256


def test_above_the_recipes_size_the_last_that_gained_is_taken() -> None:
    rises = {8: 100.0, 16: 190.0, 32: 300.0, 64: 400.0, 128: 450.0, 256: 455.0}
    assert choose(lambda size: Trial(size, rises[size] * 100, size))[0] == 128


def test_memory_goes_before_the_recipes_size() -> None:
    assert choose(machine(gain=1.0), room=100 + 10 * 20)[0] == 16


def test_dear_steps_are_reckoned_not_taken() -> None:
    size, _, tries = choose(machine(start=4.0, gain=1.5), usual=1024)
    assert tries == [
        8,
        16,
    ]  # 16 run at 6 images a second, so that a try of 32 would take more than 8 seconds
    assert size == 1024  # whose memory is reckoned; more than the recipe's is not taken untried


@given(
    st.integers(2, 5000),
    st.integers(2, 10**6),
    st.integers(0, 10**5),
    st.integers(0, 10**4),
    st.integers(0, 10**7),
    st.floats(0.5, 2.1),
)
def test_whatever_the_machine_the_size_keeps_its_promises(
    usual, images, a_image, fixed, room, gain
) -> None:
    size, _, tries = choose(machine(gain, a_image, fixed), usual, images, room)
    assert 2 <= size <= max(2, min(4 * usual, images))
    assert size <= min(usual, images) or (size == power_of_two(size) and images // size >= 50)
    if len(tries) > 1:
        assert size == 2 or fixed + a_image * size <= room


def test_a_real_choice_leaves_everything_but_the_batch_size(
    little_config: Make, little: Pair, reporter
) -> None:
    config = little_config("x")
    chosen = with_chosen_batch(config, little, reporter)
    size = chosen.recipe.batch_size
    assert size == 16  # larger ones would make less than 50 steps of the 60 images
    assert chosen == replace(config, recipe=replace(config.recipe, batch_size=size))
    assert [n for n in reporter.notes if n.startswith(f"Batch size {size}, chosen here: ")]
    assert f"is {8e-3 * size / 512:.3g} at its highest" in reporter.notes[-1]
    assert not Path("runs").exists()
    assert not Path(config.output_dir).exists()


def test_a_step_of_more_images_takes_more_memory(little_config: Make, little: Pair) -> None:
    rehearsal = rehearse(little_config("x"), little, CPU)
    batch_size._room(rehearsal)
    tries = [batch_size._try(rehearsal.at(size)) for size in (64, 256)]
    assert tries[1].memory > tries[0].memory + 2**22


def test_the_teacher_is_in_the_measured_steps(distilled: Make, little: Pair) -> None:
    for sees, views in (("unmixed", 2), ("mixed", 0)):
        rehearsal = rehearse(distilled("x", teacher_input=sees, views=views), little, CPU)
        asked: list[int] = []
        rehearsal.teacher.model.register_forward_hook(lambda *_, asked=asked: asked.append(1))
        assert rehearsal.step(rehearsal.batch())
        assert asked == [1]


def test_the_run_is_that_of_the_number_named(little_config: Make, little: Pair) -> None:
    """The same seed gives the same weights, whether the size was chosen or named."""
    config = little_config("chosen")
    config = replace(config, recipe=replace(config.recipe, epochs=1))
    chosen = start_or_resume(
        config,
        auto=False,
        datasets=little,
        reporter=SilentReporter(),
        choose=lambda c: with_chosen_batch(c, little, SilentReporter()),
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
    assert chosen.last["train"] == other.last["train"]


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

    def again(_: TrainConfig) -> TrainConfig:
        raise AssertionError("a run that is found has a size")

    found = start_or_resume(
        config, auto=True, datasets=little, reporter=SilentReporter(), choose=again
    )
    assert found.run == begun
    other = replace(config, seed=5)
    new = start_or_resume(
        other, auto=True, datasets=little, reporter=SilentReporter(), choose=lambda c: c
    )
    assert new.run != begun


def test_images_that_cannot_be_read_are_not_in_the_batch(
    little_config: Make, little: Pair, image_folder
) -> None:
    files = sorted(image_folder({"a": 10, "b": 10}).rglob("*.png"))
    for file in files[3:]:
        file.write_bytes(b"no image")
    train = FileDataset([str(f) for f in files], np.arange(20) // 10, ("a", "b"))
    some = rehearse(little_config("x"), (train, little[1]), CPU)
    batch = some.batch()
    assert {key.index for key in batch.keys} <= {0, 1, 2}
    assert (len(batch.keys), len(batch.images)) == (16, 16)
    files[0].write_bytes(b"")
    files[1].write_bytes(b"")
    files[2].write_bytes(b"")
    with pytest.raises(DataError, match="Not one of 20 images can be read; the first: "):
        some.batch()


def test_several_processes_do_not_choose(little_config: Make, little: Pair, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="for one process"):
        with_chosen_batch(little_config("x"), little, SilentReporter())


def test_a_tiny_data_set_is_a_batch(little_config: Make, little: Pair) -> None:
    pair = (select(little[0], range(0, 60, 20)), little[1])
    assert choose_batch_size(little_config("x"), pair, CPU, SilentReporter()).size == 3


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
    assert plan["plan"]["batch size"] == plan["config"]["recipe"]["batch_size"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["autos", "0", "-3", "1.5", ""])
def test_what_is_no_size_is_a_wrong_command_line(text) -> None:
    assert CliRunner().invoke(app, ["train", "--batch-size", text]).exit_code == 2

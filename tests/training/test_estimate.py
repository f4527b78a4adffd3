"""What a run will take is told before its first step, and telling it changes nothing of the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from deitctl.config import ProgressiveResize, TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.subsets import select
from deitctl.device import choose_device
from deitctl.events import SilentReporter
from deitctl.training import estimate, step
from deitctl.training.build import TrainSetup, build_student, build_training
from deitctl.training.estimate import (
    Speed,
    Work,
    count_work,
    describe_training,
    estimate_seconds,
    expect_seconds,
    fits_copy,
    format_duration,
    measure_speed,
)
from deitctl.training.launch import resume, run_training

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
SPEED = Speed(load_image=0.1, train_image=0.2, step=1.0, evaluate_image=0.05, teacher_image=0.3)
WORK = Work(num_steps=10, num_trained=100, num_evaluated=20, num_taught=50)


def build(config: TrainConfig, data: Pair) -> TrainSetup:
    silent = SilentReporter()
    student, device = build_student(config, data[0], silent), choose_device("cpu", config.precision)
    return build_training(config, student, *data, device=device, reporter=silent)


@pytest.mark.parametrize(
    ("workers", "cores", "shares_cores", "passes"),
    [
        (0, 4, True, 100 * 0.3 + 20 * 0.15),  # one after the other
        (2, 4, False, 100 * 0.2 + 20 * 0.05),  # two loaders keep up
        (1, 4, False, 100 * 0.2 + 20 * 0.1),  # one does not when validating
        (2, 4, True, 100 * 0.225 + 20 * 0.075),  # and their work is done by the same cores
    ],
)
def test_durations_by_hand(workers: int, cores: int, shares_cores: bool, passes: float) -> None:
    seconds = expect_seconds(SPEED, WORK, workers=workers, cores=cores, shares_cores=shares_cores)
    assert seconds == pytest.approx(passes + 50 * 0.3 + 10 * 1.0)


def test_work_is_what_is_left_of_a_run(little_config: Make, little: Pair) -> None:
    """By hand: 60 images in batches of 16 are 4 steps; the EMA is validated too, the end once."""
    config, num_val = little_config("x"), len(little[1].labels)
    setup = build(config, little)
    assert count_work(setup) == Work(
        num_steps=12,
        num_trained=180,
        num_evaluated=(3 + 1) * num_val,
        num_evaluated_twice=3 * num_val,
    )
    setup.state.progress.step, setup.state.progress.epoch = 6, 1
    assert count_work(setup) == Work(
        num_steps=6,
        num_trained=90,
        num_evaluated=(2 + 1) * num_val,
        num_evaluated_twice=2 * num_val,
    )
    resize = ProgressiveResize(scale=0.5, fraction=0.7)
    smaller = replace(config, recipe=replace(config.recipe, progressive_resize=resize))
    # two early epochs, of a quarter of the pixels
    assert count_work(build(smaller, little)).num_trained == pytest.approx(60 + 2 * 60 / 4)


@pytest.mark.parametrize("model", ["deit_tiny", "test_resnet"])
def test_a_run_that_was_measured_ends_in_the_same_bytes(
    model: str, little_config: Make, little: Pair, reporter
) -> None:
    config = little_config("measured", model=model)
    config = replace(config, recipe=replace(config.recipe, epochs=1))
    measured = run_training(config, datasets=little, reporter=reporter).run
    silent = run_training(replace(config, output_dir="silent"), datasets=little).run
    for file in ("model", "checkpoint/model", "checkpoint/optimizer"):
        first, second = (root / f"{file}.safetensors" for root in (measured, silent))
        assert first.read_bytes() == second.read_bytes(), file
    (told,) = [note for note in reporter.notes if note.startswith("Training")]
    assert f"Training {model} on 60 images of 10 classes (0, 1, 2, 3, 4 and 5 more)" in told
    assert "1 epoch of 4 steps of 16 images, 4 steps in all; about " in told
    resume(measured, datasets=little, reporter=reporter)
    assert sum(note.startswith("Training") for note in reporter.notes) == 1  # nothing is left


def test_measuring_is_short_and_leaves_the_state_alone(little_config: Make, little: Pair) -> None:
    setup, start = build(little_config("x"), little), time.monotonic()
    before = {k: v.clone() for k, v in setup.state.model.state_dict().items()}
    generator = torch.get_rng_state()
    speed = measure_speed(setup)
    assert speed is not None
    assert time.monotonic() - start < 30
    assert speed.train_image > speed.evaluate_image > 0
    assert all(torch.equal(v, before[k]) for k, v in setup.state.model.state_dict().items())
    assert all(p.grad is None for p in setup.state.model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert setup.state.progress.step == 0


def test_what_cannot_be_measured_has_no_duration(
    little_config: Make, little: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = select(little[0], range(1)), little[1]
    assert estimate_seconds(build(little_config("x"), one)) is None
    setup = build(little_config("x"), little)
    compiled = replace(setup, config=replace(setup.config, compile="on"))
    assert estimate_seconds(compiled) is None
    assert describe_training(setup, None).endswith("12 steps in all.")

    def run_out(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(step, "compute_losses", run_out)  # even with two images
    assert estimate_seconds(setup) is None
    monkeypatch.setattr(estimate, "copy", None)  # without memory there is no copy
    monkeypatch.setattr(estimate, "read_free_memory", lambda _: 2**20)
    assert estimate_seconds(setup) is None


def test_a_copy_fits_if_it_takes_half_of_the_free_memory_at_most(
    little_config: Make, little: Pair
) -> None:
    """By hand: weights, their average, gradients and two moments of 4 bytes a number; a step's count for each."""
    setup = build(little_config("x"), little)
    needed = 2 * 4 * sum(5 * p.numel() + 1 for p in setup.state.model.parameters())
    assert fits_copy(setup, needed)
    assert not fits_copy(setup, needed - 1)
    assert fits_copy(setup, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (12.4, "12 s"),
        (43, "45 s"),
        (100, "2 min"),
        (1500, "25 min"),
        (5400, "1 h 30 min"),
        (12_100, "3 h 20 min"),
        (172_900, "2 days"),
        (200_000, "2 days 8 h"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text

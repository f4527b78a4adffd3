"""Hints follow from measurements, at their thresholds; step times and expectations are computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from deitctl.config import TrainConfig
from deitctl.profiling.bench_result import (
    BenchSetup,
    Expected,
    Hint,
    Stage,
    count_teacher_epochs,
    estimate_run,
    find_bottlenecks,
    split_step_time,
)
from deitctl.profiling.peak import PeakThroughput

EVEN = PeakThroughput(
    flops_per_second={"fp32": 100.0},
    copy_bytes_per_second=1.0,
    num_threads=4,
    num_cores=8,
)
SETUP = BenchSetup(
    model="deit_tiny",
    teacher=None,
    teacher_input=None,
    data="digits",
    num_train_images=60,
    num_val_images=30,
    num_classes=10,
    median_side_px=32.0,
    recipe="digits",
    epochs=3,
    img_size_px=32,
    batch_size=16,
    batch_size_reason=None,
    measured_batch_size=16,
    peak_lr=1e-3,
    num_workers=2,
    device="cpu",
    precision="fp32",
)
"""Batches of 16 of 60 images, 30 for validation, 3 epochs, 2 workers."""


def stages(**seconds: float | None) -> dict[str, Stage]:
    """Stages that take so many seconds an image; None for one that failed."""
    usual: dict[str, float | None] = {
        "train_view": 0.02,
        "eval_view": 0.03,
        "loader": 0.01,
        "forward": 0.01,
        "backward": 0.02,
        "optimizer": 0.004,
        "ema_update": 0.002,
        "step_cached_batch": 0.04,
        "end_to_end": 0.05,
        "evaluation": 0.01,
    }
    return {
        name: Stage(name=name, images_per_second=None if s is None else 1 / s)
        for name, s in (usual | seconds).items()
    }


@pytest.fixture(autouse=True)
def _all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.fixture
def config(little_config: Callable[..., TrainConfig]) -> TrainConfig:
    return little_config("x")


@pytest.fixture
def distill_config(distilled: Callable[..., TrainConfig]) -> Callable[..., TrainConfig]:
    """The same with a teacher of 2 views, in 2 repeats."""
    return lambda **changes: distilled("x", **changes)


def estimate(
    config: TrainConfig, setup: BenchSetup = SETUP, wait: float = 0.0, **seconds: float
) -> Expected:
    measured = stages(**seconds)
    per_step = setup.measured_batch_size / setup.batch_size
    expected = estimate_run(
        setup, config, measured, split_step_time(measured, wait, per_step=per_step)
    )
    assert expected is not None
    return expected


def hints(
    config: TrainConfig,
    setup: BenchSetup = SETUP,
    *,
    wait: float = 0.0,
    peak: PeakThroughput = EVEN,
    **seconds: float,
) -> list[Hint]:
    measured = stages(**seconds)
    step_time = split_step_time(measured, wait, per_step=1.0)
    return list(find_bottlenecks(setup, config, peak, measured, step_time))


def test_step_time_by_hand() -> None:
    times = split_step_time(stages(), 0.006, per_step=1.0)
    assert times == pytest.approx(
        {
            "forward": 0.01,
            "backward": 0.02,
            "optimizer": 0.004,
            "ema_update": 0.002,
            "overhead": 0.004,  # 0.04 - 0.01 - 0.02 - 0.004 - 0.002
            "data_wait": 0.006,
            "loader_contention": 0.004,  # 0.05 - 0.006 - 0.04
        }
    )
    assert sum(times.values()) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("seconds", "wait"),
    [
        ({"step_cached_batch": 0.03}, 0.0),  # shorter than forward and backward pass together
        ({"end_to_end": 0.03}, 0.0),
        ({"end_to_end": 0.03}, 0.006),
        ({"step_cached_batch": 0.03}, 0.05),
        ({"end_to_end": 0.01}, 0.02),  # nothing but waiting
    ],
)
def test_parts_that_noise_makes_longer_than_the_whole_share_it(seconds, wait) -> None:
    measured = stages(**seconds)
    times = split_step_time(measured, wait, per_step=1.0)
    assert min(times.values()) >= 0
    assert sum(times.values()) == pytest.approx(measured["end_to_end"].seconds)
    if times["forward"]:
        assert times["backward"] / times["forward"] == pytest.approx(2)


@pytest.mark.parametrize("failed", ["end_to_end", "step_cached_batch", "forward", "ema_update"])
def test_a_failed_stage_leaves_no_step_time_expectation_or_hint(failed, config) -> None:
    measured = stages(**{failed: None})
    step_time = split_step_time(measured, 0.02, per_step=1.0)
    assert step_time == {}
    assert estimate_run(SETUP, config, measured, step_time) is None
    assert list(find_bottlenecks(SETUP, config, EVEN, measured, step_time)) == []


def test_epoch_and_run_by_hand(config) -> None:
    expected = estimate(config)
    # 60 images at 0.05 s; 30 that two models score in 0.01 s each, and whose views take 0.03 s in 2 workers
    assert expected.epoch_s == pytest.approx(60 * 0.05 + 30 * 0.02)
    assert expected.run_s == pytest.approx(3 * expected.epoch_s)
    assert expected.images_per_second == pytest.approx(20)
    assert expected.later_epoch_s is None


def test_per_step_costs_are_divided_by_the_recipes_batch_size(config) -> None:
    smaller = replace(SETUP, measured_batch_size=4)
    times = split_step_time(stages(), 0.0, per_step=4 / 16)
    assert (times["optimizer"], times["ema_update"]) == pytest.approx((0.001, 0.0005))
    expected = estimate(config, smaller)
    assert expected.images_per_second == pytest.approx(1 / (0.05 - 0.006 * (1 - 4 / 16)))


def test_without_workers_views_and_network_take_turns(config) -> None:
    expected = estimate(config, replace(SETUP, num_workers=0))
    assert expected.epoch_s == pytest.approx(60 * 0.05 + 30 * 0.05)


def test_cached_teacher_targets_make_later_epochs_faster(distill_config) -> None:
    seconds = {"teacher": 0.02, "step_cached_batch": 0.06, "end_to_end": 0.07}
    expected = estimate(distill_config(), **seconds)
    assert expected.teacher_epochs == 1
    assert expected.epoch_s - expected.later_epoch_s == pytest.approx(60 * 0.02)
    assert expected.run_s == pytest.approx(expected.epoch_s + 2 * expected.later_epoch_s)


def test_the_loader_bounds_later_epochs(distill_config) -> None:
    seconds = {"teacher": 0.02, "step_cached_batch": 0.06, "end_to_end": 0.07, "loader": 0.065}
    expected = estimate(distill_config(), wait=0.01, **seconds)
    assert expected.epoch_s - expected.later_epoch_s == pytest.approx(60 * 0.005)


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({"views": 3}, 2),
        ({"views": 0}, None),
        ({"teacher_cache": "off"}, None),
        ({"teacher_input": "mixed", "views": 0}, None),
    ],
)
def test_teacher_epochs_are_views_over_repeats(changes, epochs, distill_config) -> None:
    assert count_teacher_epochs(distill_config(**changes)) == epochs


def test_no_hint_without_a_bottleneck(config) -> None:
    assert hints(config, wait=0.004) == []


def test_data_wait_asks_for_the_workers_that_feed_a_step(config) -> None:
    (hint,) = hints(config, wait=0.006, train_view=0.13, loader=0.065)
    assert (hint.bottleneck, hint.change) == ("data", "--workers 4")  # 0.13 / 0.04 = 3.25
    assert "waits for data 12 % of its time" in hint.message


def test_more_workers_than_cores_are_not_recomfixed(config) -> None:
    (hint,) = hints(config, wait=0.02, train_view=0.4)
    assert hint.change == "more than the 8 cores here: 10"


@pytest.mark.parametrize(("side", "packed"), [(45.0, True), (44.0, False)])
def test_packing_is_recomfixed_for_large_images(side, packed, config) -> None:
    setup = replace(SETUP, median_side_px=side)  # 37 pixels, 8 / 7 of 32, times 1.2 is 44.4
    (hint,) = hints(config, setup, wait=0.02, train_view=0.13)
    assert ("deitctl pack DATA OUT --max-size 37" in hint.change) == packed


def test_a_slow_teacher_is_a_bottleneck(distill_config) -> None:
    seconds = {"teacher": 0.02, "step_cached_batch": 0.06, "end_to_end": 0.07}
    (hint,) = hints(distill_config(), **seconds)
    assert hint.message == "The teacher takes 29 % of the training's time."
    assert hint.change.startswith("deitctl cache-teacher")
    (mixed,) = hints(distill_config(teacher_input="mixed", views=0), **seconds)
    assert mixed.change.startswith("--teacher-input unmixed --views 8")
    (always,) = hints(distill_config(views=8), **seconds)
    assert always.change.startswith("fewer --views: with 8")
    assert not hints(distill_config(), teacher=0.005, step_cached_batch=0.045, end_to_end=0.055)


def test_a_faster_precision_is_recomfixed(config) -> None:
    flops = {"fp32": 100.0, "bf16": 350.0}
    (hint,) = hints(config, peak=replace(EVEN, flops_per_second=flops))
    assert hint == Hint(
        bottleneck="compute",
        message="Matrix products are 3.5 times as fast in bf16 as in fp32.",
        change="--precision bf16",
    )
    assert hints(config, peak=replace(EVEN, flops_per_second=flops | {"bf16": 119.0})) == []


def test_a_variable_that_keeps_cores_idle_is_named(config, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    (hint,) = hints(config)
    assert hint.message == "OMP_NUM_THREADS=4: torch uses 4 of 8 cores."
    assert hint.change == "unset OMP_NUM_THREADS"
    assert hints(config, peak=replace(EVEN, num_threads=8)) == []

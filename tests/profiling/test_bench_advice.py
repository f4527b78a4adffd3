"""Advice follows from numbers, at the thresholds and not below them; parts and expectations are computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import Source
from deitctl.device import choose_device
from deitctl.profiling.bench_advice import advise, epochs_with_teacher, expected_of, parts_of
from deitctl.profiling.bench_result import Advice, Stage
from deitctl.profiling.clock import Timing
from deitctl.profiling.peak import PeakThroughput
from deitctl.profiling.trial_run import TrialRun, rehearse

Make = Callable[..., TrainConfig]
Pair = tuple[Source, Source]
CPU = choose_device("cpu", "fp32")
EVEN = PeakThroughput(flops={"fp32": 100.0}, copy=1.0, threads=4, cores=8, all_cores=None)


def stages(waited: float = 0.0, **seconds: float | None) -> dict[str, Stage]:
    """Stages that take so many seconds an image; None for one that failed."""
    usual: dict[str, float | None] = {
        "view": 0.02,
        "eval_transform": 0.03,
        "loader": 0.01,
        "forward": 0.01,
        "backward": 0.02,
        "optimizer": 0.004,
        "average": 0.002,
        "step": 0.036,
        "loop_at_hand": 0.04,
        "loop": 0.05,
        "evaluation": 0.01,
    }
    return {
        n: Stage(
            name=n,
            title=n,
            timing=None if s is None else Timing(1.0, (s,)),
            waited=waited if n == "loop" else 0.0,
        )
        for n, s in (usual | seconds).items()
    }


def given(job: TrialRun, found: dict[str, Stage], ceilings: PeakThroughput = EVEN) -> list[Advice]:
    return list(advise(job, CPU, ceilings, found, parts_of(job, found)))


@pytest.fixture
def job(little_config: Make, little: Pair) -> TrialRun:
    """Batches of 16 of 60 images, 30 for validation, 3 epochs, 2 loader processes."""
    return replace(rehearse(little_config("x"), little, CPU), workers=2)


@pytest.fixture
def taught(distilled: Make, little: Pair) -> Callable[..., TrialRun]:
    """The same with a teacher of 2 views, in 2 repeats."""
    return lambda **changes: replace(rehearse(distilled("x", **changes), little, CPU), workers=2)


def test_parts_by_hand(job) -> None:
    parts = parts_of(job, stages(waited=0.006))
    assert list(parts) == [
        "forward",
        "backward",
        "optimizer",
        "average",
        "loop",
        "waiting",
        "slowed",
    ]
    assert parts["loop"] == pytest.approx(0.004)  # 0.04 less 0.01, 0.02, 0.004 and 0.002
    assert parts["slowed"] == pytest.approx(0.004)  # 0.05 less 0.006 and 0.04
    assert sum(parts.values()) == pytest.approx(0.05)


@pytest.mark.parametrize("failed", ["loop", "loop_at_hand", "forward", "average"])
def test_where_a_part_could_not_be_measured_there_are_none(failed, job) -> None:
    found = stages(**{failed: None})
    assert parts_of(job, found) == {}
    assert expected_of(job, found, {}) == {}
    assert given(job, found) == []


def test_an_epoch_by_hand(job) -> None:
    found = stages()
    expected = expected_of(job, found, parts_of(job, found))
    # 3 steps of 16 images at 0.05 s; 30 images twice, whose views take 0.03 s in 2 processes
    assert expected["epoch_seconds"] == pytest.approx(48 * 0.05 + 2 * 30 * 0.015)
    assert expected["recipe_seconds"] == pytest.approx(3 * expected["epoch_seconds"])
    assert expected["images_per_second"] == pytest.approx(20)


def test_what_a_step_does_once_is_shared_by_the_recipes_batch(job) -> None:
    found = stages()
    parts = parts_of(job.at(4), found)  # measured on 4 images, 16 wanted
    assert (parts["optimizer"], parts["average"]) == (pytest.approx(0.001), pytest.approx(0.0005))
    expected = expected_of(job.at(4), found, parts)
    assert expected["images_per_second"] == pytest.approx(1 / (0.05 - 0.006 * (1 - 4 / 16)))


def test_without_processes_views_and_network_take_turns(job) -> None:
    found = stages()
    expected = expected_of(replace(job, workers=0), found, parts_of(job, found))
    assert expected["epoch_seconds"] == pytest.approx(48 * 0.05 + 2 * 30 * 0.04)


def test_a_teacher_that_has_said_all_takes_no_more_time(taught) -> None:
    job, found = taught(), stages(teacher=0.02, loop_at_hand=0.06, loop=0.07)
    expected = expected_of(job, found, parts_of(job, found))
    assert epochs_with_teacher(job) == expected["epochs_with_teacher"] == 1
    assert expected["epoch_seconds"] - expected["later_epoch_seconds"] == pytest.approx(48 * 0.02)
    assert expected["recipe_seconds"] == pytest.approx(
        expected["epoch_seconds"] + 2 * expected["later_epoch_seconds"]
    )
    slow = stages(teacher=0.02, loop_at_hand=0.06, loop=0.07, loader=0.065, waited=0.01)
    limited = expected_of(
        job, slow, parts_of(job, slow)
    )  # the loader gives no more without a teacher
    assert limited["epoch_seconds"] - limited["later_epoch_seconds"] == pytest.approx(48 * 0.005)


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({"views": 3}, 2),
        ({"views": 0}, None),
        ({"teacher_cache": "off"}, None),
        ({"teacher_input": "mixed", "views": 0}, None),
    ],
)
def test_epochs_until_a_teacher_has_said_all(changes, epochs, taught) -> None:
    assert epochs_with_teacher(taught(**changes)) == epochs


def test_nothing_is_said_where_nothing_is_wrong(job) -> None:
    assert given(job, stages(waited=0.004)) == []


def test_waiting_asks_for_as_many_processes_as_would_feed_it(job) -> None:
    (advice,) = given(job, stages(waited=0.006, view=0.13, loader=0.065))
    assert advice.text.endswith(
        "so 4 loader processes would feed it: --workers 4."
    )  # 0.13 / 0.04 = 3.25
    assert "12 % of its time" in advice.text
    assert advice.numbers["waiting"] == pytest.approx(0.12)


def test_more_processes_than_cores_are_not_recommended(job) -> None:
    (advice,) = given(job, stages(waited=0.02, view=0.4))
    assert "--workers" not in advice.text
    assert advice.text.endswith("so 10 loader processes would feed it, on 8 cores.")


def test_smaller_images_are_recommended_where_they_were_faster(job) -> None:
    slow = {"view": 0.13, "loader": 0.065}
    texts = [a.text for a in given(job, stages(waited=0.02, **slow, small_view=0.05))]
    assert texts[1].startswith(
        "Stored 37 pixels high the same images are rendered 2.6 times as fast: deitctl pack"
    )
    assert len(given(job, stages(waited=0.02, **slow, small_view=0.12))) == 1
    assert given(job, stages(small_view=0.001)) == []


def test_a_teacher_that_takes_long_is_said(taught) -> None:
    found = stages(teacher=0.02, loop_at_hand=0.06, loop=0.07)
    (advice,) = given(taught(), found)
    assert advice.text.startswith("The teacher takes 29 % of the training's time: after 1 epochs")
    (mixed,) = given(taught(teacher_input="mixed", views=0), found)
    assert "--teacher-sees view" in mixed.text
    assert given(taught(), stages(teacher=0.005, loop_at_hand=0.045, loop=0.055)) == []


def test_a_faster_precision_is_said(job) -> None:
    (advice,) = given(job, stages(), ceilings=replace(EVEN, flops={"fp32": 100.0, "bf16": 350.0}))
    assert (
        advice.text == "Matrix products are 3.5 times as fast in bf16 as in fp32: --precision bf16."
    )
    assert given(job, stages(), ceilings=replace(EVEN, flops={"fp32": 100.0, "bf16": 119.0})) == []


def test_idle_cores_are_said_with_the_variable_that_keeps_them_idle(job, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (advice,) = given(job, stages(), ceilings=replace(EVEN, all_cores=190.0))
    assert (
        "4 of 8 cores, with all a matrix product is 1.9 times as fast: OMP_NUM_THREADS is 1"
        in advice.text
    )
    monkeypatch.delenv("OMP_NUM_THREADS")
    (advice,) = given(job, stages(), ceilings=replace(EVEN, all_cores=190.0))
    assert advice.text.endswith("set OMP_NUM_THREADS to 8.")
    assert given(job, stages(), ceilings=replace(EVEN, all_cores=110.0)) == []


def test_larger_batches_that_gain_are_said(job) -> None:
    (advice,) = given(job, stages(double_step=0.03))
    assert advice.text.startswith(
        "Steps of 32 images do 20 % more images/s than of 16: --batch-size 32"
    )
    assert given(job, stages(double_step=0.035)) == []
    assert given(job.at(4), stages(double_step=0.03)) == []  # measured below the recipe's size

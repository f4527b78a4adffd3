"""A step that goes wrong is noticed at that step, and nothing else is."""

from __future__ import annotations

import math

import pytest
import torch

from deitctl.data.samplers import SampleKey
from deitctl.training.monitor import SETTLED, Incident, LossMonitor, Observation

NAN, INF = float("nan"), float("inf")

JUMP = 3.0


def seen(step: int, loss: float, norm: float = 1.0) -> Observation:
    return Observation(step, 0.1, torch.tensor(loss), torch.tensor(norm), [SampleKey(0, step, 0)])


def watch_after(losses: list[float], *, classes: int = 10, scaled: bool = False) -> LossMonitor:
    watch = LossMonitor(classes, scaled, JUMP)
    for step, loss in enumerate(losses):
        watch.add(seen(step, loss))
    assert watch.look() is None
    return watch


def verdict(watch: LossMonitor, loss: float, norm: float = 1.0) -> str:
    watch.add(seen(watch.seen, loss, norm))
    incident = watch.look()
    return incident.kind if incident else ""


@pytest.mark.parametrize(
    ("usual", "classes", "below", "above"),
    [
        (0.5, 10, 6.90, 6.91),  # three times that of guessing, 3 ln 10 = 6.9078
        (4.0, 10, 11.9, 12.1),  # three times its own mean
        (0.1, 1000, 20.72, 20.73),  # 3 ln 1000 = 20.7233
    ],
)
def test_a_jump_is_three_times_the_larger_of_the_usual_loss_and_that_of_guessing(
    usual: float, classes: int, below: float, above: float
) -> None:
    assert SETTLED == 10
    assert verdict(watch_after([usual] * 30, classes=classes), below) == ""
    assert verdict(watch_after([usual] * 30, classes=classes), above) == "jump"


def test_no_jump_is_looked_for_in_the_first_steps() -> None:
    assert verdict(watch_after([0.5] * (SETTLED - 1)), 1000.0) == ""
    assert verdict(watch_after([0.5] * SETTLED), 1000.0) == "jump"


@pytest.mark.parametrize("loss", [NAN, INF, -INF])
@pytest.mark.parametrize("scaled", [True, False])
def test_a_loss_that_is_no_number_is_found_at_the_first_step_already(
    loss: float, scaled: bool
) -> None:
    assert verdict(LossMonitor(10, scaled, JUMP), loss) == "not a number"


@pytest.mark.parametrize("norm", [NAN, INF])
def test_a_gradient_that_is_no_number_is_the_loss_scales_affair_where_there_is_one(
    norm: float,
) -> None:
    assert verdict(LossMonitor(10, False, JUMP), 1.0, norm) == "not a number"
    assert verdict(LossMonitor(10, True, JUMP), 1.0, norm) == ""


def test_the_usual_loss_is_a_recent_mean() -> None:
    assert watch_after([2.0]).usual == 2.0
    assert watch_after([2.0, 4.0]).usual == pytest.approx(0.95 * 2 + 0.05 * 4)
    assert watch_after([2.0, 4.0, 3.0]).usual == pytest.approx(0.95 * 2.1 + 0.05 * 3)
    assert watch_after([2.0, 4.0, 3.0]).seen == 3


def test_of_steps_looked_at_together_the_first_that_went_wrong_is_told() -> None:
    watch = watch_after([1.0] * 40)
    for step, loss in ((40, 1.0), (41, 50.0), (42, NAN), (43, 1.0)):
        watch.add(seen(step, loss, norm=7.0))
    incident = watch.look()
    assert incident is not None
    assert (incident.kind, incident.step, incident.rate, incident.loss, incident.norm) == (
        "jump",
        41,
        0.1,
        50.0,
        7.0,
    )
    assert incident.usual == pytest.approx(1.0)  # without the jump
    assert incident.keys == [SampleKey(0, 41, 0)]
    assert [r["step"] for r in incident.recent] == list(range(22, 42))
    assert incident.recent[-1] == {"step": 41, "loss": 50.0, "norm": 7.0}
    assert not watch.waiting


def test_nothing_new_is_nothing_wrong() -> None:
    watch = watch_after([1.0])
    assert watch.look() is None
    assert watch.seen == 1


@pytest.mark.parametrize(
    ("kind", "loss", "sentence"),
    [
        (
            "jump",
            50.0,
            "The loss jumped from about 1.23 to 50 at step 7, counted from 0 (learning rate 0.001).",
        ),
        (
            "not a number",
            NAN,
            "The loss is nan and the gradient's norm inf at step 7, counted from 0 (learning rate 0.001).",
        ),
    ],
)
def test_what_happened_is_one_sentence(kind: str, loss: float, sentence: str) -> None:
    incident = Incident(
        kind=kind, step=7, rate=0.001, loss=loss, norm=math.inf, usual=1.2345, keys=[], recent=[]
    )
    assert incident.sentence == sentence

"""A step that diverges is found at that step, and no other is."""

from __future__ import annotations

import math

import pytest
import torch

from deitctl.data.samplers import SampleKey
from deitctl.device import choose_device
from deitctl.training.monitor import (
    LOSS_SPIKE,
    MIN_STEPS,
    NON_FINITE,
    Incident,
    LossMonitor,
    Observation,
    TrainingDiverged,
)
from deitctl.training.state import Progress
from deitctl.training.step_stats import Reading

NAN, INF = float("nan"), float("inf")

CPU = choose_device("cpu", "fp32")
SPIKE, GUESS = 3.0, math.log(10)


def observe(step: int, loss: float, grad_norm: float = 1.0) -> Observation:
    reading = Reading({"loss": torch.tensor(loss)}, torch.tensor(grad_norm), CPU)
    return Observation(step, 0.1, reading, [SampleKey(0, step, 0)])


def monitor_after(
    losses: list[float], *, num_classes: int = 10, scaled: bool = False
) -> LossMonitor:
    monitor = LossMonitor(Progress(), math.log(num_classes), scaled, SPIKE)
    for step, loss in enumerate(losses):
        monitor.update(observe(step, loss))
    assert monitor.find_incident() is None
    return monitor


def find_kind(monitor: LossMonitor, loss: float, grad_norm: float = 1.0) -> str:
    monitor.update(observe(monitor.progress.steps_monitored, loss, grad_norm))
    incident = monitor.find_incident()
    return incident.kind if incident else ""


@pytest.mark.parametrize(
    ("recent", "num_classes", "below", "above"),
    [
        (0.5, 10, 6.90, 6.91),  # three times that of guessing, 3 ln 10 = 6.9078
        (4.0, 10, 11.9, 12.1),  # three times its own mean
        (0.1, 1000, 20.72, 20.73),  # 3 ln 1000 = 20.7233
    ],
)
def test_a_spike_is_three_times_the_larger_of_the_recent_loss_and_that_of_a_guess(
    recent: float, num_classes: int, below: float, above: float
) -> None:
    assert MIN_STEPS == 10
    assert find_kind(monitor_after([recent] * 30, num_classes=num_classes), below) == ""
    assert find_kind(monitor_after([recent] * 30, num_classes=num_classes), above) == LOSS_SPIKE


def test_no_spike_is_found_in_the_first_steps() -> None:
    assert find_kind(monitor_after([0.5] * (MIN_STEPS - 1)), 1000.0) == ""
    assert find_kind(monitor_after([0.5] * MIN_STEPS), 1000.0) == LOSS_SPIKE


@pytest.mark.parametrize("loss", [NAN, INF, -INF])
@pytest.mark.parametrize("scaled", [True, False])
def test_a_loss_that_is_not_finite_is_found_at_the_first_step(loss: float, scaled: bool) -> None:
    assert find_kind(LossMonitor(Progress(), GUESS, scaled, SPIKE), loss) == NON_FINITE


@pytest.mark.parametrize("norm", [NAN, INF])
def test_a_gradient_that_is_not_finite_is_left_to_the_loss_scale_if_there_is_one(
    norm: float,
) -> None:
    assert find_kind(LossMonitor(Progress(), GUESS, False, SPIKE), 1.0, norm) == NON_FINITE
    assert find_kind(LossMonitor(Progress(), GUESS, True, SPIKE), 1.0, norm) == ""


def test_the_recent_loss_is_a_running_mean() -> None:
    assert monitor_after([2.0]).progress.recent_loss == 2.0
    assert monitor_after([2.0, 4.0]).progress.recent_loss == pytest.approx(0.95 * 2 + 0.05 * 4)
    assert monitor_after([2.0, 4.0, 3.0]).progress.recent_loss == pytest.approx(
        0.95 * 2.1 + 0.05 * 3
    )
    assert monitor_after([2.0, 4.0, 3.0]).progress.steps_monitored == 3


def test_of_several_unread_steps_the_first_that_diverged_is_returned() -> None:
    monitor = monitor_after([1.0] * 40)
    for step, loss in ((40, 1.0), (41, 50.0), (42, NAN), (43, 1.0)):
        monitor.update(observe(step, loss, grad_norm=7.0))
    incident = monitor.find_incident()
    assert incident is not None
    assert (incident.kind, incident.step, incident.lr, incident.loss, incident.grad_norm) == (
        LOSS_SPIKE,
        41,
        0.1,
        50.0,
        7.0,
    )
    assert incident.recent_mean == pytest.approx(1.0)  # without the jump
    assert incident.keys == [SampleKey(0, 41, 0)]
    assert [r["step"] for r in incident.recent] == list(range(22, 42))
    assert incident.recent[-1] == {"step": 41, "loss": 50.0, "grad_norm": 7.0}
    assert not monitor.unread


def test_without_an_unread_step_there_is_no_incident() -> None:
    monitor = monitor_after([1.0])
    assert monitor.find_incident() is None
    assert monitor.progress.steps_monitored == 1


@pytest.mark.parametrize(
    ("kind", "loss", "message"),
    [
        (
            LOSS_SPIKE,
            50.0,
            "The loss rose from about 1.23 to 50 at step 7, counted from 0 (learning rate 0.001).",
        ),
        (
            NON_FINITE,
            NAN,
            "The loss is nan and the gradient norm inf at step 7, counted from 0 (learning rate 0.001).",
        ),
    ],
)
def test_the_message_is_one_sentence(kind: str, loss: float, message: str) -> None:
    incident = Incident(
        kind=kind,
        step=7,
        lr=0.001,
        loss=loss,
        grad_norm=math.inf,
        recent_mean=1.2345,
        keys=[],
        recent=[],
    )
    assert incident.message == message


def test_a_step_that_diverged_is_raised_until_the_run_ends() -> None:
    """A signal that comes meanwhile saves nothing of it."""
    monitor = monitor_after([1.0])
    monitor.update(observe(1, NAN))
    with pytest.raises(TrainingDiverged, match="The loss is nan") as error:
        monitor.raise_if_diverged()
    assert error.value.incident.step == 1
    assert monitor.find_incident() == error.value.incident


class Slow:
    """A reading that never comes."""

    is_ready = False

    def read(self) -> dict[str, float]:
        raise AssertionError("it was waited for")


def test_what_the_device_has_not_computed_is_not_waited_for() -> None:
    """A collective may never end, after another process was lost."""
    monitor = monitor_after([1.0])
    monitor.update(observe(1, 2.0))
    for step in range(2, 30):
        monitor.update(Observation(step, 0.1, Slow(), []))  # type: ignore[arg-type]
    monitor.read_ready(max_unread=len(monitor.unread))
    assert len(monitor.unread) == 28
    assert monitor.progress.steps_monitored == 2
    with pytest.raises(AssertionError, match="waited"):
        monitor.read_ready()  # the oldest of more than the device may be behind with

"""Records and results are compared by value, and a value that one side lacks is a difference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deitctl.errors import ConfigError
from deitctl.training.comparison import Comparison, compare_records, compare_results

STEP = {"kind": "step", "step": 0, "epoch": 1, "loss": 0.5}


class Ended(dict[str, Any]):
    """A result."""

    epochs = 2


def attach(**options: Any) -> Comparison:
    """Attach a comparison of a run of a saved model after 2 epochs of 3 steps, and of no log."""
    recorded: Any = SimpleNamespace(
        root="runs/a",
        steps={},
        epochs={},
        weights=[SimpleNamespace(epoch=2, step=None)],
        sessions=(),
        result={},
    )
    trainer: Any = SimpleNamespace(
        context=SimpleNamespace(steps_per_epoch=3), run=SimpleNamespace()
    )
    comparison = Comparison(recorded, **options)
    comparison.attach(trainer)
    return comparison


def test_a_value_that_one_side_lacks_parts_them_unless_another_version_wrote_it() -> None:
    longer = {**STEP, "lr": 0.1, "seconds": 3.0}
    parted = [list(compare_records(*both)) for both in ((STEP, longer), (longer, STEP))]
    assert [[(p.name, p.recorded, p.reproduced) for p in partings] for partings in parted] == [
        [("lr", "missing", 0.1)],
        [("lr", 0.1, "missing")],
    ]
    assert not list(compare_records(STEP, longer, allow_missing=True))
    assert [p.name for p in compare_results({}, {"top1": 3.0, "run": "a"}, 1)] == ["top1"]


@pytest.mark.parametrize("options", [{"last_step": 1}, {"last_step": 6}, {"last_epoch": 1}])
def test_a_run_of_which_nothing_would_be_compared_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"has nothing recorded of its first \d (steps|epochs)"):
        attach(**options)


@pytest.mark.parametrize("options", [{}, {"last_step": 7}, {"last_epoch": 2}])
def test_weights_are_enough_where_they_are_reached(options: dict[str, int]) -> None:
    assert attach(**options).has_begun


def test_an_empty_result_is_not_compared() -> None:
    comparison = attach()
    comparison.compare_result(Ended())
    assert not comparison.has_result

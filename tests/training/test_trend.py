"""The last epochs beside those before: by hand, with the noise of the validation set in mind."""

from __future__ import annotations

import pytest

from deitctl.training.trend import judge_trend


def epochs(*scores: tuple[float, float | None]) -> list[dict[str, float | None]]:
    """Records of (top-1 in percent, validation loss)."""
    return [{"top1": top1, "val_loss": loss} for top1, loss in scores]


def test_the_numbers_by_hand() -> None:
    """Of 4 epochs the last one is compared: the difference of 64 % and 62 % of 100 images has a standard
    error of 100 x sqrt((0.64 x 0.36 + 0.62 x 0.38) / 100) = 6.83 points."""
    trend = judge_trend(epochs((50, 2.0), (60, 1.0), (62, 1.1), (64, 0.9)), 100)
    assert trend.num_epochs == 1
    assert trend.gain == pytest.approx(2.0)
    assert trend.val_loss_change == pytest.approx(-10.0)
    assert trend.standard_error == pytest.approx(6.8264, abs=1e-4)
    assert trend.verdict == "improving"  # by the loss; two points are noise here


@pytest.mark.parametrize(
    ("scores", "num_images", "verdict"),
    [
        ([(60, 1.0), (62, 1.0)], 100, "flat"),  # 2 points, and 6.9 of noise
        ([(60, 1.0), (62, 1.0)], 10_000, "improving"),  # 2 points, and 0.7 of noise
        ([(50, 1.0), (56, 1.0)], 100, "flat"),  # 6 points, and 7.0 of noise; 5.0 of one accuracy
        ([(60, 1.0), (60, 0.995)], 10_000, "flat"),
        ([(60, 1.0), (60, 0.98)], 10_000, "improving"),
        ([(62, 1.0), (60, 1.0)], 10_000, "worse"),
        ([(62, 1.0), (60, 1.0)], 100, "flat"),
        ([(60, 1.0), (60, 1.2)], 100, "worse"),  # the loss rises
        ([(60, 1.0), (70, 1.2)], 1000, "improving"),  # it does, but more images are right
        ([(99, 0.1), (100, 0.05)], 100, "flat"),  # nothing is left to improve
        ([(60, None), (61, None)], 100, "flat"),  # a loss that is no number
        ([(0, 1.0), (0, 1.0)], 0, "flat"),
    ],
)
def test_verdicts(scores: list, num_images: int, verdict: str) -> None:
    assert judge_trend(epochs(*scores), num_images).verdict == verdict


def test_one_epoch_has_no_trend() -> None:
    trend = judge_trend(epochs((60, 1.0)), 100)
    assert (trend.verdict, trend.num_epochs, trend.gain) == ("unknown", 0, None)
    assert trend.standard_error == pytest.approx(100 * (0.6 * 0.4 / 100) ** 0.5)


def test_of_many_epochs_a_quarter_is_compared() -> None:
    """The last epoch of a cosine changes nothing; the last five of twenty do."""
    scores = [(50 + n, 2 - 0.05 * n) for n in range(19)]
    trend = judge_trend(epochs(*scores, scores[-1]), 10_000)
    assert trend.num_epochs == 5
    assert trend.gain == pytest.approx(4.0)  # 68 of epoch 19, 64 of epoch 15
    assert trend.verdict == "improving"

"""What a recipe leaves to its data: steps of a teacher from scratch."""

from __future__ import annotations

from deitctl.recipes import DIGITS_CONVNET, SMALL, give_steps


def test_a_teacher_from_scratch_has_as_many_steps_on_few_images() -> None:
    """270 steps of 32 images: 6 epochs of all 1,442 digits, and 60 of a tenth of them."""
    assert give_steps(DIGITS_CONVNET, 1442).epochs == 6
    assert give_steps(DIGITS_CONVNET, 145).epochs == 60  # 59.6 rounded up
    assert give_steps(SMALL, 1_000_000).epochs == SMALL.epochs == 100

"""A teacher sees a view in its student's ratio of height and width, or it is said that it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from deitctl.config import TrainConfig
from deitctl.distillation.teacher_size import choose_size, fit_teacher_size, stretch_crops
from deitctl.recipes import FINETUNE
from deitctl.sizes import ImageSize

Make = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("own", "ratio", "step", "expected"),
    [
        (224, (112, 448), 16, (112, 448)),  # as many patches
        (224, (96, 192), 16, (160, 320)),
        (224, (64, 96), 32, (192, 288)),
        (64, (32, 64), 32, (32, 64)),
        ((160, 320), (64, 64), 32, 224),
        (224, (448, 112), 16, (448, 112)),
    ],
)
def test_the_size_has_the_ratio_and_about_as_many_pixels(
    own: ImageSize, ratio: tuple[int, int], step: int, expected: ImageSize
) -> None:
    assert choose_size(own, ratio, step) == expected


@pytest.mark.parametrize("teacher", ["deit_tiny", "regnety_002", "vit_tiny_patch16_224"])
def test_a_teacher_of_a_student_that_is_not_square_has_its_ratio(
    teacher: str, distilled: Make, reporter
) -> None:
    config = distilled("x", teacher=teacher)
    fitted = fit_teacher_size(config, (32, 64), {}, built_in=False, reporter=reporter)
    assert fitted.distill is not None
    assert fitted.distill.teacher_img_size in {(160, 320)}
    assert reporter.notes == [
        "The teacher's input is 160x320 pixels instead of 224, for the ratio of the student's 32x64; "
        "--teacher-img-size decides otherwise."
    ]
    named = {"distill.teacher_img_size": 224}
    assert fit_teacher_size(config, (32, 64), named, built_in=False, reporter=reporter) is config
    assert fit_teacher_size(config, 32, {}, built_in=False, reporter=reporter) is config


def test_a_teacher_of_one_size_is_warned_of(distilled: Make, reporter) -> None:
    config = distilled("x", teacher="swin_tiny_patch4_window7_224")
    assert fit_teacher_size(config, (32, 64), {}, built_in=False, reporter=reporter) is config
    assert "sees every view of the student's 32x64 squeezed" in reporter.warnings[0]


def test_crops_of_a_teachers_training_have_the_ratio_of_its_input() -> None:
    assert stretch_crops(FINETUNE) is FINETUNE
    low, high = FINETUNE.augment.crop_ratio
    stretched = stretch_crops(replace(FINETUNE, img_size=(32, 64)))
    assert stretched.augment.crop_ratio == (2 * low, 2 * high)

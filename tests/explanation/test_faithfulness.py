"""Deletion and insertion curves on a classifier small enough to reckon by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from deitctl.explanation.faithfulness import (
    blur,
    compute_area,
    compute_curves,
    compute_deletion,
    compute_insertion,
    sample_random_maps,
)

# 4 x 4 pixels, 2 x 2 patches of 2 x 2 pixels; class 0 has the share of the brightness that the top left patch weighs
# half of and the bottom right one a third.
WEIGHTS = torch.tensor([[1 / 2, 1 / 6], [0.0, 1 / 3]])
BRIGHT = torch.ones(1, 3, 4, 4)
CLASS = torch.tensor([0])
BEST, WORST = torch.tensor([[4.0, 2], [1, 3]]), torch.tensor([[1.0, 3], [4, 2]])


def answer(images: Tensor) -> Tensor:
    """Probability of class 0: the weighted brightness of the patches; of class 1 the rest."""
    patches = images.mean(dim=1).unflatten(1, (2, 2)).unflatten(3, (2, 2)).mean(dim=(2, 4))
    first = (patches * WEIGHTS).sum(dim=(1, 2))
    return torch.stack([first, 1 - first], dim=1)


def test_deletion_by_hand() -> None:
    curves = compute_deletion(
        answer, BRIGHT, torch.stack([BEST, WORST])[:, None], CLASS, num_steps=4
    )
    torch.testing.assert_close(curves[0, 0], torch.tensor([1, 1 / 2, 1 / 6, 0, 0]))
    torch.testing.assert_close(curves[1, 0], torch.tensor([1, 1, 5 / 6, 1 / 2, 0]))
    # trapezia a quarter wide: (1/2 + 1/2 + 1/6 + 0 + 0) / 4 and (1/2 + 1 + 5/6 + 1/2 + 0) / 4
    torch.testing.assert_close(compute_area(curves)[:, 0], torch.tensor([7 / 24, 17 / 24]))


def test_insertion_by_hand() -> None:
    dark_to_bright = compute_curves(
        answer, torch.zeros_like(BRIGHT), BRIGHT, BEST[None, None], CLASS, num_steps=4
    )
    torch.testing.assert_close(dark_to_bright[0, 0], torch.tensor([0, 1 / 2, 5 / 6, 1, 1]))
    assert compute_area(dark_to_bright).item() == pytest.approx((1 / 2 + 5 / 6 + 1 + 1 / 2) / 4)


def test_insertion_begins_with_the_blurred_image_and_ends_with_the_image() -> None:
    image = torch.zeros(1, 3, 4, 4)
    image[:, :, :2, :2] = 1
    curve = compute_insertion(answer, image, BEST[None, None], CLASS, num_steps=4)[0, 0]
    assert curve[0].item() == pytest.approx(answer(blur(image, 2))[0, 0].item())
    assert curve[-1].item() == pytest.approx(1 / 2)
    assert curve[1] > curve[0]


def test_fewer_steps_take_several_patches_each_and_more_than_patches_are_not_made() -> None:
    curve = compute_deletion(answer, BRIGHT, BEST[None, None], CLASS, num_steps=2)[0, 0]
    torch.testing.assert_close(curve, torch.tensor([1, 1 / 6, 0]))
    assert compute_deletion(answer, BRIGHT, BEST[None, None], CLASS, num_steps=99).shape == (
        1,
        1,
        5,
    )


def test_every_image_of_a_batch_has_its_own_order_and_its_own_class() -> None:
    images, classes = BRIGHT.expand(2, -1, -1, -1), torch.tensor([0, 1])
    curves = compute_deletion(
        answer, images, torch.stack([BEST, WORST])[None], classes, num_steps=4
    )[0]
    torch.testing.assert_close(curves[0], torch.tensor([1, 1 / 2, 1 / 6, 0, 0]))
    torch.testing.assert_close(curves[1], 1 - torch.tensor([1, 1, 5 / 6, 1 / 2, 0]))


def test_a_blur_keeps_a_plain_image_and_the_mean_of_any_and_flattens_it(noise) -> None:
    torch.testing.assert_close(blur(BRIGHT, 2), BRIGHT)
    image = noise(1, 3, 32, 32)
    soft = blur(image, 4)
    assert soft.std() < 0.2 * image.std()
    assert blur(image, 1).std() > 2 * soft.std()


def test_a_blur_is_the_gaussian_of_its_deviation() -> None:
    point = torch.zeros(1, 3, 65, 65)
    point[:, :, 32, 32] = 1
    spread = blur(point, 3)[0, 0]
    assert spread.sum().item() == pytest.approx(1, abs=1e-4)
    assert (spread[32, 35] / spread[32, 32]).item() == pytest.approx(math.exp(-0.5), rel=1e-4)
    torch.testing.assert_close(spread, spread.T)


def test_random_maps_are_the_same_for_the_same_seed_alone() -> None:
    like = torch.zeros(2, 3, 3)
    assert torch.equal(sample_random_maps(like, 1), sample_random_maps(like, 1))
    assert not torch.equal(sample_random_maps(like, 1), sample_random_maps(like, 2))

"""Moved rows are Pillow's affine maps, but for what single precision cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deitctl.data.shift import move_rows, shear, translate

FILL = (124, 116, 104)
SIZES = [(96, 72), (61, 40), (1, 5), (5, 1), (2, 2), (200, 200)]
LEVELS = [n / 10 for n in range(-10, 11)]  # whole magnitudes, whose shifts are often just beside an integer


def affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL)


def beside(ours, theirs):
    """How many levels each value is beside the other's, which is no more than one."""
    levels = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs))
    assert levels.max() <= 1
    return levels


def pictures(picture, size):
    smooth = picture(*size)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return smooth, Image.fromarray(noise), smooth.point(lambda value: value & 0xE0), Image.new("RGB", size, (255, 3, 0))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_shears_are_pillows_to_one_level(size, picture):
    for image in pictures(picture, size):
        for a in [0.3 * level for level in LEVELS] + np.random.default_rng(1).uniform(-1, 1, 10).tolist():
            beside(shear(image, a, FILL), affine(image, 1, a, 0, 0, 1, 0))
            beside(shear(image, a, FILL, vertical=True), affine(image, 1, 0, 0, a, 1, 0))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_translations_are_pillows_to_one_level(size, picture):
    shares = [0.45 * level for level in LEVELS] + np.random.default_rng(2).uniform(-1.5, 1.5, 10).tolist() + [1e6]
    for image in pictures(picture, size):
        for share in shares:
            x, y = share * image.width, share * image.height
            beside(translate(image, x, FILL), affine(image, 1, 0, x, 0, 1, 0))
            beside(translate(image, y, FILL, vertical=True), affine(image, 1, 0, 0, 0, 1, y))


def test_one_value_in_a_thousand_is_beside_pillows(picture):
    amounts = np.random.default_rng(4).uniform(-0.3, 0.3, 40)
    levels = [
        np.stack([
            beside(shear(image, a, FILL), affine(image, 1, a, 0, 0, 1, 0)),
            beside(translate(image, a * 200, FILL), affine(image, 1, 0, a * 200, 0, 1, 0)),
        ])
        for image in pictures(picture, (200, 200)) for a in amounts
    ]  # fmt: skip
    assert np.mean(levels) < 1e-3


def test_a_hand_computed_row():
    """Half a pixel to the left: (-a + 5b + 5c - d) / 8 with a = -1, edges repeated; beyond the last half, the colour."""
    row = Image.fromarray(np.array([[[0] * 3, [80] * 3, [160] * 3]], dtype=np.uint8))
    moved = np.asarray(move_rows(row, np.array([0.5]), (1, 2, 3)))[0]
    assert moved[:, 0].tolist() == [30, 130, 1]  # (-0 + 5*0 + 5*80 - 160) / 8, (-0 + 5*80 + 5*160 - 160) / 8
    assert moved[2].tolist() == [1, 2, 3]


def test_an_even_area_stays_what_it_is():
    """Weights of single precision do not add up to one exactly; a value must not fall to the next lower for that."""
    draw = np.random.default_rng(3)
    for value in (0, 1, 77, 128, 254, 255):
        image = Image.new("RGB", (16, 64), (value, 255 - value, value))
        moved = move_rows(image, draw.uniform(-3, 3, 64), (value, 255 - value, value))
        assert np.array_equal(np.asarray(moved), np.asarray(image))

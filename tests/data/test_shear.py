"""Lines that slide are where Pillow's affine map puts them, with Pillow's weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from deitctl.data.shear import bicubic_weights, slide

FILL = (124, 116, 104)


def by_pillow(image, matrix):
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL
    )


def column(*values):
    return Image.fromarray(np.repeat(np.array(values, np.uint8).reshape(-1, 1, 1), 3, axis=2))


def test_half_a_pixel_is_weighed_by_hand():
    """At d = 1/2 Keys' weights are -1/8, 5/8, 5/8, -1/8; the last center lies outside: 3 + 1/2 + 1/2 = 4."""
    assert bicubic_weights(np.array([0.5])).ravel().tolist() == [-0.125, 0.625, 0.625, -0.125]
    shown = np.asarray(slide(column(10, 20, 60, 200), np.array([0.5]), (1, 2, 3)))
    first = (-10 + 5 * 10 + 5 * 20 - 60) / 8  # the border goes on: 10, 10, 20, 60
    second = (-10 + 5 * 20 + 5 * 60 - 200) / 8
    third = (-20 + 5 * 60 + 5 * 200 - 200) / 8
    assert shown[:3, 0, 0].tolist() == [int(first), int(second), int(third)] == [10, 23, 135]
    assert shown[3, 0].tolist() == [1, 2, 3]


def test_whole_pixels_move_as_they_are(make_image):
    image = make_image(40, 30)
    moved = np.asarray(slide(image, np.full(40, 4.0), FILL))
    assert np.array_equal(moved[:26], np.asarray(image)[4:])
    assert (moved[26:] == FILL).all()


def test_weights_sum_to_one_and_leave_plain_areas_alone():
    d = np.linspace(0, 1, 1001)
    assert np.allclose(bicubic_weights(d).sum(axis=0), 1, atol=1e-15)
    for level in range(256):
        plain = Image.new("RGB", (101, 5), (level, level, level))
        assert set(np.asarray(slide(plain, d[::10] - 0.5, (level,) * 3)).ravel()) == {level}


@pytest.mark.parametrize("rows", [False, True])
@settings(max_examples=60)
@example(size=(50, 33), amount=0.57, shears=False, seed=0)
@example(size=(33, 50), amount=0.57, shears=False, seed=0)
@example(size=(50, 33), amount=1.4, shears=True, seed=0)
@example(size=(64, 63), amount=1.4, shears=True, seed=0)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    amount=st.floats(-1.5, 1.5),
    shears=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_shearing_and_translating_are_pillows_but_for_a_level(rows, size, amount, shears, seed):
    assert beside_pillow(rows, size, amount, shears, seed).max() <= 1


def beside_pillow(rows, size, amount, shears, seed):
    """How many levels of noise of this size are beside Pillow's, sheared or translated by `amount` of its side."""
    width, height = size
    image = Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )
    factor, shift = (amount, 0.0) if shears else (0.0, amount * (width if rows else height))
    offsets = factor * np.arange(0.5, height if rows else width) + shift
    matrix = (1, factor, shift, 0, 1, 0) if rows else (1, 0, 0, factor, 1, shift)
    ours = np.asarray(slide(image, offsets, FILL, rows=rows)).astype(int)
    return np.abs(ours - np.asarray(by_pillow(image, matrix)))


def test_one_value_in_ten_thousand_is_beside_pillows():
    draw = np.random.default_rng(0)
    levels = [
        beside_pillow(index % 2, (224, 224), draw.uniform(-0.5, 0.5), index % 4 < 2, index).mean()
        for index in range(40)
    ]
    assert np.mean(levels) < 2e-4

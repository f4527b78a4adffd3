"""Which images are chosen, and what a thumbnail is."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from deitctl.report.examples import SIDE, confident_mistakes, thumbnail, unsure_hits

CORRECT = np.array([True, False, True, False, False])
SURE = np.array([0.9, 0.3, 0.2, 0.8, 0.8])


def test_mistakes_are_ordered_from_the_most_confident_equal_ones_as_in_the_data():
    assert confident_mistakes(CORRECT, SURE) == [3, 4, 1]
    assert confident_mistakes(CORRECT, SURE, most=1) == [3]


def test_hits_are_ordered_from_the_least_sure():
    assert unsure_hits(CORRECT, SURE) == [2, 0]


def test_no_mistakes_and_no_hits_are_no_images():
    assert confident_mistakes(np.ones(3, bool), SURE[:3]) == []
    assert unsure_hits(np.zeros(3, bool), SURE[:3]) == []


def test_a_thumbnail_is_a_small_jpeg_of_the_same_shape_and_colors():
    pixels = np.zeros((3, 384, 192), np.uint8)
    pixels[0] = 200
    image = Image.open(io.BytesIO(thumbnail(pixels)))
    assert (image.format, image.size) == ("JPEG", (SIDE // 2, SIDE))
    assert np.abs(np.asarray(image).reshape(-1, 3).mean(0) - [200, 0, 0]).max() < 3


def test_a_small_image_is_not_enlarged(pixels):
    assert Image.open(io.BytesIO(thumbnail(pixels(0)))).size == (32, 32)


def test_seventy_two_images_with_two_maps_each_stay_below_three_megabytes(make_image):
    def one(seed: int) -> bytes:
        return thumbnail(np.asarray(make_image(224, 224, seed)).transpose(2, 0, 1))

    largest = max(len(one(seed)) for seed in range(4))
    assert 72 * 3 * largest * 4 / 3 < 3e6  # base64 makes four bytes of three

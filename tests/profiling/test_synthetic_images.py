"""Made-up images are as large as ImageNet's, in pixels and in bytes, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from deitctl.data.decode import decode
from deitctl.profiling.synthetic_images import (
    BYTES,
    FILES,
    HEIGHT,
    TRAIN,
    VALIDATION,
    WIDTH,
    imagenet_like,
    synthetic_images,
)


def test_they_are_jpegs_of_imagenets_size_in_pixels_and_bytes():
    files = [synthetic_images(n) for n in range(0, FILES, 8)]
    assert {decode(data, "made up").size for data in files} == {(WIDTH, HEIGHT)}
    assert np.mean([len(data) for data in files]) == pytest.approx(BYTES, rel=0.03)


def test_they_are_the_same_every_time_and_all_different():
    assert synthetic_images(3) == synthetic_images(3)
    assert len({synthetic_images(n) for n in range(4)}) == 4


def test_few_files_stand_for_as_many_images_as_imagenet_has(tmp_path):
    train, val = imagenet_like(tmp_path)
    assert (len(train.labels), len(val.labels), len(train.class_names)) == (TRAIN, VALIDATION, 1000)
    assert len(list(tmp_path.iterdir())) == FILES
    assert set(train.labels.tolist()) == set(val.labels.tolist()) == set(range(1000))
    assert train.read(TRAIN - 1).size == (WIDTH, HEIGHT)
    assert train.name(5) == train.name(5 + FILES) != train.name(6)

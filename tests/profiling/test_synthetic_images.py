"""Synthetic images are as large as ImageNet's, in pixels and in bytes, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from deitctl.data.decode import decode
from deitctl.profiling.synthetic_images import (
    HEIGHT,
    MEAN_BYTES,
    NUM_FILES,
    NUM_TRAIN,
    NUM_VAL,
    WIDTH,
    synthesize_jpeg,
    write_synthetic_dataset,
)


def test_images_are_jpegs_of_imagenets_size_in_pixels_and_bytes():
    files = [synthesize_jpeg(n) for n in range(0, NUM_FILES, 8)]
    assert {decode(data, "synthetic").size for data in files} == {(WIDTH, HEIGHT)}
    assert np.mean([len(data) for data in files]) == pytest.approx(MEAN_BYTES, rel=0.03)


def test_images_are_the_same_every_time_and_all_different():
    assert synthesize_jpeg(3) == synthesize_jpeg(3)
    assert len({synthesize_jpeg(n) for n in range(4)}) == 4


def test_few_files_stand_for_as_many_images_as_imagenet_has(tmp_path):
    train, val = write_synthetic_dataset(tmp_path)
    assert (len(train.labels), len(val.labels), len(train.class_names)) == (
        NUM_TRAIN,
        NUM_VAL,
        1000,
    )
    assert len(list(tmp_path.iterdir())) == NUM_FILES
    assert set(train.labels.tolist()) == set(val.labels.tolist()) == set(range(1000))
    assert train.read(NUM_TRAIN - 1).size == (WIDTH, HEIGHT)
    assert train.name(5) == train.name(5 + NUM_FILES) != train.name(6)

from __future__ import annotations

import numpy as np
import pytest

from deitctl.data.dataset import FileDataset, select
from deitctl.errors import ExportError
from deitctl.exporters.verification_images import read_images
from deitctl.models.model_config import Preprocessing

PRE = Preprocessing(img_size=32)


def files(*paths):
    return FileDataset(tuple(map(str, paths)), np.zeros(len(paths), dtype=np.int64), ("",))


def test_images_are_spread_over_the_classes_in_the_order_of_the_data(digit_datasets):
    by_class = select(digit_datasets[1], np.argsort(digit_datasets[1].labels, kind="stable"))
    sample = read_images(by_class, PRE, 20)
    assert sample.pixels.shape == (20, 32, 32, 3)
    assert sample.pixels.dtype == np.uint8
    index = {by_class.name(i): int(by_class.labels[i]) for i in range(len(by_class.labels))}
    assert len({index[name] for name in sample.names}) == 10


def test_unreadable_images_are_replaced_by_others(image_folder):
    root = image_folder({"a": 6})
    paths = sorted((root / "a").iterdir())
    paths[0].write_bytes(b"no image")
    sample = read_images(files(*paths), PRE, 3)
    assert len(sample.names) == 3
    assert str(paths[0]) not in sample.names


def test_more_images_than_there_are_means_all(image_folder):
    root = image_folder({"a": 3})
    assert len(read_images(files(*(root / "a").iterdir()), PRE, 64).names) == 3


def test_no_readable_image_is_an_error(tmp_path):
    with pytest.raises(ExportError, match="None of 1 images"):
        read_images(files(tmp_path / "absent.png"), PRE, 4)

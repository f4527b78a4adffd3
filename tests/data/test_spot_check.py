"""Data of pointers, pages or nothing is noticed before anything is trained on it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deitctl.data import spot_check
from deitctl.data.dataset import FileDataset
from deitctl.data.open import open_eval_split
from deitctl.data.readers.folder import open_folder
from deitctl.data.spot_check import NUM_LOOKED_AT, choose_spread, require_images
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import DataError
from tests.data.deep_files import encode_png, encode_tiff

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"


@pytest.fixture
def look(image_folder, reporter):
    """Look at 2 classes of 12 images, those of `lost` numbers replaced."""

    def make(data: bytes, lost: range, classes: tuple[str, ...] = ("ant", "bee")) -> list[str]:
        root = image_folder({"ant": 12, "bee": 12})
        for name in classes:
            for number in lost:
                (root / name / f"{number}.png").write_bytes(data)
        require_images(open_folder(root, reporter), "train", "flowers", reporter)
        return reporter.warnings

    return make


def test_whole_images_are_worth_no_word(look):
    assert look(b"", range(0)) == []


def test_a_clone_without_git_lfs_is_refused(look):
    with pytest.raises(DataError) as error:
        look(POINTER, range(12))
    message = str(error.value)
    assert message.startswith("None of 24 train images of flowers can be read; for example: ")
    assert "0.png is a Git LFS pointer, not an image; `git lfs pull` fetches" in message
    assert message.endswith("`deitctl check flowers` lists all of them.")


def test_training_and_evaluation_refuse_it_before_they_begin(image_folder, reporter):
    root = image_folder({"train/ant": 3, "train/bee": 3, "val/ant": 2, "val/bee": 2})
    for path in root.glob("train/*/*"):
        path.write_bytes(POINTER)
    with pytest.raises(DataError, match="None of 6 train images"):
        open_for_training(Source(str(root)), reporter=reporter)
    assert len(open_eval_split(str(root), reporter=reporter).dataset.labels) == 4
    with pytest.raises(DataError, match="None of 6 train images"):
        open_eval_split(str(root), "train", reporter=reporter)


@pytest.mark.parametrize("data", [POINTER, b"", b"<html>", bytes(999), b"\xff\x0a123", b"II\x89"])
def test_where_half_of_the_images_are_none_a_warning_comes_first(data, look):
    [warning] = look(data, range(6))
    assert warning.startswith("12 of 24 train images of flowers cannot be read and are left out; ")


def bands(count: int, dtype: type, **tags: int) -> bytes:
    return encode_tiff(np.zeros((4, 4, count), dtype), {284: tags.get("planar", 1)})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bands(5, np.uint8), "is a TIFF of 5 bands of 8 bits"),
        (bands(1, np.float64), "is a TIFF of 1 band of 64 bits in floating point"),
        (bands(3, np.int16), "is a TIFF of 3 bands of 16 bits in signed integers"),
        (bands(3, np.uint16, planar=2), "cannot be decoded: its 16-bit channels lie apart"),
        (encode_png(np.zeros((1, 70_000), np.uint16)), "has 70000 x 1 pixels; a side may"),
    ],
    ids=["bands", "doubles", "signed color", "planar", "wide"],
)
def test_images_whose_header_is_refused_are_refused_before_anything_begins(data, reason, look):
    with pytest.raises(DataError, match=f"None of 24 train images of flowers.*{reason}"):
        look(data, range(12))


def test_of_large_images_some_headers_are_read_and_of_jpegs_none(tmp_path, monkeypatch, reporter):
    read: list[str] = []
    monkeypatch.setattr(spot_check, "read_depth", lambda data, name: read.append(name))
    monkeypatch.setattr(spot_check, "MAX_BYTES", 100)
    for name in ("a.png", "b.png", "c.png", "d.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)  # a PNG of 75 bytes
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    dataset = FileDataset(paths, np.zeros(4, np.int64), ("a",))
    require_images(dataset, "", "flowers", reporter)
    assert read == paths[:2]


def test_a_class_of_which_nothing_can_be_read_is_worth_a_warning(look):
    [warning] = look(POINTER, range(12), ("bee",))
    assert "12 of 24" in warning


def test_a_single_damaged_image_is_named_when_it_is_met(look):
    assert look(b"", range(1), ("bee",)) == []


def test_images_are_taken_from_every_class_and_all_over_it():
    labels = np.repeat(np.arange(4), (1000, 10, 1000, 3))
    chosen = choose_spread(labels)
    assert np.bincount(labels[chosen]).tolist() == [16, 10, 16, 3]
    assert {0, 999} <= set(chosen.tolist())
    many = choose_spread(np.arange(1000) // 2)
    assert len(set(many.tolist())) == NUM_LOOKED_AT
    assert (many[0], many[-1]) == (0, 999)
    assert choose_spread(np.zeros(5, np.int64)).tolist() == [0, 1, 2, 3, 4]

"""Datasets name, label and read their images; splits are stratified and repeatable."""

from __future__ import annotations

import pickle
import tarfile
from collections import Counter

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets

from deitctl.data.dataset import FileDataset, find_folder
from deitctl.data.decode import decode
from deitctl.data.labels import drop_empty_classes
from deitctl.data.open import open_dataset, open_for_evaluation
from deitctl.data.readers.digits import ArrayDataset, load_digits
from deitctl.data.readers.folder import open_folder
from deitctl.data.splits import hold_out, relabel
from deitctl.data.subsets import select
from deitctl.errors import DataError


def labeled(labels: list[int], classes: int) -> ArrayDataset:
    images = np.zeros((len(labels), 2, 2), np.uint8)
    return ArrayDataset(
        images, np.array(labels, np.int64), tuple(f"c{i}" for i in range(classes)), "made"
    )


def test_digits_are_scikit_learns():
    theirs = sklearn_datasets.load_digits()
    train, val = load_digits()
    seen = sorted([*train.indices.tolist(), *val.indices.tolist()])
    assert seen == list(range(1797))
    for part in (train, val):
        assert part.labels.tolist() == theirs.target[part.indices].tolist()
    for position in range(0, len(val.labels), 40):
        expected = np.rint(theirs.images[val.indices[position]] * 255 / 16)
        assert np.array_equal(np.asarray(val.read(position))[:, :, 0], expected)


def test_digits_have_ten_classes_a_fifth_of_each_for_validation():
    train, val = load_digits()
    assert train.class_names == val.class_names == tuple("0123456789")
    both, held = (
        Counter(train.labels.tolist()) + Counter(val.labels.tolist()),
        Counter(val.labels.tolist()),
    )
    assert all(held[d] == both[d] // 5 for d in range(10))
    assert train.read(0).mode == "RGB"
    assert train.name(0).startswith("digits:")


def test_subset_of_a_subset_reads_the_right_image(digit_datasets):
    train, _ = digit_datasets
    inner = select(select(train, [5, 6, 7, 8]), [3, 0])
    assert inner.labels.tolist() == [train.labels[8], train.labels[5]]
    assert inner.name(0) == train.name(8)
    assert np.array_equal(np.asarray(inner.read(1)), np.asarray(train.read(5)))


def test_relabel_goes_by_name():
    dataset = labeled([0, 1, 1], 2)  # c0, c1
    moved = relabel(dataset, ("c1", "x", "c0"))
    assert moved.labels.tolist() == [2, 0, 0]
    assert moved.class_names == ("c1", "x", "c0")


def test_relabel_ignores_empty_classes():
    assert relabel(labeled([0, 0], 3), ("c0",)).labels.tolist() == [0, 0]


def test_relabel_refuses_an_unknown_class():
    with pytest.raises(
        DataError, match="'c1' is in the validation set but not in the training set"
    ):
        relabel(labeled([0, 1], 2), ("c0",))


def test_dropping_empty_classes_keeps_labels_correct():
    dataset = FileDataset(("a", "b", "c"), np.array([0, 2, 2]), ("w", "x", "y", "z"))
    kept, empty = drop_empty_classes(dataset)
    assert empty == ["x", "z"]
    assert kept.class_names == ("w", "y")
    assert [kept.class_names[i] for i in kept.labels] == ["w", "y", "y"]


def test_datasets_pickle(image_folder, reporter):
    dataset = hold_out(open_folder(image_folder({"a": 2, "b": 2}), reporter), 0.5, 0).train
    copy = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(np.asarray(copy.read(0)), np.asarray(dataset.read(0)))


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_read_bytes_returns_the_file_and_num_bytes_its_size(kind, image_folder, reporter, tmp_path):
    root = image_folder({"a": 2, "b": 1})
    files = [root / "a" / "0.png", root / "a" / "1.png", root / "b" / "0.png"]
    if kind == "tar":
        with tarfile.open(tmp_path / "all.tar", "w") as tar:
            for file in files:
                tar.add(file, file.relative_to(root))
        root = tmp_path / "all.tar"
    dataset = open_for_evaluation(str(root), reporter)
    assert [dataset.read_bytes(i) for i in range(3)] == [f.read_bytes() for f in files]
    assert [dataset.num_bytes(i) for i in range(3)] == [f.stat().st_size for f in files]
    for i in range(3):
        assert np.array_equal(
            np.asarray(decode(dataset.read_bytes(i), "x")), np.asarray(dataset.read(i))
        )


def test_digits_are_stored_as_gray_values(digit_datasets):
    for part in digit_datasets:
        assert part.num_bytes(3) == 64
        assert part.read_bytes(3) == np.asarray(part.read(3))[:, :, 0].tobytes()


def test_subsets_have_the_sizes_and_bytes_of_their_dataset(image_folder, reporter):
    dataset = open_folder(image_folder({"a": 3, "b": 3}), reporter)
    part = relabel(select(dataset, [4, 0]), ("b", "a"))
    assert [part.read_bytes(i) for i in range(2)] == [dataset.read_bytes(4), dataset.read_bytes(0)]
    assert [part.num_bytes(i) for i in range(2)] == [dataset.num_bytes(4), dataset.num_bytes(0)]
    assert np.array_equal(np.asarray(part.open(0)), np.asarray(dataset.read(4)))


@pytest.mark.parametrize("path", ["no/such.png", "a\0b.png"])
def test_a_missing_file_raises_data_error(path):
    dataset = FileDataset((path,), np.array([0]), ("x",))
    assert dataset.num_bytes(0) == 0
    for read in (dataset.read_bytes, dataset.read, dataset.open):
        with pytest.raises(DataError, match="cannot be read"):
            read(0)


def test_the_folder_of_several_tars_is_theirs_and_of_one_is_the_tar(
    image_folder, tmp_path, reporter
):
    images = sorted(image_folder({"ant": 1, "bee": 1}).rglob("*.*"))
    with tarfile.open(tmp_path / "one.tar", "w") as one:
        for name, image in zip(("ant", "bee"), images, strict=True):
            one.add(image, f"{name}/{image.name}")
            (tmp_path / "tars").mkdir(exist_ok=True)
            with tarfile.open(tmp_path / "tars" / f"{name}.tar", "w") as tar:
                tar.add(image, image.name)
    for ref, folder in (("tars/*.tar", "tars"), ("tars", "tars"), ("one.tar", "one.tar")):
        (dataset,) = open_dataset(str(tmp_path / ref), reporter).list_parts().values()
        assert find_folder(dataset) == str(tmp_path / folder)

"""Sources name, label and read their images; splits are stratified and repeatable."""

from __future__ import annotations

import pickle
import tarfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from deitctl.data.dataset import (
    ArraySource,
    FileSource,
    digits,
    drop_empty_classes,
    hold_out,
    relabel,
    subset,
)
from deitctl.data.decode import decode
from deitctl.data.open import open_for_evaluation, scan_classes
from deitctl.errors import DataError


def labeled(labels: list[int], classes: int) -> ArraySource:
    images = np.zeros((len(labels), 2, 2), np.uint8)
    return ArraySource(
        images, np.array(labels, np.int64), tuple(f"c{i}" for i in range(classes)), "made"
    )


def test_digits_are_scikit_learns():
    theirs = load_digits()
    train, val = digits()
    seen = sorted([*train.indices.tolist(), *val.indices.tolist()])
    assert seen == list(range(1797))
    for part in (train, val):
        assert part.labels.tolist() == theirs.target[part.indices].tolist()
    for position in range(0, len(val.labels), 40):
        expected = np.rint(theirs.images[val.indices[position]] * 255 / 16)
        assert np.array_equal(np.asarray(val.read(position))[:, :, 0], expected)


def test_digits_have_ten_classes_a_fifth_of_each_for_validation():
    train, val = digits()
    assert train.class_names == val.class_names == tuple("0123456789")
    both, held = (
        Counter(train.labels.tolist()) + Counter(val.labels.tolist()),
        Counter(val.labels.tolist()),
    )
    assert all(held[d] == both[d] // 5 for d in range(10))
    assert train.read(0).mode == "RGB"
    assert train.name(0).startswith("digits:")


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=80), st.floats(0.05, 0.9), st.integers(0, 9)
)
def test_hold_out_takes_from_every_class_that_can_spare(labels, share, seed):
    source = labeled(labels, 5)
    train, val = hold_out(source, share, seed)
    assert sorted([*train.indices, *val.indices]) == list(range(len(labels)))
    for label, count in Counter(labels).items():
        held = int((val.labels == label).sum())
        assert held == min(count - 1, max(1, round(share * count)))
    assert train.class_names == val.class_names == source.class_names


def test_hold_out_is_a_function_of_the_seed():
    source = labeled([0] * 50 + [1] * 50, 2)
    first, again, other = (hold_out(source, 0.2, s)[1].indices.tolist() for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_hold_out_of_one_class_does_not_move_with_another():
    few, many = labeled([0] * 10 + [1] * 4, 2), labeled([0] * 10 + [1] * 40, 2)
    held = [hold_out(s, 0.2, 0)[1] for s in (few, many)]
    assert (
        held[0].indices[held[0].labels == 0].tolist()
        == held[1].indices[held[1].labels == 0].tolist()
    )


def test_subset_of_a_subset_reads_the_right_image(digit_sources):
    train, _ = digit_sources
    inner = subset(subset(train, [5, 6, 7, 8]), [3, 0])
    assert inner.labels.tolist() == [train.labels[8], train.labels[5]]
    assert inner.name(0) == train.name(8)
    assert np.array_equal(np.asarray(inner.read(1)), np.asarray(train.read(5)))


def test_relabel_goes_by_name():
    source = labeled([0, 1, 1], 2)  # c0, c1
    moved = relabel(source, ("c1", "x", "c0"))
    assert moved.labels.tolist() == [2, 0, 0]
    assert moved.class_names == ("c1", "x", "c0")


def test_relabel_minds_only_classes_with_images():
    assert relabel(labeled([0, 0], 3), ("c0",)).labels.tolist() == [0, 0]


def test_relabel_refuses_a_stranger():
    with pytest.raises(
        DataError, match="'c1' is in the validation set but not in the training set"
    ):
        relabel(labeled([0, 1], 2), ("c0",))


def test_empty_classes_are_dropped_and_labels_still_right():
    source = FileSource(("a", "b", "c"), np.array([0, 2, 2]), ("w", "x", "y", "z"))
    kept, empty = drop_empty_classes(source)
    assert empty == ["x", "z"]
    assert kept.class_names == ("w", "y")
    assert [kept.class_names[i] for i in kept.labels] == ["w", "y", "y"]


def test_sources_travel_to_worker_processes(image_folder, reporter):
    source = hold_out(scan_classes(image_folder({"a": 2, "b": 2}), reporter), 0.5, 0)[0]
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(np.asarray(copy.read(0)), np.asarray(source.read(0)))


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_raw_is_what_is_stored_and_size_is_its_length(kind, image_folder, reporter, tmp_path):
    root = image_folder({"a": 2, "b": 1})
    files = [root / "a" / "0.png", root / "a" / "1.png", root / "b" / "0.png"]
    if kind == "tar":
        with tarfile.open(tmp_path / "all.tar", "w") as tar:
            for file in files:
                tar.add(file, file.relative_to(root))
        root = tmp_path / "all.tar"
    source = open_for_evaluation(str(root), reporter)
    assert [source.raw(i) for i in range(3)] == [f.read_bytes() for f in files]
    assert [source.size(i) for i in range(3)] == [f.stat().st_size for f in files]
    for i in range(3):
        assert np.array_equal(np.asarray(decode(source.raw(i), "x")), np.asarray(source.read(i)))


def test_raw_of_the_digits_is_their_greys(digit_sources):
    for part in digit_sources:
        assert part.size(3) == 64
        assert part.raw(3) == np.asarray(part.read(3))[:, :, 0].tobytes()


def test_parts_of_a_source_have_the_sizes_and_bytes_of_the_whole(image_folder, reporter):
    source = scan_classes(image_folder({"a": 3, "b": 3}), reporter)
    part = relabel(subset(source, [4, 0]), ("b", "a"))
    assert [part.raw(i) for i in range(2)] == [source.raw(4), source.raw(0)]
    assert [part.size(i) for i in range(2)] == [source.size(4), source.size(0)]
    assert np.array_equal(np.asarray(part.open(0)), np.asarray(source.read(4)))


@pytest.mark.parametrize("path", ["no/such.png", "a\0b.png"])
def test_a_file_that_is_not_there_has_no_bytes_and_says_so(path):
    source = FileSource((path,), np.array([0]), ("x",))
    assert source.size(0) == 0
    for read in (source.raw, source.read, source.open):
        with pytest.raises(DataError, match="cannot be read"):
            read(0)

"""Folds: every image is held out once, classes are even, groups are whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data.folds import assign_folds, split_folds
from deitctl.data.readers.digits import load_digits
from deitctl.data.splits import hash_paths
from deitctl.data.subsets import Subset
from deitctl.data.training_data import Source, open_folds, open_for_training
from deitctl.errors import DataError

SINGLE = st.lists(st.integers(0, 4), min_size=5, max_size=60)
SEVERAL = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=5, max_size=60)
FOLDS = st.integers(2, 5)


def hash_names(count: int, seed: int = 0) -> np.ndarray:
    return hash_paths((f"{n}.jpg" for n in range(count)), seed)


@given(SINGLE, FOLDS, st.integers(0, 9))
def test_every_class_and_the_whole_are_divided_evenly(labels, num_folds, seed):
    labels = np.array(labels)
    folds = assign_folds(labels, np.arange(len(labels)), hash_names(len(labels), seed), num_folds)
    for members in (labels == label for label in (*range(5), labels)):
        counts = np.bincount(folds[members], minlength=num_folds)
        assert counts.max() - counts.min() <= 1


@given(SEVERAL, FOLDS)
def test_labels_of_images_of_several_are_divided_more_evenly_than_by_chance(labels, num_folds):
    labels = np.array(labels)
    folds = assign_folds(labels, np.arange(len(labels)), hash_names(len(labels)), num_folds)
    assert set(folds.tolist()) == set(range(num_folds))
    rarest = labels.sum(0).argmin()  # it is divided first
    counts = np.bincount(folds[labels[:, rarest]], minlength=num_folds)
    assert counts.max() - counts.min() <= 1


@given(SINGLE, FOLDS, st.integers(2, 6), st.randoms(use_true_random=False))
def test_groups_are_whole_and_the_order_of_the_images_does_not_matter(
    labels, num_folds, size, random
):
    labels, groups = np.array(labels), np.arange(len(labels)) // size
    hashes = hash_names(len(labels))
    folds = assign_folds(labels, groups, hashes, num_folds)
    assert all(len(set(folds[groups == group].tolist())) == 1 for group in groups)
    order = np.array(random.sample(range(len(labels)), len(labels)))
    again = assign_folds(labels[order], groups[order], hashes[order], num_folds)
    assert (again == folds[order]).all()


class Digits(Subset):
    """Digits under other labels, some of one group."""

    group_names = None


def make_images(labels: np.ndarray, names: list[str] | None = None) -> Digits:
    train, _ = load_digits()
    images = Digits(train, np.arange(len(labels)), labels, ("cat", "dog", "elk"))
    object.__setattr__(images, "group_names", names)
    return images


def test_no_patient_is_in_two_folds(reporter):
    labels = np.arange(60) % 3
    images = make_images(labels, [f"p{n // 4}" for n in range(60)])
    folded = split_folds("x", images, 5, seed=0, group_by="patient", reporter=reporter)
    seen = []
    for fold in range(1, 6):
        train, val = folded.split(fold)
        sides = [{n // 4 for n in part.indices.tolist()} for part in (train, val)]
        assert not sides[0] & sides[1]
        assert val.is_held_out
        assert abs(np.bincount(val.labels) - 4).max() <= 1
        seen += val.indices.tolist()
    assert sorted(seen) == list(range(60))
    assert "5 folds of 12 images, each class divided evenly, none of 15 groups" in reporter.notes[0]
    other = split_folds("x", images, 5, seed=1, group_by="patient", reporter=reporter)
    assert (other.fold_of != folded.fold_of).any()


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 0, 1], "aabb", "2 groups by patient, too few for 3 folds"),
        ([0, 1, 0, 1, 2, 2], "abcdee", "all 2 images of class 'elk' are of one group by patient"),
    ],
)
def test_folds_that_would_be_empty_or_hold_out_all_of_a_class_are_refused(
    labels, names, message, reporter
):
    images = make_images(np.array(labels), list(names))
    with pytest.raises(DataError, match=message):
        split_folds("x", images, 3, seed=0, group_by="patient", reporter=reporter)


def test_a_label_of_one_image_among_several_is_warned_of(reporter):
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0]], bool)
    split_folds("x", make_images(labels), 2, seed=0, group_by="", reporter=reporter)
    assert "the one image of class 'elk'" in reporter.warnings[0]


def test_one_fold_alone_is_that_of_all(image_folder: Callable[..., Path], reporter):
    source = Source(str(image_folder({"cat": 6, "dog": 9})), folds=3)
    folded = open_folds(source, reporter=reporter)
    for fold in (1, 2, 3):
        _, val = open_for_training(replace(source, fold=fold), reporter=reporter)
        assert val.indices.tolist() == folded.split(fold)[1].indices.tolist()


def test_folds_of_one_class_are_refused_as_one_of_them_is(
    image_folder: Callable[..., Path], reporter
):
    source = Source(str(image_folder({"cat": 6})), folds=2)
    for open_data in (open_folds, open_for_training):
        with pytest.raises(DataError, match="3 training and 3 validation images in 1 class"):
            open_data(source, reporter=reporter)


def test_data_with_a_val_split_folds_its_training_images_and_says_so(
    image_folder: Callable[..., Path], reporter
):
    root = image_folder({"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2})
    folded = open_folds(Source(str(root), folds=2), reporter=reporter)
    assert len(folded.images.labels) == 8
    assert "of its training images alone, without val (4 images)" in reporter.notes[0]

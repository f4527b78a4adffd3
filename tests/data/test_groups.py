"""Groups: by a column, a folder or a part of the file names, joined with those of duplicates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data.dataset import FileDataset
from deitctl.data.group_by import check_group_by
from deitctl.data.group_names import compare_groups, name_groups
from deitctl.data.groups import join_duplicates, join_groups, number_groups
from deitctl.data.near_duplicates import ImageGroups
from deitctl.errors import ConfigError, DataError

PATHS = ("cat/p1/a_1.jpg", "cat/p2/b_1.jpg", "dog/p1/a_2.jpg", "dog/p3/b_2.jpg")
IMAGES = FileDataset(
    tuple(f"/x/{path}" for path in PATHS), np.array([0, 0, 1, 1]), ("cat", "dog"), "/x/"
)
NUMBERS = st.lists(st.integers(0, 4), min_size=1, max_size=10)


@pytest.mark.parametrize(
    ("group_by", "names"),
    [
        ("folder:2", ["p1", "p2", "p1", "p3"]),
        ("folder:-1", ["p1", "p2", "p1", "p3"]),
        (r"name:^(\w)_", ["a", "b", "a", "b"]),
        (r"name:_(\d)", ["1", "1", "2", "2"]),
    ],
)
def test_a_group_is_a_folder_or_a_part_of_the_name(group_by, names):
    dataset = replace(IMAGES, labels=np.array([0, 1, 1, 1]))
    assert name_groups(dataset, group_by, "x") == names


def test_a_group_is_an_entry_of_a_column():
    dataset = replace(IMAGES, group_names=(" p1", "p2", "p1", "p2"), labels=np.array([0, 0, 0, 1]))
    assert name_groups(dataset, "patient", "x.csv") == ["p1", "p2", "p1", "p2"]


@pytest.mark.parametrize(
    ("group_by", "group_names", "message"),
    [
        ("patient", None, "x has no column 'patient'"),
        ("patient", ("a", "a", "a", "a"), "All 4 images of x are of one group by patient: 'a'"),
        ("patient", ("a", "", "b", " "), "2 of 4 images of x have no entry for --group-by patient"),
        ("folder:3", None, "4 of 4 images of x have no folder for --group-by folder:3"),
        ("folder:1", None, "The groups of x by folder:1 are its classes"),
        ("name:z(.)", None, "4 of 4 file names of x do not match name:z(.)"),
    ],
)
def test_groups_that_cannot_be_are_refused_in_words(group_by, group_names, message):
    with pytest.raises(DataError) as caught:
        name_groups(replace(IMAGES, group_names=group_names), group_by, "x")
    assert message in str(caught.value)


def test_a_folder_of_the_class_is_answered_with_the_next_level():
    with pytest.raises(DataError, match="folder:2 is the first folder below"):
        name_groups(IMAGES, "folder:1", "x")


@pytest.mark.parametrize(
    "group_by", ["folder:", "folder:0", "folder:x", "name:(", "name:a", "name:(a)(b)"]
)
def test_a_notation_that_means_nothing_is_refused(group_by):
    with pytest.raises(ConfigError):
        check_group_by(group_by)


def test_groups_on_both_sides_of_the_datas_own_split_are_warned_of(reporter):
    train, val = (
        replace(IMAGES, group_names=n) for n in (("a", "b", "b", "a"), ("b", "c", "c", "b"))
    )
    compare_groups("x", train, val, "patient", reporter)
    assert (
        "1 of 3 groups of x by patient are in its training and its validation"
        in reporter.warnings[0]
    )
    compare_groups("x", train, replace(val, group_names=("c", "d", "d", "c")), "patient", reporter)
    assert len(reporter.warnings) == len(reporter.notes) == 1


@given(NUMBERS, st.data())
def test_joined_groups_are_the_connected_parts(one, data):
    other = data.draw(st.lists(st.integers(0, 4), min_size=len(one), max_size=len(one)))
    size = len(one)
    joined = join_groups(
        number_groups([str(n) for n in one]), number_groups([str(n) for n in other])
    )
    linked = np.eye(size, dtype=bool) | (np.equal.outer(one, one)) | np.equal.outer(other, other)
    for _ in range(size):
        linked = (linked.astype(int) @ linked.astype(int)) > 0
    assert (np.equal.outer(joined, joined) == linked).all()


def test_near_duplicates_that_would_join_everything_are_left_apart_but_equal_images_are_not():
    named = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    duplicates = ImageGroups(np.array([0, 1, 0, 3, 4, 5, 6, 7]), np.zeros(8, np.int64), ())
    groups, kind = join_duplicates(named, duplicates, 8, 0.5)
    assert kind == "exact"
    assert groups.tolist() == [0, 0, 0, 0, 4, 4, 6, 6]
    assert join_duplicates(named, duplicates, 8, 1.0)[1] == "near"
    assert join_duplicates(None, None, 3, 0.5)[0].tolist() == [0, 1, 2]

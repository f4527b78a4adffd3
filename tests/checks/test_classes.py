"""Issues of class names and counts."""

from __future__ import annotations

import numpy as np
import pytest

from deitctl.checks.classes import check_classes, make_natural_key
from deitctl.checks.survey import Split
from deitctl.data.readers.digits import ArrayDataset
from deitctl.names import reduce_name


def make_split(name: str, counts: dict[str, int], empty: tuple[str, ...] = ()) -> Split:
    """Tiny images of classes; nothing is decoded here."""
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    return Split(
        name,
        ArrayDataset(np.zeros((len(labels), 1, 1), np.uint8), labels, tuple(counts), name),
        empty,
    )


def find_issues(*splits: Split) -> dict[str, tuple[str, int, tuple[str, ...]]]:
    return {i.code: (i.severity, i.count, i.examples) for i in check_classes(splits)}


def even(*names: str, each: int = 40) -> dict[str, int]:
    return dict.fromkeys(sorted(names), each)


def test_equal_classes_with_enough_images_have_no_issues():
    assert (
        find_issues(
            make_split("train", even("cat", "dog")), make_split("val", even("cat", "dog", each=5))
        )
        == {}
    )
    assert find_issues(make_split("all", even("cat", "dog"))) == {}


def test_classes_of_one_split_only_are_reported():
    issues = find_issues(
        make_split("train", even("cat", "dog")), make_split("val", even("cat", "eel"))
    )
    assert issues["class_only_in_val"] == ("error", 1, ("eel",))
    assert issues["class_only_in_train"] == ("warning", 1, ("dog",))


@pytest.mark.parametrize("other", ["big_dog", "big dog", "Big-Dog", "BIGDOG"])
def test_two_spellings_of_a_name_are_reported(other):
    issues = find_issues(
        make_split("train", even("big dog ", "cat")), make_split("val", even(other, "cat"))
    )
    assert issues["similar_class_names"][:2] == ("error", 1)
    within = find_issues(make_split("all", even("big dog ", other)))
    assert within["similar_class_names"][:2] == ("warning", 1)


def test_unicode_forms_of_a_name_are_equal():
    assert (
        reduce_name("café") == reduce_name("cafe\N{COMBINING ACUTE ACCENT}") != reduce_name("cafe")
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [("-1", "1"), ("B", "B-"), ("A+", "A"), ("C++", "C"), ("1-2", "12"), ("t -5", "t 5")],
)
def test_signs_make_other_names(one, other):
    assert "similar_class_names" not in find_issues(make_split("all", even(one, other)))


def test_characters_that_are_not_seen_make_no_other_name():
    issues = find_issues(make_split("all", even("a", "a\N{ZERO WIDTH SPACE}")))
    assert issues["similar_class_names"] == ("warning", 1, (r"all/'a' / all/'a\u200b'",))


def test_an_empty_class_folder_counts_as_missing():
    issues = find_issues(
        make_split("train", even("cat", "dog"), ("eel",)),
        make_split("val", even("cat", "dog", "eel")),
    )
    assert issues["class_only_in_val"][2] == ("eel",)
    assert issues["empty_class"][:2] == ("warning", 1)


def test_natural_and_lexicographic_order_are_compared():
    issues = find_issues(make_split("all", even("1", "2", "10")))
    assert issues["folder_order"] == ("note", 2, ("all: number 1 is '10' or '2'",))
    assert "folder_order" not in find_issues(make_split("all", even("01", "02", "10")))
    assert "folder_order" in find_issues(make_split("all", even("Zebra", "ant")))
    assert sorted(["class10", "m²", "class9", "Class1"], key=make_natural_key) == [
        "Class1",
        "class9",
        "class10",
        "m²",
    ]


@pytest.mark.parametrize("write", [str, "{:03d}".format, lambda n: str(n + 1)])
def test_a_thousand_numbered_classes_are_reported(write):
    assert "numbered_imagenet" in find_issues(
        make_split("all", even(*map(write, range(1000)), each=5))
    )
    assert "numbered_imagenet" not in find_issues(
        make_split("all", even(*map(write, range(999)), each=5))
    )


def test_too_few_classes_images_and_splits_are_reported():
    issues = find_issues(
        make_split("train", {"cat": 90, "dog": 4}), make_split("val", {"cat": 5, "dog": 3})
    )
    assert issues["few_images"] == ("warning", 1, ("train/dog: 4",))
    assert issues["imbalance"] == ("note", 1, ("cat: 90, dog: 4",))
    assert "imbalance" not in find_issues(make_split("all", {"cat": 100, "dog": 5}))
    assert find_issues(make_split("all", {"cat": 70})).keys() == {"too_few_classes"}
    assert find_issues(make_split("all", even("cat", "dog", each=24))).keys() == {"small_split"}
    assert find_issues(make_split("val", even("cat", "dog"))).keys() == {"missing_split"}
    assert "missing_split" not in find_issues(make_split("train", even("cat", "dog")))

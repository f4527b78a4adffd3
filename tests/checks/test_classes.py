"""What is wrong with class names and counts, by name."""

from __future__ import annotations

import numpy as np
import pytest

from deitctl.checks.classes import check_classes, natural_key, plain_name
from deitctl.checks.survey import Split
from deitctl.data.dataset import ArraySource


def part(name: str, counts: dict[str, int], empty: tuple[str, ...] = ()) -> Split:
    """Tiny images of classes; nothing is decoded here."""
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    return Split(
        name,
        ArraySource(np.zeros((len(labels), 1, 1), np.uint8), labels, tuple(counts), name),
        empty,
    )


def checks(*parts: Split) -> dict[str, tuple[str, int, tuple[str, ...]]]:
    return {f.check: (f.severity, f.count, f.examples) for f in check_classes(parts)}


def even(*names: str, each: int = 40) -> dict[str, int]:
    return dict.fromkeys(sorted(names), each)


def test_equal_classes_with_images_enough_are_sound():
    assert checks(part("train", even("cat", "dog")), part("val", even("cat", "dog", each=5))) == {}
    assert checks(part("all", even("cat", "dog"))) == {}


def test_classes_of_one_part_alone_are_named():
    found = checks(part("train", even("cat", "dog")), part("val", even("cat", "eel")))
    assert found["class_only_in_val"] == ("error", 1, ("eel",))
    assert found["class_only_in_train"] == ("warning", 1, ("dog",))


@pytest.mark.parametrize("other", ["big_dog", "big dog", "Big-Dog", "BIGDOG"])
def test_one_name_in_two_spellings_is_said_to_be_one(other):
    found = checks(part("train", even("big dog ", "cat")), part("val", even(other, "cat")))
    assert found["similar_class_names"][:2] == ("error", 1)
    within = checks(part("all", even("big dog ", other)))
    assert within["similar_class_names"][:2] == ("warning", 1)


def test_unicode_writes_one_name_in_two_ways():
    assert plain_name("café") == plain_name("cafe\N{COMBINING ACUTE ACCENT}") != plain_name("cafe")


def test_a_class_that_is_there_and_empty_counts_as_missing():
    found = checks(
        part("train", even("cat", "dog"), ("eel",)), part("val", even("cat", "dog", "eel"))
    )
    assert found["class_only_in_val"][2] == ("eel",)
    assert found["empty_class"][:2] == ("warning", 1)


def test_natural_and_lexicographic_order_are_compared():
    found = checks(part("all", even("1", "2", "10")))
    assert found["folder_order"] == ("note", 2, ("all: number 1 is '10' or '2'",))
    assert "folder_order" not in checks(part("all", even("01", "02", "10")))
    assert "folder_order" in checks(part("all", even("Zebra", "ant")))
    assert sorted(["class10", "m²", "class9", "Class1"], key=natural_key) == [
        "Class1",
        "class9",
        "class10",
        "m²",
    ]


@pytest.mark.parametrize("write", [str, "{:03d}".format, lambda n: str(n + 1)])
def test_a_thousand_numbers_in_place_of_wordnet_ids(write):
    assert "numbered_imagenet" in checks(part("all", even(*map(write, range(1000)), each=5)))
    assert "numbered_imagenet" not in checks(part("all", even(*map(write, range(999)), each=5)))


def test_too_little_of_anything():
    found = checks(part("train", {"cat": 90, "dog": 4}), part("val", {"cat": 5, "dog": 5}))
    assert found["few_images"] == ("warning", 1, ("train/dog: 4",))
    assert found["imbalance"] == ("note", 1, ("cat: 90, dog: 4",))
    assert "imbalance" not in checks(part("all", {"cat": 100, "dog": 5}))
    assert checks(part("all", {"cat": 70})).keys() == {"too_few_classes"}
    assert checks(part("all", even("cat", "dog", each=31))).keys() == {"small_part"}
    assert checks(part("val", even("cat", "dog"))).keys() == {"part_missing"}

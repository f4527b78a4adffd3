"""A training is warned of its classes by what is open already; a usual data set adds no line."""

from __future__ import annotations

import numpy as np
import pytest

from deitctl.checks.preflight import warn_about_classes
from deitctl.data.dataset import FileDataset
from deitctl.data.splits import hold_out, relabel


def make_dataset(counts: dict[str, int]) -> FileDataset:
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    paths = tuple(f"{number}.jpg" for number in range(len(labels)))
    return FileDataset(paths, labels, tuple(counts))


@pytest.mark.parametrize(
    ("train", "val", "lines"),
    [
        ({"cat": 20, "dog": 30}, {"cat": 5, "dog": 1}, []),
        ({"cat": 20, "dog": 30}, {"cat": 5}, ["Classes of training that validation lacks (dog)"]),
        (
            {"Cat": 9, "cat": 9, "dog": 9},
            {"Cat": 9, "cat": 9, "dog": 9},
            ["Class names that differ only in case"],
        ),
        ({"cat": 4, "dog": 30}, {"cat": 5, "dog": 5}, ["fewer than 5 images (train/cat: 4)"]),
        (
            {f"c{n}": 2 for n in range(9)},
            {f"c{n}": 9 for n in range(9)},
            ["(train/c0: 2, train/c1: 2, train/c2: 2 and 6 more)"],
        ),
        ({str(n): 5 for n in range(1000)}, {str(n): 5 for n in range(1000)}, ["named by number"]),
    ],
)
def test_each_kind_of_issue_is_one_line(train, val, lines, reporter):
    opened = make_dataset(dict(sorted(train.items())))
    validated = relabel(make_dataset(dict(sorted(val.items()))), opened.class_names)
    warn_about_classes("data", opened, validated, reporter)
    assert len(reporter.warnings) == len(lines)
    for warning, line in zip(reporter.warnings, lines, strict=True):
        assert line in warning
        assert warning.startswith("data: ")
        assert "\n" not in warning


def test_images_held_out_are_no_part_of_their_own(reporter):
    """Of 20 images 4 are held out, which is as it should be."""
    split = hold_out(make_dataset({"cat": 20, "dog": 20}), 0.2, 0)
    warn_about_classes("data", split.train, split.val, reporter)
    assert reporter.warnings == []

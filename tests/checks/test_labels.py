"""Labels of several an image: counts, pairs, and what of them says nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import deitctl
from deitctl.checks.check import check

LABELS = ["a|b|all", "a|b|all", "all|c", "c|all", "d|c|all", "all|d"]


def write_table(root: Path, labels: list[str]) -> str:
    rows = [f"x/{n}.png,{label}" for n, label in enumerate(labels)]
    (root / "t.csv").write_text("\n".join(["path,label", *rows]))
    return str(root / "t.csv")


def test_labels_are_counted_by_class_and_by_pair(image_folder):
    counts = check(write_table(image_folder({"x": 6}), LABELS), workers=0).splits["all"].labels
    assert (counts.num_several, counts.num_unlabeled, counts.per_image) == (6, 0, 15 / 6)
    assert counts.images_per_class == {"a": 2, "all": 6, "b": 2, "c": 3, "d": 2}
    assert (counts.pairs[0].classes, counts.pairs[0].num_images) == (("all", "c"), 3)


def test_classes_that_say_nothing_and_images_without_a_label_are_issues(image_folder):
    root = image_folder({"x": 6})
    issues = {i.code: i.examples for i in check(write_table(root, LABELS), workers=0).issues}
    assert issues["class_of_all"] == ("all: all",)
    assert issues["inseparable_classes"] == ("all: a = b, 2 images",)
    assert "no_label" not in issues
    table = write_table(root, [*LABELS[:5], ""])
    issues = {i.code: i.examples for i in check(table, task="multilabel", workers=0).issues}
    assert [Path(name).name for name in issues["no_label"]] == ["5.png"]
    assert "class_of_all" not in issues


def test_equal_images_are_compared_by_all_of_their_labels(image_folder):
    root = image_folder({"x": 6})
    for copy, source in ((4, 0), (5, 1)):
        (root / f"x/{copy}.png").write_bytes((root / f"x/{source}.png").read_bytes())
    table = write_table(root, ["a|b", "a|b", "a", "c", "b|a", "b"])
    issues = {issue.code: issue.count for issue in check(table, workers=0).issues}
    assert issues["duplicate_in_class"] == issues["duplicate_across_classes"] == 1


def test_a_manifest_keeps_several_labels(image_folder, tmp_path):
    root = image_folder({"cat": 2, "dog": 2})
    (root / "dog/0.png").unlink()
    (root / "dog/0.png").symlink_to(root / "cat/0.png")
    result = check(str(root), write_manifest=str(tmp_path / "m.csv"), workers=0)
    assert result.splits["all"].num_images == 3
    assert not any(issue.code.startswith("duplicate") for issue in result.issues)
    rows = list(csv.DictReader((tmp_path / "m.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == ['["cat", "dog"]', '["cat"]', '["dog"]']
    again = deitctl.check(str(tmp_path / "m.csv"), workers=0).splits["all"]
    assert again.labels == result.splits["all"].labels

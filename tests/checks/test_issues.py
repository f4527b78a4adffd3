"""Issues of one kind are merged; a fix list can be carried out as it stands, and opened by a spreadsheet."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.checks.issues import (
    Remedy,
    escape,
    merge_issues,
    report,
    resolve_conflicts,
    write_fix_list,
)


def remedies(*rows: Remedy):
    return [
        issue
        for row in rows
        for issue in report(row.issue, 1, [row.file], remedies=lambda row=row: [row])
    ]


@given(st.text(max_size=20))
def test_a_field_stays_on_its_line_and_is_no_formula(name):
    field = escape(name)
    assert field.isprintable()
    assert not field.startswith(("=", "+", "-", "@"))
    assert field == name or not name.isprintable() or "\\" in name or name[0] in "=+-@"


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("train/a b,c.jpg", "train/a b,c.jpg"),
        ("=cmd|'/c calc'!A1.jpg", "./=cmd|'/c calc'!A1.jpg"),
        ("a\nb\x1b.jpg", "a\\nb\\x1b.jpg"),
        ("a\\nb.jpg", "a\\\\nb.jpg"),
        ("caf\udce9.jpg", "caf\\udce9.jpg"),
        ("犬/é.jpg", "犬/é.jpg"),
    ],
)
def test_names_can_be_read_back(name, field, tmp_path):
    assert escape(name) == field
    assert (
        write_fix_list(
            tmp_path / "out" / "fixes.csv", remedies(Remedy(name, "truncated", "delete"))
        )
        == 1
    )
    with (tmp_path / "out" / "fixes.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [list(Remedy._fields), [field, "truncated", "delete", ""]]


def test_a_deleted_file_is_not_renamed_or_moved_as_well():
    rows = (
        Remedy("a.jpg", "flat_split", "move", "cat/a.jpg"),
        Remedy("a.jpg", "truncated", "delete"),
        Remedy("b.jpg", "wrong_extension", "rename", "b.png"),
        Remedy("b.jpg", "duplicate_in_class", "delete"),
        Remedy("b.jpg", "duplicate_across_splits", "delete"),
    )
    assert [(r.file, r.action) for r in resolve_conflicts(remedies(*rows))] == [
        ("a.jpg", "delete"),
        ("b.jpg", "delete"),
    ]


def test_nothing_is_moved_onto_another_file(tmp_path):
    (tmp_path / "a.png").touch()
    rows = (
        Remedy(str(tmp_path / "a.jpg"), "wrong_extension", "rename", str(tmp_path / "a.png")),
        Remedy("b.jpg", "wrong_extension", "rename", "b.png"),
        Remedy("b.jpeg", "wrong_extension", "rename", "b.png"),
    )
    assert [r.action for r in resolve_conflicts(remedies(*rows))] == ["review", "rename", "review"]


def test_folders_are_renamed_after_their_files_and_inner_ones_first():
    rows = (
        Remedy("train/big dog", "similar_class_names", "rename", "train/big_dog"),
        Remedy("train/big dog/old", "empty_class", "delete"),
        Remedy("train/big dog/a.jpg", "truncated", "delete"),
    )
    assert [r.file for r in resolve_conflicts(remedies(*rows))] == [
        "train/big dog/a.jpg",
        "train/big dog/old",
        "train/big dog",
    ]


def test_issues_of_one_kind_are_merged_and_errors_come_first():
    issues = [
        *report("few_images", 1, ["a"]),
        *report("color_modes", 2, ["b", "c"], details=["(L: 2)"]),
        *report("few_images", 0, ["d"]),
        *report("truncated", 3, map(str, range(20))),
        *report("few_images", 2, ["e"], severity="error"),
    ]
    merged = merge_issues(issues)
    assert [(i.code, i.severity, i.count) for i in merged] == [
        ("few_images", "error", 3),
        ("truncated", "error", 3),
        ("color_modes", "note", 2),
    ]
    assert merged[0].examples == ("a", "e")
    assert len(merged[1].examples) == 10
    assert merged[2].message.endswith(" (L: 2)")

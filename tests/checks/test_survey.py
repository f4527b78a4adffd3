"""A survey reads every layout, and reports its issues where training refuses it."""

from __future__ import annotations

import shutil
import tarfile

import pytest

from deitctl.checks.survey import survey
from deitctl.errors import DataError

BOTH = {"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1}


def survey_data(data, reporter) -> tuple[dict[str, int], dict[str, tuple[int, tuple[str, ...]]]]:
    """Images by split, and count and examples by issue."""
    result = survey(str(data), reporter)
    splits = {split.name: len(split.dataset.labels) for split in result.splits}
    return splits, {issue.code: (issue.count, issue.examples) for issue in result.issues}


@pytest.mark.parametrize(
    ("counts", "splits"),
    [
        (BOTH, {"train": 4, "val": 2}),
        ({"cat": 3, "dog": 2}, {"all": 5}),
        ({"val/cat": 1, "val/dog": 1}, {"val": 2}),
        ({"train": 2, "cat": 1}, {"all": 3}),  # a class called train
        ({"training/cat": 1, "training/dog": 2, "validation/cat": 1}, {"train": 3, "val": 1}),
        ({"Train/cat": 1, "Test_Set/cat": 2}, {"train": 1, "test": 2}),
        ({"cat/train": 1, "cat/val": 2, "dog/train": 3, "dog/val": 4}, {"train": 4, "val": 6}),
    ],
)
def test_a_valid_layout_has_no_issues(counts, splits, image_folder, reporter):
    assert survey_data(image_folder(counts), reporter) == (splits, {})


@pytest.mark.parametrize(
    ("counts", "splits", "code", "where"),
    [
        ({**BOTH, "test": 3}, {"train": 4, "val": 2, "test": 3}, "flat_split", None),
        ({**BOTH, "more/cat": 3}, {"train": 4, "val": 2}, "unused_folder", "more"),
        (
            {**BOTH, "train/train/cat": 2, "train/train/dog": 2},
            {"train": 4, "val": 2},
            "unused_folder",
            "train/train",
        ),
        (
            {"cat": 1, "cat/masks": 1, "dog": 1, "dog/masks": 1},
            {"all": 2},
            "unused_folder",
            "cat/masks",
        ),
        ({"train/cat": 1, "train/dog": 1, "val": 3}, {"train": 2, "val": 3}, "flat_split", None),
        ({"train": 1, "val": 2}, {"train": 1, "val": 2}, "flat_split", None),
        ({"": 3}, {"all": 3}, "flat_split", None),
        (
            {"inner/train/cat": 1, "inner/val/cat": 2},
            {"train": 1, "val": 2},
            "nested_split",
            "inner",
        ),
        (
            {"train/train/cat": 1, "val/cat": 2},
            {"train": 1, "val": 2},
            "nested_split",
            "train/train",
        ),
        ({**BOTH, "train": 2}, {"train": 4, "val": 2}, "loose_images", "train/0.png"),
        ({**BOTH, "train/cat/old": 2}, {"train": 6, "val": 2}, "subfolders", "train/cat/old"),
    ],
)
def test_a_wrong_layout_is_reported_and_read_all_the_same(
    counts, splits, code, where, image_folder, reporter
):
    root = image_folder(counts)
    sizes, issues = survey_data(root, reporter)
    assert sizes == splits
    if code == "flat_split":  # reported with the labels that it may get
        assert not issues
    else:
        assert issues.keys() == {code}
        assert issues[code][1][0] == str(root / where)


def test_empty_classes_and_empty_folders(image_folder, tmp_path, reporter):
    root = image_folder(BOTH)
    (root / "val" / "cow").mkdir()
    assert [split.empty for split in survey(str(root), reporter).splits] == [(), ("cow",)]
    assert reporter.warnings == []
    shutil.rmtree(root / "val")
    (root / "val" / "cat").mkdir(parents=True)
    assert survey_data(root, reporter) == ({"train": 4}, {"no_images": (1, (str(root / "val"),))})
    (tmp_path / "void").mkdir()
    assert survey_data(tmp_path / "void", reporter)[1].keys() == {"no_images"}


def test_class_folders_that_are_one_class_are_named(image_folder, reporter):
    root = image_folder({"caf\u00e9": 2, "cafe\u0301": 3, "dog": 1})
    (issue,) = survey(str(root), reporter).issues
    assert issue.code == "similar_class_names"
    assert issue.severity == "warning"
    assert issue.examples == (r"'cafe\u0301' / 'caf\xe9'",)
    assert [(r.action, r.target) for r in issue.remedies()] == [("merge", str(root / "cafe\u0301"))]


def test_other_files_are_counted_and_images_with_other_extensions_are_errors(
    image_folder, reporter
):
    root = image_folder({"cat": 2, "dog": 2})
    for name in ("a.txt", "b.TXT", "c.xml", ".hidden", "drawing.PSD"):
        (root / "cat" / name).write_text("x")
    shutil.copy(root / "dog" / "0.png", root / "dog" / "noextension")
    surveyed = survey(str(root), reporter)
    issues = {issue.code: issue for issue in surveyed.issues}
    assert issues.keys() == {"ignored_files", "unread_images"}
    assert issues["ignored_files"].message.endswith("(.txt: 2, .xml: 1)")
    assert issues["unread_images"].examples == (str(root / "cat" / "drawing.PSD"),)
    assert len(surveyed.splits[0].dataset.labels) == 5  # by its content, `noextension` is an image


def test_a_link_to_a_parent_folder_is_entered_once(image_folder, reporter):
    root = image_folder({"cat": 1, "dog": 1})
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    (root / "cat" / "note.txt").touch()
    assert survey_data(root, reporter)[1].keys() == {"ignored_files"}


def test_a_parquet_file_beside_class_folders_changes_nothing(image_folder, reporter):
    """Embeddings of the images, say."""
    root = image_folder({"cat": 2, "dog": 2})
    (root / "eel").mkdir()
    for place in (root, root / "cat"):
        (place / "embeddings.parquet").write_bytes(b"PAR1")
    surveyed = survey(str(root), reporter)
    assert [split.empty for split in surveyed.splits] == [("eel",)]
    assert [issue.code for issue in surveyed.issues] == ["ignored_files"]


@pytest.mark.parametrize(
    ("counts", "splits", "codes"),
    [
        (BOTH, {"train": 4, "val": 2}, {}),
        ({"train/cat": 1, "train/dog": 1, "val": 3}, {"train": 2}, {"flat_split": 3}),
        ({**BOTH, "val": 2}, {"train": 4, "val": 2}, {"loose_images": 2}),
        ({"": 3}, {}, {"flat_split": 3}),
    ],
)
def test_a_tar_is_surveyed_too(counts, splits, codes, image_folder, tmp_path, reporter):
    root = image_folder(counts)
    for arcname in ("", "around"):
        with tarfile.open(tmp_path / "data.TAR", "w") as archive:
            for entry in sorted(root.iterdir()):
                archive.add(
                    entry,
                    f"{arcname}/{entry.name}" if arcname and counts != {"": 3} else entry.name,
                )
        sizes, issues = survey_data(tmp_path / "data.TAR", reporter)
        assert (sizes, {code: count for code, (count, _) in issues.items()}) == (splits, codes)


def test_data_that_cannot_be_opened_is_an_error(tmp_path, reporter):
    (tmp_path / "cut.tar").write_bytes(b"no tar")
    (tmp_path / "table.csv").write_text("file,class\na,b\n")
    for name in ("nowhere", "cut.tar", "table.csv"):
        with pytest.raises(DataError, match=name):
            survey(str(tmp_path / name), reporter)


def test_the_built_in_digits_and_tables_are_surveyed(image_folder, reporter):
    assert survey_data("", reporter) == ({"train": 1442, "val": 355}, {})
    root = image_folder({"cat": 1})
    (root / "table.csv").write_text(
        "path,label,split\ncat/0.png,cat,train\ncat/0.png,cat,val\ngone.png,dog,val\n"
    )
    assert survey_data(root / "table.csv", reporter) == ({"train": 1, "val": 2}, {})

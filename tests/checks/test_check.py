"""All issues of a broken data set are reported, none of a valid one, and the fix list resolves them."""

from __future__ import annotations

import ast
import csv
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import deitctl
from deitctl.checks.check import SplitSize, check
from deitctl.checks.issues import ISSUES, SEVERITIES
from deitctl.cli.app import app
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import ConfigError, DataError, DeitctlError
from deitctl.records import to_json

DOCUMENT = Path(deitctl.__file__).parent.parent / "docs" / "check.md"


def texture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """An image unlike those of other seeds: soft spots of color."""
    spots = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def valid(tmp_path) -> Path:
    """Two classes of 35 training and 5 validation images without issues."""
    seed = 0
    for folder, count in (("train/cat", 35), ("train/dog", 35), ("val/cat", 5), ("val/dog", 5)):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for number in range(count):
            texture(seed := seed + 1).save(tmp_path / "photos" / folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def broken(valid) -> Path:
    """The same with issues of many kinds, all of which a fix list resolves."""
    cat, dog, val = valid / "train" / "cat", valid / "train" / "dog", valid / "val"
    (cat / "zero.png").touch()
    (cat / "=page.jpg").write_text("<html>404</html>")
    (cat / "cut.png").write_bytes((cat / "1.png").read_bytes()[:900])
    (cat / "line\nbreak.png").write_bytes(b"no image")
    texture(1000).save(cat / "really.jpg", "PNG")
    shutil.copy(dog / "0.png", dog / "again.png")
    shutil.copy(dog / "1.png", val / "dog" / "leak.png")
    (valid / "train" / "eel").mkdir()
    (val / "cat").rename(val / "Cat")
    return valid


def counts(result) -> dict[str, int]:
    return {issue.code: issue.count for issue in result.issues}


def test_a_valid_data_set_has_no_issues(valid):
    result = check(str(valid))
    assert (result.issues, result.num_errors) == ((), 0)
    assert result.splits == {
        "train": SplitSize(num_images=70, num_classes=2),
        "val": SplitSize(num_images=10, num_classes=2),
    }


def test_the_built_in_digits_are_valid():
    result = deitctl.check()
    assert (result.data, result.num_errors) == ("digits", 0)
    assert counts(result) == {"small_side": 1797}


def test_issues_are_the_same_with_any_number_of_workers(broken):
    alone, together = check(str(broken), workers=0), check(str(broken), workers=2)
    assert to_json(alone.issues) == to_json(together.issues)
    assert alone.num_errors == 6
    assert counts(alone) == {
        "class_only_in_val": 1,
        "similar_class_names": 1,
        "empty_file": 1,
        "not_an_image": 2,
        "truncated": 1,
        "duplicate_across_splits": 1,
        "class_only_in_train": 1,
        "empty_class": 1,
        "duplicate_in_class": 1,
        "wrong_extension": 1,
    }
    severities = [SEVERITIES.index(issue.severity) for issue in alone.issues]
    assert severities == sorted(severities)


def test_a_check_changes_nothing(broken, tmp_path):
    def state():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(broken.rglob("*"))}

    before = state()
    check(str(broken), fix_list=str(tmp_path / "fixes.csv"))
    assert state() == before


def carry_out(fix_list: Path) -> None:
    """Do what a fix list says, as a script of its reader would."""
    with fix_list.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name, target = (
                Path(ast.literal_eval("'" + row[key].replace("'", "\\'") + "'"))
                for key in ("file", "target")
            )
            if row["action"] == "delete" and name.is_dir():
                name.rmdir()
            elif row["action"] == "delete":
                name.unlink()
            elif row["action"] in ("move", "rename"):
                target.parent.mkdir(exist_ok=True)
                name.rename(target)


def test_carrying_out_the_fix_list_leaves_what_is_for_a_person(broken, tmp_path):
    check(str(broken), fix_list=str(tmp_path / "fixes.csv"))
    carry_out(tmp_path / "fixes.csv")
    assert counts(check(str(broken))) == {"not_an_image": 2}


def test_of_unreadable_files_only_empty_and_truncated_ones_may_be_deleted(valid, tmp_path):
    """A HEIC photo, a pointer or a page stands for an image that is somewhere, or that others can read."""
    folder = valid / "train" / "cat"
    whole = (folder / "1.png").read_bytes()
    files = {
        "empty.png": (b"", "empty_file", "delete"),
        "cut.png": (whole[:900], "truncated", "delete"),
        "jxl.jpg": (b"\xff\x0a" + bytes(90), "other_format", "review"),
        "scan.png": (bytes(128) + b"DICM" + bytes(90), "other_format", "review"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "not_an_image", "review"),
        "page.jpg": (b"\n<!DOCTYPE html>", "not_an_image", "review"),
        "zeros.jpg": (bytes(900), "not_an_image", "review"),
        "noise.jpg": (b"\x03\x11" * 90, "not_an_image", "review"),
        "bad.png": (whole[:200] + bytes(50) + whole[250:], "damaged", "review"),
    }
    for name, (data, _, _) in files.items():
        (folder / name).write_bytes(data)
    result = check(str(valid), fix_list=str(tmp_path / "fixes.csv"))
    with (tmp_path / "fixes.csv").open(newline="", encoding="utf-8") as file:
        rows = {Path(r["file"]).name: (r["issue"], r["action"]) for r in csv.DictReader(file)}
    assert rows == {name: (issue, action) for name, (_, issue, action) in files.items()}
    messages = {issue.code: issue.message for issue in result.issues}
    assert "(a JPEG XL image: 1, a DICOM file: 1)" in messages["other_format"]
    assert "a Git LFS pointer: 1" in messages["not_an_image"]


def test_the_fix_list_never_deletes_the_only_copy_of_an_image(valid, tmp_path):
    """A file behind two names, or listed twice, is no duplicate."""
    (valid / "val" / "cat" / "link.png").symlink_to(valid / "train" / "cat" / "0.png")
    (valid / "train" / "dog" / "link.png").symlink_to(valid / "train" / "dog" / "0.png")
    check(str(valid), fix_list=str(tmp_path / "fixes.csv"))
    with (tmp_path / "fixes.csv").open(newline="", encoding="utf-8") as file:
        rows = [
            (Path(r["file"]).relative_to(valid).as_posix(), r["action"])
            for r in csv.DictReader(file)
        ]
    assert rows == [("train/cat/0.png", "review"), ("train/dog/link.png", "delete")]
    (valid / "manifest.csv").write_text(
        "path,label\n" + "train/cat/1.png,cat\n" * 2 + "train/dog/1.png,dog\n"
    )
    result = check(str(valid / "manifest.csv"))
    assert [r.action for issue in result.issues for r in issue.remedies()] == ["review"]


def test_near_duplicates_are_no_error(valid):
    texture(1).resize((48, 36)).save(valid / "val" / "cat" / "small.jpg", quality=60)
    texture(2).convert("L").save(valid / "train" / "dog" / "gray.png")
    result = check(str(valid))
    assert result.num_errors == 0
    assert counts(result) == {
        "near_duplicate_across_splits": 1,
        "near_duplicate_across_classes": 1,
        "color_modes": 1,
    }
    assert result.issues[0].examples == (f"{valid}/val/cat/small.jpg ~ {valid}/train/cat/0.png",)


def test_one_image_under_two_labels_is_an_error(valid):
    shutil.copy(valid / "train" / "dog" / "3.png", valid / "train" / "cat" / "clash.png")
    result = check(str(valid))
    assert result.num_errors == 1
    assert counts(result) == {"duplicate_across_classes": 1}


def test_copies_in_several_class_folders_may_be_all_labels_of_an_image(valid):
    for number in range(
        4
    ):  # of 84; their names differ, so that training takes them for other images
        dog = valid / "train" / "dog" / f"{number}.png"
        shutil.copy(dog, valid / "train" / "cat" / f"copy{number}.png")
    assert counts(check(str(valid))) == {"duplicate_across_classes": 4}
    shutil.copy(valid / "train/dog/9.png", valid / "train/cat/copy9.png")
    result = check(str(valid))
    assert counts(result) == {"images_of_several_classes": 5}
    assert "--task multilabel" in result.issues[0].fix
    assert check(str(valid), task="multilabel").num_errors == 0


def test_odd_images_are_counted(valid):
    cat = valid / "train" / "cat"
    texture(500, (400, 60)).save(cat / "long.png")
    texture(501, (5000, 4100)).save(cat / "many.jpg", quality=50)
    texture(502, (40, 20)).save(cat / "small.png")
    Image.new("RGB", (64, 48), "white").save(cat / "blank.png")
    texture(503).convert("CMYK").save(cat / "print.jpg")
    texture(504).convert("L").save(cat / "gray.jpg")
    result = check(str(valid))
    assert result.num_errors == 0
    assert counts(result) == {
        "blank": 1,
        "small_side": 1,
        "long_shape": 1,
        "many_pixels": 1,
        "color_modes": 2,
    }
    assert {issue.code: issue.message for issue in result.issues}["color_modes"].endswith(
        "(L: 1, CMYK: 1)"
    )


def flatten(val: Path, truth: Path) -> dict[str, str]:
    """Move the images of class folders side by side; write their labels as rows, and return them."""
    labels = {}
    for number, image in enumerate(sorted(val.glob("*/*"))):
        labels[f"ILSVRC2012_val_{number + 1:08d}.png"] = image.parent.name
        image.rename(val / f"ILSVRC2012_val_{number + 1:08d}.png")
    for folder in [p for p in val.iterdir() if p.is_dir()]:
        folder.rmdir()
    truth.write_text("".join(f"{name} {label}\n" for name, label in labels.items()))
    return labels


def test_a_flat_validation_split_becomes_a_manifest_that_trains_and_a_list_of_moves(
    valid, tmp_path, reporter
):
    labels = flatten(valid / "val", tmp_path / "truth.txt")
    assert counts(check(str(valid))) == {"flat_split": 10}
    for manifest in (tmp_path / "manifest.csv", tmp_path / "elsewhere" / "manifest.csv"):
        result = check(
            str(valid),
            ground_truth=str(tmp_path / "truth.txt"),
            write_manifest=str(manifest),
            fix_list=str(tmp_path / "fixes.csv"),
        )
        assert counts(result) == {"flat_split": 10}
        train, val = open_for_training(Source(str(manifest)), reporter=reporter)
        assert (len(train.labels), train.read(0).size, val.read(0).size) == (70, (64, 48), (64, 48))
        assert {
            Path(val.name(i)).name: val.class_names[c] for i, c in enumerate(val.labels.tolist())
        } == labels
        assert counts(check(str(manifest))) == {}
    carry_out(tmp_path / "fixes.csv")
    assert counts(check(str(valid))) == {}


def test_images_without_ground_truth_are_reported(valid, tmp_path):
    truth = tmp_path / "truth.txt"
    flatten(valid / "val", truth)
    truth.write_text("".join(truth.read_text().splitlines(keepends=True)[:-2]))
    result = check(str(valid), ground_truth=str(truth))
    assert counts(result)["not_in_ground_truth"] == 2
    assert result.splits["val"] == SplitSize(num_images=8, num_classes=2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [("other.png cat\n", "names none of the images"), ("{} 65\n", "labels are numbers such as 65")],
)
def test_a_ground_truth_of_other_images_is_refused(rows, message, valid, tmp_path):
    labels = flatten(valid / "val", tmp_path / "truth.txt")
    (tmp_path / "truth.txt").write_text("".join(rows.format(name) for name in labels))
    if rows.startswith("other"):
        (tmp_path / "truth.txt").write_text(rows)
    with pytest.raises(DataError, match=message):
        check(str(valid), ground_truth=str(tmp_path / "truth.txt"))


def test_a_ground_truth_is_not_used_where_images_lie_in_class_folders(valid, tmp_path, reporter):
    (tmp_path / "truth.txt").write_text("a.png cat\n")
    check(str(valid), ground_truth=str(tmp_path / "truth.txt"), reporter=reporter)
    assert "all images lie in class folders" in reporter.warnings[0]


def test_a_ground_truth_is_not_used_inside_a_tar(valid, tmp_path, reporter):
    flatten(valid / "val", tmp_path / "truth.txt")
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(valid, "photos")
    result = check(
        str(tmp_path / "data.tar"), ground_truth=str(tmp_path / "truth.txt"), reporter=reporter
    )
    assert counts(result) == {"flat_split": 10}  # a fifth of train can be held out
    assert "unpack it" in reporter.warnings[0]


def test_a_manifest_of_unlabeled_images_or_no_files_is_refused(valid, tmp_path):
    with pytest.raises(ConfigError, match=r"must end in \.csv"):
        check(str(valid), write_manifest=str(tmp_path / "manifest.txt"))
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="no images to write"):
        check(str(tmp_path / "void"), write_manifest=str(tmp_path / "manifest.csv"))
    with pytest.raises(DataError, match="are no files"):
        check("digits", write_manifest=str(tmp_path / "manifest.csv"))
    flatten(valid / "val", tmp_path / "truth.txt")
    with pytest.raises(DataError, match="--ground-truth"):
        check(str(valid), write_manifest=str(tmp_path / "manifest.csv"))
    with pytest.raises(DeitctlError, match="Cannot write"):
        check(str(valid), fix_list=str(tmp_path))


@pytest.mark.parametrize(("data", "code"), [("valid", 0), ("broken", 3)])
def test_the_exit_code_tells_whether_there_are_errors(data, code, request):
    root = request.getfixturevalue(data)
    ran = CliRunner().invoke(app, ["check", str(root), "--quiet"])
    assert ran.exit_code == code
    record = json.loads(ran.stdout)
    assert record.keys() == {
        "schema_version",
        "data",
        "splits",
        "issues",
        "num_errors",
        "seconds",
    }
    assert (record["num_errors"] > 0) is (code == 3)
    for issue in record["issues"]:
        assert issue.keys() == {"code", "severity", "count", "examples", "message", "fix"}
    table = CliRunner().invoke(
        app, ["check", str(root), "--format", "table"], env={"COLUMNS": "200"}
    )
    assert table.exit_code == code
    assert "\x1b" not in table.stdout
    assert all(issue["code"] in table.stdout for issue in record["issues"])


def test_every_issue_is_documented_with_its_severity():
    rows = [
        line.split("|")
        for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") and line.count(" | ") == 2
    ]
    documented = {row[1].strip(" `"): row[2].strip() for row in rows}
    assert documented == {code: kind.severity for code, kind in ISSUES.items()}

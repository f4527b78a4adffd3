"""A broken data set is described whole, a sound one is left in peace, and what the fix list says mends it."""

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
from deitctl.checks.check import check
from deitctl.checks.findings import CHECKS, SEVERITIES
from deitctl.cli.app import app
from deitctl.data.open import open_for_training
from deitctl.errors import ConfigError, DataError, DeitctlError

DOCUMENT = Path(deitctl.__file__).parent.parent / "docs" / "check.md"


def texture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """An image unlike those of other seeds: soft spots of color."""
    spots = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def sound(tmp_path) -> Path:
    """Two classes of 35 training and 5 validation images with nothing to say about them."""
    seed = 0
    for folder, count in (("train/cat", 35), ("train/dog", 35), ("val/cat", 5), ("val/dog", 5)):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for number in range(count):
            texture(seed := seed + 1).save(tmp_path / "photos" / folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def broken(sound) -> Path:
    """The same with something wrong of many kinds, all of which a fix list can mend."""
    cat, dog, val = sound / "train" / "cat", sound / "train" / "dog", sound / "val"
    (cat / "zero.png").touch()
    (cat / "=page.jpg").write_text("<html>404</html>")
    (cat / "cut.png").write_bytes((cat / "1.png").read_bytes()[:900])
    (cat / "line\nbreak.png").write_bytes(b"no image")
    texture(1000).save(cat / "really.jpg", "PNG")
    shutil.copy(dog / "0.png", dog / "again.png")
    shutil.copy(dog / "1.png", val / "dog" / "leak.png")
    (sound / "train" / "eel").mkdir()
    (val / "cat").rename(val / "Cat")
    return sound


def counts(result) -> dict[str, int]:
    return {f.check: f.count for f in result.findings}


def test_a_sound_data_set_has_no_findings(sound):
    result = check(str(sound))
    assert result.findings == ()
    assert result.sound
    assert result.parts == {
        "train": {"images": 70, "classes": 2},
        "val": {"images": 10, "classes": 2},
    }


def test_the_built_in_digits_are_sound():
    result = deitctl.check()
    assert (result.data, result.sound) == ("digits", True)
    assert counts(result) == {"small_side": 1797}


def test_every_kind_of_damage_is_found_by_any_number_of_processes(broken):
    alone, together = check(str(broken), workers=0), check(str(broken), workers=2)
    assert [f.to_dict() for f in alone.findings] == [f.to_dict() for f in together.findings]
    assert not alone.sound
    assert counts(alone) == {
        "class_only_in_val": 1,
        "similar_class_names": 1,
        "empty_file": 1,
        "not_an_image": 2,
        "truncated": 1,
        "duplicate_across_parts": 1,
        "class_only_in_train": 1,
        "empty_class": 1,
        "duplicate_in_class": 1,
        "wrong_extension": 1,
    }
    severities = [SEVERITIES.index(f.severity) for f in alone.findings]
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


def test_a_fix_list_that_is_carried_out_leaves_a_sound_data_set(broken, tmp_path):
    check(str(broken), fix_list=str(tmp_path / "fixes.csv"))
    carry_out(tmp_path / "fixes.csv")
    assert counts(check(str(broken))) == {}


def test_the_only_copy_of_an_image_is_never_to_be_deleted(sound, tmp_path):
    """A file behind two names, or listed twice, looks like two copies."""
    (sound / "val" / "cat" / "link.png").symlink_to(sound / "train" / "cat" / "0.png")
    (sound / "train" / "dog" / "link.png").symlink_to(sound / "train" / "dog" / "0.png")
    check(str(sound), fix_list=str(tmp_path / "fixes.csv"))
    with (tmp_path / "fixes.csv").open(newline="", encoding="utf-8") as file:
        rows = [
            (Path(r["file"]).relative_to(sound).as_posix(), r["action"])
            for r in csv.DictReader(file)
        ]
    assert rows == [("train/cat/0.png", "review"), ("train/dog/link.png", "delete")]
    (sound / "table.csv").write_text(
        "path,label\n" + "train/cat/1.png,cat\n" * 2 + "train/dog/1.png,dog\n"
    )
    result = check(str(sound / "table.csv"))
    assert [r.action for f in result.findings for r in f.remedies()] == ["review"]


def test_near_copies_are_warned_of_and_are_no_error(sound):
    texture(1).resize((48, 36)).save(sound / "val" / "cat" / "small.jpg", quality=60)
    texture(2).convert("L").save(sound / "train" / "dog" / "gray.png")
    result = check(str(sound))
    assert result.sound
    assert counts(result) == {
        "near_duplicate_across_parts": 1,
        "near_duplicate_across_classes": 1,
        "color_modes": 1,
    }
    assert result.findings[0].examples == (f"{sound}/val/cat/small.jpg ~ {sound}/train/cat/0.png",)


def test_one_image_under_two_labels_is_an_error(sound):
    shutil.copy(sound / "train" / "dog" / "3.png", sound / "train" / "cat" / "clash.png")
    result = check(str(sound))
    assert not result.sound
    assert counts(result) == {"duplicate_across_classes": 1}


def test_odd_images_are_counted(sound):
    cat = sound / "train" / "cat"
    texture(500, (400, 60)).save(cat / "long.png")
    texture(501, (5000, 4100)).save(cat / "many.jpg", quality=50)
    texture(502, (40, 20)).save(cat / "small.png")
    Image.new("RGB", (64, 48), "white").save(cat / "blank.png")
    texture(503).convert("CMYK").save(cat / "print.jpg")
    texture(504).convert("L").save(cat / "gray.jpg")
    result = check(str(sound))
    assert result.sound
    assert counts(result) == {
        "blank": 1,
        "small_side": 1,
        "long_shape": 1,
        "many_pixels": 1,
        "color_modes": 2,
    }
    assert {f.check: f.message for f in result.findings}["color_modes"].endswith("(L: 1, CMYK: 1)")


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


def test_a_flat_validation_part_becomes_a_table_that_trains_and_a_list_of_moves(
    sound, tmp_path, reporter
):
    labels = flatten(sound / "val", tmp_path / "truth.txt")
    assert counts(check(str(sound))) == {"flat_part": 10}
    for table in (tmp_path / "table.csv", tmp_path / "elsewhere" / "table.csv"):
        result = check(
            str(sound),
            ground_truth=str(tmp_path / "truth.txt"),
            write_table=str(table),
            fix_list=str(tmp_path / "fixes.csv"),
        )
        assert counts(result) == {"flat_part": 10}
        train, val = open_for_training(str(table), seed=0, reporter=reporter)
        assert (len(train.labels), train.read(0).size, val.read(0).size) == (70, (64, 48), (64, 48))
        assert {
            Path(val.name(i)).name: val.class_names[c] for i, c in enumerate(val.labels.tolist())
        } == labels
        assert counts(check(str(table))) == {}
    carry_out(tmp_path / "fixes.csv")
    assert counts(check(str(sound))) == {}


def test_images_that_the_ground_truth_does_not_name_are_named(sound, tmp_path):
    truth = tmp_path / "truth.txt"
    flatten(sound / "val", truth)
    truth.write_text("".join(truth.read_text().splitlines(keepends=True)[:-2]))
    result = check(str(sound), ground_truth=str(truth))
    assert counts(result)["not_in_ground_truth"] == 2
    assert result.parts["val"] == {"images": 8, "classes": 2}


@pytest.mark.parametrize(
    ("rows", "says"),
    [("other.png cat\n", "names none of the images"), ("{} 65\n", "labels are numbers such as 65")],
)
def test_a_ground_truth_of_something_else_is_refused(rows, says, sound, tmp_path):
    labels = flatten(sound / "val", tmp_path / "truth.txt")
    (tmp_path / "truth.txt").write_text("".join(rows.format(name) for name in labels))
    if rows.startswith("other"):
        (tmp_path / "truth.txt").write_text(rows)
    with pytest.raises(DataError, match=says):
        check(str(sound), ground_truth=str(tmp_path / "truth.txt"))


def test_a_ground_truth_without_flat_images_is_said_to_be_needless(sound, tmp_path, reporter):
    (tmp_path / "truth.txt").write_text("a.png cat\n")
    check(str(sound), ground_truth=str(tmp_path / "truth.txt"), reporter=reporter)
    assert "not needed" in reporter.warnings[0]


def test_a_ground_truth_for_a_tar_says_to_unpack_it(sound, tmp_path, reporter):
    flatten(sound / "val", tmp_path / "truth.txt")
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(sound, "photos")
    result = check(
        str(tmp_path / "data.tar"), ground_truth=str(tmp_path / "truth.txt"), reporter=reporter
    )
    assert counts(result) == {"flat_part": 10, "part_missing": 1}
    assert "unpack it" in reporter.warnings[0]


def test_a_table_is_refused_where_it_could_not_be_right(sound, tmp_path):
    with pytest.raises(ConfigError, match=r"must end in \.csv"):
        check(str(sound), write_table=str(tmp_path / "table.txt"))
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="no images to write"):
        check(str(tmp_path / "void"), write_table=str(tmp_path / "table.csv"))
    with pytest.raises(DataError, match="in none of their own"):
        check("digits", write_table=str(tmp_path / "table.csv"))
    flatten(sound / "val", tmp_path / "truth.txt")
    with pytest.raises(DataError, match="--ground-truth"):
        check(str(sound), write_table=str(tmp_path / "table.csv"))
    with pytest.raises(DeitctlError, match="Cannot write"):
        check(str(sound), fix_list=str(tmp_path))


@pytest.mark.parametrize(("data", "code"), [("sound", 0), ("broken", 3)])
def test_the_exit_code_says_whether_it_is_sound(data, code, request):
    root = request.getfixturevalue(data)
    ran = CliRunner().invoke(app, ["check", str(root), "--quiet"])
    assert ran.exit_code == code
    record = json.loads(ran.stdout)
    assert record.keys() == {"data", "parts", "findings", "sound", "seconds"}
    assert record["sound"] is (code == 0)
    for finding in record["findings"]:
        assert finding.keys() == {"check", "severity", "count", "examples", "message", "fix"}
    table = CliRunner().invoke(
        app, ["check", str(root), "--format", "table"], env={"COLUMNS": "200"}
    )
    assert table.exit_code == code
    assert "\x1b" not in table.stdout
    assert all(f["check"] in table.stdout for f in record["findings"])


def test_every_check_is_documented_with_its_severity():
    rows = [
        line.split("|")
        for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    documented = {row[1].strip(" `"): row[2].strip() for row in rows}
    assert documented == {name: known.severity for name, known in CHECKS.items()}

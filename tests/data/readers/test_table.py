"""Tables open as the data that they name; what is odd about them is said, what is wrong refused."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from deitctl.data.dataset import ImageDataset
from deitctl.data.open import open_dataset
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import DataError

CAFE = "caf\u00e9"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of six files that are named as images."""
    (tmp_path / "images").mkdir()
    for number in range(6):
        (tmp_path / f"images/{number}.png").touch()
    return tmp_path


@pytest.fixture
def opened(folder, reporter) -> Callable[..., ImageDataset]:
    """Open a table of six rows that has the labels, as unsplit data."""

    def write(*labels: str, header: str = "path,label", name: str = "t.csv") -> ImageDataset:
        rows = [f'images/{n}.png,"{label}"' for n, label in enumerate(labels)]
        (folder / name).write_text("\n".join([header, *rows]), "utf-8")
        dataset = open_dataset(str(folder / name), reporter).unsplit
        assert dataset is not None
        return dataset

    return write


def list_labels(dataset: ImageDataset) -> list[str]:
    return [dataset.class_names[label] for label in dataset.labels]


def test_a_plain_table_is_opened_without_a_word(opened, reporter):
    dataset = opened("b", "a", "b")
    assert list_labels(dataset) == ["b", "a", "b"]
    assert [dataset.relative_path(n) for n in range(3)] == [f"images/{n}.png" for n in range(3)]
    assert (reporter.notes, reporter.warnings) == ([], [])


def test_spellings_of_one_class_are_one_and_named(opened, reporter):
    dataset = opened("cat", "cat ", CAFE, unicodedata.normalize("NFD", CAFE), "dog ")
    assert list_labels(dataset) == ["cat", "cat", CAFE, CAFE, "dog"]
    assert len(reporter.warnings) == 2
    assert "spells one class 'cat' and 'cat '" in reporter.warnings[0]


def test_classes_that_differ_in_case_alone_are_two(opened, reporter):
    """Of which `check` and the start of a training warn, whatever the data are read from."""
    assert opened("Cat", "cat").class_names == ("Cat", "cat")
    assert reporter.warnings == []


@pytest.mark.parametrize("missing", ["", "  ", "\u00a0"])
def test_rows_without_a_label_are_refused_with_their_number(missing, opened):
    with pytest.raises(
        DataError, match=r"row 3 has no 'label'; 2 rows lack.*for 'images/1.png'.*columns"
    ):
        opened("a", missing, missing, "b")


@pytest.mark.parametrize("word", ["nan", "NaN", "NULL", "<NA>"])
def test_a_class_that_is_called_as_a_missing_value_is_warned_of(word, opened, reporter):
    opened("a", word, "b")
    assert f"class {word!r}: if that stands for a missing label" in reporter.warnings[0]


def test_whole_numbers_are_classes_however_pandas_writes_them(opened, reporter):
    assert opened("0", "1", "10").class_names == ("0", "1", "10")
    assert reporter.notes == []
    assert opened("0.0", "1.0", "10.0").class_names == ("0", "1", "10")
    assert "'0.0' are whole numbers" in reporter.notes[0]
    assert opened("0.0", "1.5", "1.0").class_names == ("0.0", "1.0", "1.5")


@pytest.mark.parametrize(
    "labels",
    [
        ("cat", "dog", "cat dog"),
        ("cat|dog", "bird"),
        ("cat;dog", "bird", "fish"),
        ("scab", "rust", "scab  rust"),
        ("cat,dog", "dog, bird", "bird,cat"),
        ("cat,fish", "dog,fish"),
        ("cat", "cat, dog", "dog, bird", "bird + cat"),
    ],
)
def test_labels_that_look_like_several_classes_are_warned_of(labels, opened, reporter):
    assert set(list_labels(opened(*labels))) == set(labels)
    assert "looks like several classes" in reporter.warnings[0]


def test_names_of_several_words_are_no_lists(opened, reporter):
    opened(
        "golden retriever", "labrador retriever", "retriever", "a/b (c)", "cat, wild", "cat, tame"
    )
    assert reporter.warnings == []


def test_an_image_of_two_classes_or_in_two_splits_is_warned_of(folder, reporter):
    rows = ["0.png,a,train", "0.png,b,train", "1.png,b,train", "1.png,b,val", "2.png,a,val"]
    (folder / "t.csv").write_text("\n".join(["path,label,split", *(f"images/{r}" for r in rows)]))
    open_dataset(str(folder / "t.csv"), reporter, task="classification")
    assert [w.partition(" in ")[2] for w in reporter.warnings] == [
        "different splits: 1, the first of 'images/1.png'.",
        "different classes: 1, the first of 'images/0.png'.",
    ]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "Valid", "TEST"), ("training", "dev", "test"), ("train_set", "val2017", "Testing")],
)
def test_splits_are_known_by_the_names_that_people_use(train, val, test, folder, reporter):
    parts = [train, train, val, test, train, train.upper()]
    rows = [f"{n},{'ab'[n % 2]},{part}" for n, part in enumerate(parts)]
    (folder / "t.csv").write_text("\n".join(["image_id,label,set", *rows]))
    data = open_dataset(str(folder / "t.csv"), reporter)
    assert [len(part.labels) for part in (data.train, data.val, data.test)] == [4, 1, 1]
    assert Path(data.test.name(0)).name == "3.png"


def test_a_column_of_yes_and_no_is_one_of_splits(folder, reporter):
    rows = [f"{n}.png,a,{n > 3}" for n in range(6)]
    (folder / "t.csv").write_text("\n".join(["fname,label,is_valid", *rows]))
    data = open_dataset(str(folder / "t.csv"), reporter)
    assert (len(data.train.labels), len(data.val.labels)) == (4, 2)
    assert "splits by the column 'is_valid'" in reporter.notes[0]


def test_parts_under_another_name_are_held_out_or_refused(folder, reporter):
    table, rows = folder / "t.csv", [f"{n}.png,{n % 2}" for n in range(6)]
    words = ["Training", "Training", "Training", "Training", "Test", "Test"]
    lines = [f"{row},{word}" for row, word in zip(rows, words, strict=True)]
    table.write_text("\n".join(["image,emotion,Usage", *lines]))
    data = open_dataset(str(table), reporter)
    assert (len(data.train.labels), len(data.test.labels)) == (4, 2)
    assert "splits by the column 'Usage'" in reporter.notes[0]
    for name, words in (("Usage", ("Training", "PublicTest")), ("subset", ("tr", "te"))):
        lines = [f"{row},{word}" for row, word in zip(rows, words * 3, strict=True)]
        table.write_text("\n".join([f"image,emotion,{name}", *lines]))
        with pytest.raises(DataError, match=f"rows of the split.*column {name!r}"):
            open_dataset(str(table), reporter)


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (["train", "extra"], "rows of the split 'extra'"),
        (["train", ""], "rows without a split"),
        (["val", "valid"], "a val and a valid split, which both mean val"),
    ],
)
def test_splits_that_are_none_or_mean_one_are_refused(column, what, folder, reporter):
    rows = [f"{n}.png,a,{part}" for n, part in enumerate(column)]
    (folder / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    with pytest.raises(DataError, match=what):
        open_dataset(str(folder / "t.csv"), reporter)


def test_columns_of_0_and_1_are_read_where_each_row_has_one_class(folder, reporter):
    path = folder / "t.csv"
    path.write_text("image,MEL,NV\n" + "".join(f"{n},{n % 2},{1 - n % 2}.0\n" for n in range(6)))
    assert list_labels(open_dataset(str(path), reporter).unsplit) == ["NV", "MEL"] * 3
    assert "classes are the 2 columns of 0 and 1" in reporter.notes[0]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("3,1,1", r"row 3 has several classes \('MEL', 'NV'\)"),
        ("3,0,0", "row 3 has no class"),
    ],
)
def test_rows_of_several_classes_or_none_are_refused_for_one_each(row, what, folder, reporter):
    (folder / "t.csv").write_text(f"image,MEL,NV\n1,1,0\n{row}\n")
    with pytest.raises(DataError, match=what) as refused:
        open_dataset(str(folder / "t.csv"), reporter, task="classification")
    assert "--task multilabel" in refused.value.hint


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "images/0.png,cat\nimages/1.png,dog\n"),
        ("t.csv", "cat;images/0.png\ndog;images/1.png\n"),
        ("train.txt", "images/0.png 0\nimages/1.png 1\n"),
        ("t.TSV", "0.png\tclass\n1.png\ttag\n"),
    ],
)
def test_a_table_without_a_header_is_read_if_its_first_row_names_an_image(
    name, text, folder, reporter
):
    (folder / name).write_text(text)
    dataset = open_dataset(str(folder / name), reporter).unsplit
    assert [Path(dataset.name(n)).name for n in range(2)] == ["0.png", "1.png"]
    assert "no header" in reporter.notes[0]


def test_a_table_of_older_windows_is_said_with_a_word_as_it_is_read(folder, reporter):
    (folder / "t.csv").write_bytes(f"path;label\nimages/0.png;{CAFE}\n".encode("cp1252"))
    assert list_labels(open_dataset(str(folder / "t.csv"), reporter).unsplit) == [CAFE]
    assert f"read as Windows-1252: {CAFE!r}" in reporter.warnings[0]


def test_lines_of_json_are_a_table(folder, reporter):
    rows = [{"file_name": f"images/{n}.png", "label": n % 2, "text": None} for n in range(6)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    dataset = open_dataset(str(folder / "metadata.jsonl"), reporter).unsplit
    assert list_labels(dataset) == ["0", "1"] * 3
    (folder / "bad.jsonl").write_text('{"path": "0.png", "label": "a"}\n[1]\n')
    with pytest.raises(DataError, match="line 2 is no JSON object"):
        open_dataset(str(folder / "bad.jsonl"), reporter)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("t.xlsx", "spreadsheet.*CSV in UTF-8"),
        ("t.json", "JSON.*jsonl"),
        ("t.arrow", "not a readable Arrow file"),
    ],
)
def test_tables_that_are_not_read_are_named_with_the_way_on(name, what, tmp_path, reporter):
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match=what):
        open_dataset(str(tmp_path / name), reporter)


def test_a_table_of_images_that_are_nowhere_is_refused_with_the_first_and_the_columns(
    folder, reporter
):
    (folder / "t.csv").write_text("filename,class\nx/1.png,a\nx/2.png,b\n")
    with pytest.raises(DataError, match=r"2 images .*'x/1.png'.*'filename' of 'filename', 'class'"):
        open_dataset(str(folder / "t.csv"), reporter)
    (folder / "t.csv").write_text("image,label\nhttps://a.b/1.png,a\n")
    with pytest.raises(DataError, match="web addresses"):
        open_dataset(str(folder / "t.csv"), reporter)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_part_without_a_single_image_is_refused(part, folder, reporter):
    rows = [
        f"{'x' if p == part else 'images/'}{n}.png,a,{p}" for n, p in enumerate(["train", "val"])
    ]
    (folder / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    with pytest.raises(DataError, match=f"None of the 1 {part} images"):
        open_dataset(str(folder / "t.csv"), reporter)


def test_missing_images_are_counted_in_every_part_with_the_first(folder, reporter):
    parts = ["train", "train", "val", "val", "test", "test"]
    rows = [f"{'images/' if n % 2 else 'x'}{n}.png,a,{part}" for n, part in enumerate(parts)]
    rows[5] = "x5.png,a,test"
    (folder / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    open_dataset(str(folder / "t.csv"), reporter)
    assert [warning.partition(" images of ")[0] for warning in reporter.warnings] == [
        "1 of the 2 train",
        "1 of the 2 val",
        "2 of the 2 test",
    ]
    assert "'x0.png'" in reporter.warnings[0]


def test_images_that_are_missing_are_no_part_of_the_data(folder, reporter):
    rows = [f"images/{n}.png,{'abc'[n % 3]}" for n in (0, 9, 8, 3, 1, 11)]
    (folder / "t.csv").write_text("\n".join(["path,label", *rows]))
    dataset = open_dataset(str(folder / "t.csv"), reporter).unsplit
    assert list_labels(dataset) == ["a", "a", "b"]
    assert [dataset.relative_path(n)[7:8] for n in range(3)] == ["0", "3", "1"]
    assert "left out, and with them all of the class 'c'." in reporter.warnings[0]


def test_a_test_part_without_labels_is_left_out_with_a_line(folder, reporter):
    rows = [f"images/{n}.png,{'ab'[n % 2]},train" for n in range(4)]
    (folder / "t.csv").write_text(
        "\n".join(["path,label,split", *rows, "images/4.png,,test", "images/5.png, ,test"])
    )
    data = open_dataset(str(folder / "t.csv"), reporter)
    assert (list_labels(data.train), data.test) == (["a", "b", "a", "b"], None)
    assert any("the 2 test images have no labels" in note for note in reporter.notes)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_keys_of_json_lines_may_begin_late_and_text_has_any_mark(encoding, folder, reporter):
    rows = [{"path": f"images/{n % 6}.png", "label": "ab"[n % 2]} for n in range(20)]
    rows.append({"path": "images/5.png", "label": CAFE, "split": "test"})
    (folder / "t.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding
    )
    with pytest.raises(DataError, match="rows without a split"):
        open_dataset(str(folder / "t.jsonl"), reporter)
    for row in rows[:20]:
        row["split"] = "train"
    (folder / "t.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding
    )
    assert list_labels(open_dataset(str(folder / "t.jsonl"), reporter).test) == [CAFE]


def test_a_table_of_one_class_is_refused_with_the_column_that_may_have_them(
    folder, reporter, make_image
):
    for number in range(6):
        make_image(8, 8, number).save(folder / f"images/{number}.png")
    rows = [f"images/{n}.png,{['cat', 'dog'][n % 2]},animal" for n in range(6)]
    (folder / "t.csv").write_text("\n".join(["image_id,class,label", *rows]))
    with pytest.raises(DataError, match="1 class.*column 'label'; if 'class' has them"):
        open_for_training(Source(str(folder / "t.csv")), reporter=reporter)
    (folder / "t.jsonl").write_text(
        "\n".join(json.dumps({"path": r.split(",")[0], "label": 1, "dx": "a"}) for r in rows)
    )
    with pytest.raises(DataError, match="1 class.*column 'label'; if 'dx' has them"):
        open_for_training(Source(str(folder / "t.jsonl")), reporter=reporter)


def test_a_folder_of_images_is_for_tables_alone(image_folder, reporter):
    root = image_folder({"a": 2, "b": 2})
    for data in (str(root), "digits"):
        with pytest.raises(DataError, match="--images is the folder of a table's paths"):
            open_for_training(Source(data, image_folder=str(root)), reporter=reporter)


def test_a_folder_without_classes_names_the_table_in_it(folder, reporter):
    (folder / "labels.csv").write_text("path,label\n")
    with pytest.raises(DataError, match=r"labels\.csv says which class.*--images"):
        open_dataset(str(folder), reporter)

"""Parquet files of a folder are the parts that their names and columns say, or are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deitctl.data.dataset import ImageDataset
from deitctl.data.open import open_dataset
from deitctl.data.readers.columnar_files import find_columnar_files
from deitctl.errors import DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(
    path: Path, labels: Sequence[Any], classes: Sequence[str] = (), **columns: Sequence[Any]
) -> None:
    """Write images of the file's name and the row as `datasets` does, or without names of classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": f"{path.stem} {n}".encode(), "path": None} for n in range(len(labels))]
    table = pa.table({"image": images, "label": labels} | columns)
    feature = {"label": {"_type": "ClassLabel", "names": list(classes)}}
    info = json.dumps({"info": {"features": feature}})
    pq.write_table(table.replace_schema_metadata({"huggingface": info} if classes else {}), path)


def list_classes(dataset: ImageDataset | None) -> list[str]:
    assert dataset is not None
    return [dataset.class_names[label] for label in dataset.labels]


def find(folder: Path, *names: str) -> dict[str, list[str]]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    parts = find_columnar_files(folder)
    return {part: [str(p.relative_to(folder)) for p in paths] for part, paths in parts.items()}


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00001-0a9f.parquet", "test-00000-of-00001-77bc.parquet"],
        ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
        ["default/train/0000.parquet", "default/test/0000.parquet"],
        ["plain_text/train/0000.parquet", "plain_text/test/0000.parquet"],
        ["train.parquet", "test.parquet"],
        ["Training_0.parquet", "Testing_0.parquet"],
        ["flowers-train.parquet", "flowers-test.parquet"],
        ["train-birds.PARQUET", "test-birds.parquet"],
    ],
)
def test_the_part_is_what_the_name_or_the_folder_says(names, tmp_path):
    assert find(tmp_path, *names, "README.md", ".cache/old.parquet") == {
        "train": names[:1],
        "test": names[1:],
    }


@pytest.mark.parametrize(
    "names",
    [
        ["data-00000-of-00002.parquet", "data-00001-of-00002.parquet"],
        ["0000.parquet", "0001.parquet"],
        ["part.0.parquet", "part.1.parquet"],
        [f"part-0000{n}-6a2f1c00-9d1e-4a0b-8c1d-0123456789ab-c000.snappy.parquet" for n in (0, 1)],
    ],
)
def test_files_that_are_numbered_alone_are_one_thing(names, tmp_path):
    assert find(tmp_path, *names) == {"": names}


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["full/train.parquet", "cropped/train.parquet"], r"cropped and in .*full.*as DATA"),
        (["a/train/0000.parquet", "b/train/0000.parquet"], r"may be different data"),
        (["data/train.parquet", "old.parquet"], "may be different data"),
        (["cats.parquet", "dogs.parquet"], "do not say which part.*train.parquet"),
        (["train-0-of-1.parquet", "cats.parquet"], "cats.parquet beside files of splits"),
        (["val.parquet", "validation.parquet"], "both mean val"),
    ],
)
def test_files_that_may_be_different_data_are_refused(names, what, tmp_path):
    with pytest.raises(DataError, match=what):
        find(tmp_path, *names)


def test_parquet_files_beside_class_folders_are_not_the_data(image_folder, reporter):
    root = image_folder({"a": 2, "b": 2})
    write(root / "old.parquet", ["x", "y"])
    assert list_classes(open_dataset(str(root), reporter).unsplit) == ["a", "a", "b", "b"]
    for name in ("train", "training"):
        (root / name).mkdir()
        for label in ("a", "b"):
            (root / label).rename(root / name / label) if name == "train" else (
                root / name / label
            ).mkdir()
    (root / "training/a/1.png").write_bytes(next((root / "train/a").iterdir()).read_bytes())
    with pytest.raises(DataError, match="both mean train"):
        open_dataset(str(root), reporter)


def test_numbers_of_classes_mean_what_their_own_file_says(tmp_path, reporter):
    write(tmp_path / "train-00000-of-00002.parquet", [0, 1], ["cat", "dog"])
    write(tmp_path / "train-00001-of-00002.parquet", [0, 1], ["dog", "cat"])
    write(tmp_path / "test-00000-of-00001.parquet", [0, 1], ["dog", "cat"])
    data = open_dataset(str(tmp_path), reporter)
    assert list_classes(data.train) == ["cat", "dog", "dog", "cat"]
    assert list_classes(data.test) == ["dog", "cat"]
    write(tmp_path / "test-00000-of-00001.parquet", [0, 1])
    with pytest.raises(DataError, match="names the classes of the numbers .* and .* does not"):
        open_dataset(str(tmp_path), reporter)


def test_a_column_of_splits_parts_files_that_are_not_named(tmp_path, reporter):
    for number, splits in enumerate((["train", "train"], ["train", "test"])):
        path = tmp_path / f"data-0000{number}-of-00002.parquet"
        write(path, ["a", "b"], subset=splits)
    data = open_dataset(str(tmp_path), reporter)
    assert list_classes(data.train) == ["a", "b", "a"]
    assert data.test.read_bytes(0) == b"data-00001-of-00002 1"
    assert data.unsplit is None


def test_a_column_of_splits_agrees_with_the_names_of_files_or_is_refused(tmp_path, reporter):
    for part in ("train", "test"):
        write(tmp_path / f"{part}.parquet", ["a", "b"], split=[part, part])
    assert len(open_dataset(str(tmp_path), reporter).train.labels) == 2
    write(tmp_path / "train.parquet", ["a", "b"], split=["train", "test"])
    with pytest.raises(DataError, match=r"train.parquet has rows of the split 'test'"):
        open_dataset(str(tmp_path), reporter)


def test_missing_files_of_a_part_are_counted_and_versions_are_not_mixed(tmp_path, reporter):
    write(tmp_path / "train-00001-of-00008.parquet", ["a", "b"])
    write(tmp_path / "test-00000-of-00001.parquet", ["a", "b"])
    open_dataset(str(tmp_path), reporter)
    (warning,) = reporter.warnings
    assert warning.startswith("1 of the 8 files of train")
    assert "00000-of-00008" in warning
    for name in ("train-00001-of-00002", "train-00001-of-00008-0a9f", "train"):
        write(tmp_path / f"{name}.parquet", ["a", "b"])
        with pytest.raises(DataError, match="two versions of the same data"):
            open_dataset(str(tmp_path), reporter)
        (tmp_path / f"{name}.parquet").unlink()


@pytest.mark.parametrize("labels", [[-1, -1, -1], [None, None, None], []])
def test_a_test_part_without_labels_is_left_out_with_a_line(labels, tmp_path, reporter):
    write(tmp_path / "train.parquet", [0, 1], ["cat", "dog"])
    write(tmp_path / "test.parquet", labels or [0, 0, 0], ["cat", "dog"])
    if not labels:
        images = pq.read_table(tmp_path / "test.parquet").drop_columns("label")
        pq.write_table(images, tmp_path / "test.parquet")
    data = open_dataset(str(tmp_path), reporter)
    assert list_classes(data.train) == ["cat", "dog"]
    assert data.test is None
    assert sum("the 3 test images have no labels" in note for note in reporter.notes) == 1


def test_a_part_with_some_labels_alone_is_refused(tmp_path, reporter):
    write(tmp_path / "train.parquet", [0, 1], ["cat", "dog"])
    write(tmp_path / "test.parquet", [0, -1], ["cat", "dog"])
    with pytest.raises(DataError, match="row 4 has no 'label'"):
        open_dataset(str(tmp_path), reporter)
    write(tmp_path / "train.parquet", [-1, -1], ["cat", "dog"])
    write(tmp_path / "test.parquet", [0, 1], ["cat", "dog"])
    with pytest.raises(DataError, match="row 1 has no 'label'; 2 rows lack"):
        open_dataset(str(tmp_path), reporter)

"""split.csv says which images a run held out, and gives the same images in the same order again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from deitctl.data.dataset import FileDataset, select
from deitctl.data.open import open_dataset, open_for_training
from deitctl.data.run_data import apply_split, read_run_data, write_split
from deitctl.data.splits import hold_out
from deitctl.errors import DataError


def list_images(dataset) -> list[tuple[str, str]]:
    """Path and class name of every image."""
    return [
        (dataset.relative_path(i), dataset.class_names[label])
        for i, label in enumerate(dataset.labels)
    ]


@pytest.fixture
def run(tmp_path, image_folder, reporter):
    """A run folder of an unsplit folder, and its training and validation images."""
    root = image_folder({"ant": 6, "bee": 5, "cat": 3})
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.toml").write_text(f"data = '{root}'\nsplit_seed = 3\n")
    train, val = open_for_training(str(root), seed=3, reporter=reporter)
    write_split(folder, train, val)
    return folder, root, train, val


def test_a_row_for_every_image(run):
    folder, _, _, val = run
    lines = (folder / "split.csv").read_text().splitlines()
    assert lines[0] == "path,label,split"
    assert len(lines) == 1 + 14
    held = [line for line in lines if line.endswith(",val")]
    assert held == [f"{path},{label},val" for path, label in list_images(val)]
    assert not [p for p in folder.iterdir() if p.name not in ("run.toml", "split.csv")]


def test_the_data_and_the_seed_of_a_run_are_read(run, reporter):
    folder, root, train, val = run
    data = read_run_data(folder)
    assert (data.folder, data.ref, data.split_seed) == (folder, str(root), 3)
    split = apply_split(open_dataset(str(root), reporter).unsplit, data.rows)
    assert list_images(split.train) == list_images(train)
    assert list_images(split.val) == list_images(val)
    assert split.train.labels.tolist() == train.labels.tolist()
    assert (split.num_new, split.missing) == (0, ())


def test_new_images_and_classes_are_in_neither_part(run, image_folder, reporter):
    """And the class numbers stay."""
    folder, root, train, _ = run
    image_folder({"ant": 9, "ape": 4, "zebra": 2})
    os.remove(root / "bee" / "4.png")
    split = apply_split(open_dataset(str(root), reporter).unsplit, read_run_data(folder).rows)
    assert split.train.class_names == split.val.class_names == ("ant", "bee", "cat")
    kept = [(p, c) for p, c in list_images(train) if p != "bee/4.png"]
    assert list_images(split.train) == kept
    assert split.num_new == 3 + 4 + 2
    assert split.missing == ("bee/4.png",)


def test_a_split_of_some_images_in_another_order_is_kept(run, reporter):
    folder, root, train, val = run
    write_split(folder, select(train, [5, 0, 3]), val)
    split = apply_split(open_dataset(str(root), reporter).unsplit, read_run_data(folder).rows)
    assert split.train.indices.tolist() == train.indices[[5, 0, 3]].tolist()


def test_odd_names_and_images_listed_twice_come_back(tmp_path):
    names = (
        'a "b", c.png',
        "new\nline.png",
        os.fsdecode(b"\xff.png"),
        "ü.png",
        "two.png",
        "two.png",
    )
    labels = np.array([0, 1, 0, 1, 0, 1])
    dataset = FileDataset(names, labels, ("x", "y\n,"), "")
    split = hold_out(dataset, 0.5, 0)
    write_split(tmp_path, split.train, split.val)
    (tmp_path / "run.toml").write_text("")
    again = apply_split(dataset, read_run_data(tmp_path).rows)
    assert again.train.indices.tolist() == split.train.indices.tolist()
    assert again.val.indices.tolist() == split.val.indices.tolist()


def test_data_with_validation_images_has_no_split_file(tmp_path, image_folder, reporter):
    root = image_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    (tmp_path / "split.csv").write_text("of a run that was killed at its start")
    write_split(tmp_path, *open_for_training(str(root), seed=0, reporter=reporter))
    assert not (tmp_path / "split.csv").exists()


def test_a_folder_without_run_toml_is_no_run(tmp_path):
    assert read_run_data(tmp_path) is None
    assert read_run_data(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "first line"),
        (b"path,label\na,b\n", "first line"),
        (b"path,label,split\na,b\n", "a row is not"),
        (b"path,label,split\na,b,test\n", "a row is not"),
        (b'path,label,split\n"' + b"x" * 200_000 + b'",b,val\n', "field larger"),
    ],
    ids=["empty", "two columns", "short row", "other split", "huge field"],
)
def test_a_damaged_split_file_is_refused(text, what, tmp_path):
    (tmp_path / "run.toml").write_text("")
    (tmp_path / "split.csv").write_bytes(text)
    with pytest.raises(DataError, match=rf"split\.csv cannot be read: .*{what}"):
        read_run_data(Path(tmp_path))

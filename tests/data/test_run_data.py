"""split.csv says which images a run held out, and gives the same images in the same order again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from deitctl.data import run_data
from deitctl.data.contents import compute_digest
from deitctl.data.dataset import FileDataset
from deitctl.data.open import open_dataset
from deitctl.data.run_data import read_run_data, write_split
from deitctl.data.run_match import apply_split
from deitctl.data.splits import hold_out
from deitctl.data.subsets import select
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import DataError

HEADER = b"path,label,split,part,bytes,digest\n"


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
    train, val = open_for_training(Source(str(root), split_seed=3), reporter=reporter)
    write_split(folder, train, val)
    return folder, root, train, val


def test_a_row_for_every_image(run):
    folder, root, _, val = run
    lines = (folder / "split.csv").read_text().splitlines()
    assert lines[0] == "path,label,split,part,bytes,digest"
    assert len(lines) == 1 + 14
    held = [line for line in lines if ",val,all," in line]
    assert held == [
        f"{path},{label},val,all,{(root / path).stat().st_size},"
        f"{compute_digest((root / path).read_bytes()):x}"
        for path, label in list_images(val)
    ]
    assert not [p for p in folder.iterdir() if p.name not in ("run.toml", "split.csv")]


def test_the_data_and_the_seed_of_a_run_are_read(run, reporter):
    folder, root, train, val = run
    data = read_run_data(folder)
    assert (data.folder, data.ref, data.split_seed) == (folder, str(root), 3)
    split = apply_split(open_dataset(str(root), reporter).unsplit, data, str(root))
    assert list_images(split.train) == list_images(train)
    assert list_images(split.val) == list_images(val)
    assert split.train.labels.tolist() == train.labels.tolist()
    assert (split.num_new, split.missing) == (0, ())


def test_new_images_and_classes_are_in_neither_part(run, image_folder, reporter):
    """And the class numbers stay."""
    folder, root, train, _ = run
    image_folder({"ant": 9, "ape": 4, "zebra": 2})
    os.remove(root / "bee" / "4.png")
    split = apply_split(open_dataset(str(root), reporter).unsplit, read_run_data(folder), str(root))
    assert split.train.class_names == split.val.class_names == ("ant", "bee", "cat")
    kept = [(p, c) for p, c in list_images(train) if p != "bee/4.png"]
    assert list_images(split.train) == kept
    assert split.num_new == 3 + 4 + 2
    assert split.missing == ("bee/4.png",)


def test_a_split_of_some_images_in_another_order_is_kept(run, reporter):
    folder, root, train, val = run
    write_split(folder, select(train, [5, 0, 3]), val)
    split = apply_split(open_dataset(str(root), reporter).unsplit, read_run_data(folder), str(root))
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
    again = apply_split(dataset, read_run_data(tmp_path), "")
    assert again.train.indices.tolist() == split.train.indices.tolist()
    assert again.val.indices.tolist() == split.val.indices.tolist()


def test_data_with_validation_images_is_listed_up_to_a_number(
    tmp_path, image_folder, reporter, monkeypatch
):
    root = image_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    (tmp_path / "run.toml").write_text("")
    parts = open_for_training(Source(str(root)), reporter=reporter)
    write_split(tmp_path, *parts)
    rows = read_run_data(tmp_path).rows
    assert rows.paths == ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "a/0.png", "b/0.png"]
    assert rows.splits == rows.parts == ["train"] * 4 + ["val"] * 2
    assert not rows.is_held_out
    monkeypatch.setattr(run_data, "MAX_DIGESTS", 5)
    write_split(tmp_path, *parts)
    rows = read_run_data(tmp_path).rows
    assert set(rows.digests) == {0}
    assert min(rows.num_bytes) > 0
    monkeypatch.setattr(run_data, "MAX_ROWS", 5)
    write_split(tmp_path, *parts)  # and removes that of a run that was killed at its start
    assert not (tmp_path / "split.csv").exists()


def test_images_held_out_stay_so_in_a_subset(run, tmp_path):
    _, _, train, val = run
    write_split(tmp_path, train, select(val, [0]))
    (tmp_path / "run.toml").write_text("")
    assert read_run_data(tmp_path).rows.is_held_out


def test_an_image_with_other_contents_is_not_the_runs(run, make_image, reporter):
    folder, root, train, _ = run
    path = train.relative_path(0)
    make_image(50, 50, 9).save(root / path)
    split = apply_split(open_dataset(str(root), reporter).unsplit, read_run_data(folder), str(root))
    assert (split.missing, split.num_new) == ((path,), 1)


def test_a_folder_without_run_toml_is_no_run(tmp_path):
    assert read_run_data(tmp_path) is None
    assert read_run_data(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "first line"),
        (b"path,label\na,b\n", "first line"),
        (HEADER + b"a,b\n", "a row is not"),
        (HEADER + b"a,b,test,all,1,0\n", "a row is not"),
        (HEADER + b"a,b,val,test,1,0\n", "a row is not"),
        (HEADER + b"a,b,val,all,big,0\n", "invalid literal"),
        (HEADER + b'"' + b"x" * 200_000 + b'",b,val,all,1,0\n', "field larger"),
    ],
    ids=["empty", "two columns", "short row", "other split", "other part", "size", "huge field"],
)
def test_a_damaged_split_file_is_refused(text, what, tmp_path):
    (tmp_path / "run.toml").write_text("")
    (tmp_path / "split.csv").write_bytes(text)
    with pytest.raises(DataError, match=rf"split\.csv cannot be read: .*{what}"):
        read_run_data(Path(tmp_path))

"""Images of several labels: tables, class folders with the same image, Parquet, runs and packs."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import deitctl
from deitctl.checks.classes import check_classes
from deitctl.checks.survey import Split
from deitctl.config import AugmentConfig
from deitctl.data.fingerprint import fingerprint_dataset, fingerprint_split
from deitctl.data.labels import count_images, find_rarest, name_labels
from deitctl.data.loader import build_eval_loader, build_train_loader
from deitctl.data.open import open_dataset
from deitctl.data.run_data import read_run_data, write_split
from deitctl.data.samplers import TrainBatches
from deitctl.data.splits import relabel
from deitctl.data.subsets import join, select
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import DataError
from deitctl.models.model_config import Preprocessing
from deitctl.recipes import DIGITS

LABELS = ["cat|dog", "cat", "dog", "bird|cat", "", "bird", "dog", "cat|dog"]


@pytest.fixture
def table(image_folder):
    """Write a table of eight images, with the labels given or LABELS."""
    root = image_folder({"all": 8})

    def write(labels=LABELS, head="path,label", name="t.csv"):
        rows = [f"all/{n}.png,{label}" for n, label in enumerate(labels)]
        (root / name).write_text("\n".join([head, *rows]) + "\n")
        return str(root / name)

    return write


def open_all(ref, reporter, **options):
    return open_dataset(ref, reporter, **options).unsplit


def test_a_table_of_joined_labels_is_multi_hot_and_says_so_in_one_line(table, reporter):
    dataset = open_all(table(LABELS[:4]), reporter)
    assert dataset.is_multilabel
    assert dataset.labels.dtype == np.bool_
    assert dataset.class_names == ("bird", "cat", "dog")
    assert name_labels(dataset) == [("cat", "dog"), ("cat",), ("dog",), ("bird", "cat")]
    assert count_images(dataset).tolist() == [1, 3, 2]
    assert len(reporter.notes) == 1
    assert "task multilabel, as 2 of 4 images have several of the 3 classes." in reporter.notes[0]
    assert reporter.warnings == []


def test_an_empty_cell_is_none_of_the_classes_only_where_that_is_said(table, reporter):
    with pytest.raises(DataError, match="row 6 has no 'label'") as refused:
        open_all(table(), reporter)
    assert "--task multilabel reads it as an image with none of the classes" in refused.value.hint
    dataset = open_all(table(), reporter, task="multilabel")
    assert name_labels(dataset)[4] == ()
    assert find_rarest(dataset).tolist() == [1, 1, 2, 0, 3, 0, 2, 1]


@pytest.mark.parametrize("one", ["1", "1.0", "True"])
def test_a_column_of_0_and_1_for_each_class_may_hold_several_1s(one, table, reporter):
    rows = [f"{one},0,0", f"{one},{one},0", "0,0,0"]
    dataset = open_all(table(rows, "image,cat,dog,bird"), reporter)
    assert name_labels(dataset) == [("cat",), ("cat", "dog"), ()]
    assert (dataset.class_names, count_images(dataset)[0]) == (("bird", "cat", "dog"), 0)


def test_rows_of_one_image_are_one_image_where_that_is_common(image_folder, reporter):
    root = image_folder({"all": 40})
    (root / "t.csv").write_text("path,label\nall/0.png,cat\nall/1.png,dog\nall/0.png,dog\n")
    dataset = open_all(str(root / "t.csv"), reporter)
    assert name_labels(dataset) == [("cat", "dog"), ("dog",)]
    rows = [f"all/{n}.png,{'cat' if n % 2 else 'dog'}" for n in range(40)] + ["all/0.png,cat"]
    (root / "t.csv").write_text("\n".join(["path,label", *rows]))
    assert not open_all(str(root / "t.csv"), reporter).is_multilabel
    assert "in different classes: 1" in reporter.warnings[0]
    assert reporter.warnings[0].endswith("--task multilabel reads several labels an image.")


def test_groups_are_of_the_column_that_is_named(table, reporter):
    rows = [f"{label},p{n % 3}" for n, label in enumerate(LABELS[:4])]
    path = table(rows, "path,label,Patient ID")
    dataset = open_all(path, reporter, group_by="patient_id")
    assert list(dataset.group_names) == ["p0", "p1", "p2", "p0"]
    assert list(select(dataset, [3, 1]).group_names) == ["p0", "p1"]
    assert open_all(path, reporter).group_names is None
    with pytest.raises(DataError, match="row 3 has no 'Patient ID'"):
        open_all(table(["a,x", "b,"], "path,label,Patient ID"), reporter, group_by="Patient ID")


def make_tree(root: Path, images: Path, places: dict[str, list[str]]) -> str:
    """Copy images into class folders: `{"0.png": ["cat", "dog"]}`."""
    for name, folders in places.items():
        for folder in folders:
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(images / "all" / name, root / folder / name)
    return str(root)


def test_an_image_in_several_class_folders_has_their_labels(image_folder, tmp_path, reporter):
    images, places = image_folder({"all": 4}), {"0.png": ["cat", "dog"], "1.png": ["cat"]}
    root = make_tree(tmp_path / "tree", images, places | {"2.png": ["dog"], "3.png": ["dog"]})
    (tmp_path / "tree/dog/1.png").write_bytes((images / "all/3.png").read_bytes())  # its name only
    dataset = open_all(root, reporter)
    assert name_labels(dataset) == [("cat", "dog"), ("cat",), ("dog",), ("dog",), ("dog",)]
    assert reporter.notes == [
        f"{root}: task multilabel: 1 of 5 images lie in several class folders."
    ]
    assert not open_all(root, reporter, task="classification").is_multilabel
    Path(root, "dog/0.png").rename(Path(root, "dog/other.png"))
    assert not open_all(root, reporter).is_multilabel
    assert name_labels(open_all(root, reporter, task="multilabel"))[0] == ("cat", "dog")


def test_copies_of_no_images_are_no_sign_of_several_labels(tmp_path, reporter):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number}.png").write_bytes(b"version https://git-lfs\n")
    assert not open_all(str(tmp_path), reporter).is_multilabel


def test_training_images_of_one_label_and_validation_images_of_several_are_refused(table, reporter):
    rows = ["cat,train", "dog,train", "cat|dog,val", "dog,val"]
    path = table(rows, "path,label,split")
    with pytest.raises(DataError, match="each of its training images has one at most") as refused:
        open_for_training(Source(path), reporter=reporter)
    assert refused.value.hint.endswith("--task multilabel.")
    train, val = open_for_training(Source(path, task="multilabel"), reporter=reporter)
    assert (train.labels.tolist(), val.labels[0].tolist()) == ([[1, 0], [0, 1]], [True, True])


def test_a_class_that_training_lacks_is_refused_by_name(table, reporter):
    rows = ["cat|dog,train", "dog,train", "cat|bird,val"]
    with pytest.raises(DataError, match="Class 'bird' is in the validation set but not in the tr"):
        open_for_training(Source(table(rows, "path,label,split")), reporter=reporter)


@pytest.mark.parametrize("kind", ["lists", "bits", "tree"])
def test_every_part_has_the_classes_of_all(kind, table, image_folder, tmp_path, reporter):
    """Else what is predicted of a class that no image of a part has would not count."""
    if kind == "tree":
        images = image_folder({"all": 4})
        places = {"0.png": ["train/cat", "train/dog"], "1.png": ["train/dog"], "2.png": ["val/cat"]}
        path = make_tree(tmp_path / "tree", images, places)
    elif kind == "lists":
        path = table(["cat|dog,train", "dog,train", "cat,val"], "path,label,split")
    else:
        rows = ["1,1,0,train", "0,1,0,train", "1,0,0,val"]
        path = table(rows, "path,cat,dog,emu,split")
    parts = open_dataset(path, reporter, task="multilabel").list_parts()
    names = ("cat", "dog", "emu") if kind == "bits" else ("cat", "dog")
    assert {part.class_names for part in parts.values()} == {names}
    assert name_labels(parts["val"]) == [("cat",)]
    train, val = open_for_training(Source(path, task="multilabel"), reporter=reporter)
    assert train.class_names == val.class_names == ("cat", "dog")  # an emu cannot be learned
    said = f"{path}: no training image has 'emu', left out."
    assert (said in reporter.notes) == (kind == "bits")
    issues = {i.code: i.examples for i in check_classes([Split(*item) for item in parts.items()])}
    assert issues["class_only_in_train"] == ("dog",)
    assert not any("emu" in example for examples in issues.values() for example in examples)


def test_labels_keep_to_names_through_joining_selecting_and_numbering(table, reporter):
    one = open_all(table(["cat|dog", "dog"], name="a.csv"), reporter)
    other = open_all(table(["bird|cat", "bird"], name="b.csv"), reporter)
    both = join([one, other])
    assert name_labels(both) == [("cat", "dog"), ("dog",), ("bird", "cat"), ("bird",)]
    assert name_labels(select(both, [2, 0])) == [("bird", "cat"), ("cat", "dog")]
    again = relabel(both, ("dog", "cat", "bird"))
    assert again.labels[2].tolist() == [False, True, True]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_multi_hot_through_loader_processes(workers, table, reporter):
    train = open_all(table(), reporter, task="multilabel")
    (eval_batch,) = build_eval_loader(
        train, [Preprocessing(img_size=8)], batch_size=8, workers=workers, pin_memory=False
    )
    assert eval_batch.labels.numpy().dtype == np.bool_
    assert np.array_equal(eval_batch.labels.numpy(), train.labels)
    augment: AugmentConfig = DIGITS.augment
    batches = TrainBatches(8, 4, epochs=1, seed=0)
    loader = build_train_loader(train, augment, 8, batches, workers=workers, pin_memory=False)
    for batch in loader:
        assert np.array_equal(batch.labels.numpy(), train.labels[[key.index for key in batch.keys]])
        halves = list(batch.split(2))
        assert [half.labels.shape for half in halves] == [(2, 3), (2, 3)]


def test_a_run_recognizes_its_images_and_their_labels(table, tmp_path, reporter):
    path = table()
    source = Source(path, task="multilabel")
    train, val = open_for_training(source, reporter=reporter)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.toml").write_text(f'data = "{path}"\n')
    write_split(tmp_path / "run", train, val)
    run = read_run_data(tmp_path / "run")
    assert run.rows.labels == [*name_labels(train), *name_labels(val)]
    again = open_for_training(source, reporter=reporter, run=run)
    assert fingerprint_split(*again) == fingerprint_split(train, val)
    table(["cat", *LABELS[1:]])
    with pytest.raises(DataError, match="has images with other labels"):
        open_for_training(source, reporter=reporter, run=run)


def test_fingerprints_tell_labels_apart(table, reporter):
    first, second = (
        fingerprint_dataset(open_all(table(labels), reporter), reporter)
        for labels in (["cat|dog", "cat", "dog"], ["cat|dog", "cat|dog", "dog"])
    )
    assert first != second


def test_a_pack_keeps_several_labels_and_is_verified(table, tmp_path, reporter):
    path, out = table(), str(tmp_path / "out")
    result = deitctl.pack(path, out, task="multilabel", workers=0)
    assert result.splits["all"].labels.num_unlabeled == 1
    dataset, packed = open_all(path, reporter, task="multilabel"), open_all(out, reporter)
    assert np.array_equal(packed.labels, dataset.labels)
    assert packed.class_names == dataset.class_names
    assert "task multilabel, as 3 of 8 images" in reporter.notes[-1]
    assert deitctl.verify_pack(path, out).num_different == 0
    table(["cat", *LABELS[1:]])
    difference = deitctl.verify_pack(path, out).examples[0]
    assert difference.endswith("is of class 'cat' and 'dog', and of 'cat' in the data.")
    with pytest.raises(DataError, match="several labels an image, and --task classification"):
        open_all(out, reporter, task="classification")


def test_lists_of_parquet_are_labels_by_the_names_of_their_classes(table, reporter):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = Path(table()).parent
    paths = [f"all/{n}.png" for n in range(3)]
    parquet.write_table(
        arrow.table({"path": paths, "labels": [["cat", "dog"], ["dog"], []]}), folder / "a.parquet"
    )
    expected = [("cat", "dog"), ("dog",), ()]
    assert name_labels(open_all(str(folder / "a.parquet"), reporter)) == expected
    for kind in ("Sequence", "List"):
        feature = {"feature": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "_type": kind}
        info = {"info": {"features": {"labels": feature}}}
        numbers = arrow.table({"path": paths, "labels": [[0, 1], [1], []]})
        named = numbers.replace_schema_metadata({"huggingface": json.dumps(info)})
        parquet.write_table(named, folder / "b.parquet")
        assert name_labels(open_all(str(folder / "b.parquet"), reporter)) == expected


def test_a_tar_of_links_has_the_labels_of_its_folders(image_folder, tmp_path, reporter):
    root = make_tree(
        tmp_path / "tree", image_folder({"all": 3}), {"0.png": ["cat"], "1.png": ["cat"]}
    )
    for folder, name, link in (("dog", "0.png", os.link), ("eel", "1.png", os.symlink)):
        Path(root, folder).mkdir()
        source = Path(root, "cat", name) if link is os.link else Path("../cat", name)
        link(source, Path(root, folder, name))
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        archive.add(root, ".")
    dataset = open_all(str(tmp_path / "links.tar"), reporter)
    assert name_labels(dataset) == [("cat", "dog"), ("cat", "eel")]
    assert dataset.read(1).size == (24, 18)

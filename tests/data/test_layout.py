"""What names of folders and values of columns mean."""

from __future__ import annotations

import pytest

from deitctl.data.layout import is_junk, match_split, match_splits


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (
            "train",
            "train Train TRAIN Training training_set train_data seg_train trainData TrainSet",
        ),
        ("train", "train2017 imgs_train train-images 01_train trainval train(1)"),
        ("val", "val valid Valid validation Validation-Set dev val2017 data_val eval"),
        ("test", "test Testing test_set seg_test testimages Test_Images test1"),
    ],
)
def test_people_call_parts_by_many_names(split, names):
    assert {match_split(name) for name in names.split()} == {split}


OTHERS = (
    "bullet_train test_tube invalid control trainer trained latest contest trains rose 2017 images "
    "train_test train/val detrain protest developer interval"
)
JUNK = (
    "@eaDir #recycle $RECYCLE.BIN .thumbnails lost+found __MACOSX ._1.jpg .DS_Store Thumbs.db "
    "desktop.ini .ipynb_checkpoints . @Recycle __pycache__ @tmp ~snapshot @sharesnap @appstore "
    "@SynoEAStream LOST.DIR FOUND.000 found.012 _gsdata_"
)


@pytest.mark.parametrize("name", OTHERS.split())
def test_other_names_are_no_parts(name):
    assert match_split(name) is None


def test_spaces_around_a_name_do_not_count():
    assert match_split(" Train ") == "train"


def test_neighbors_explain_each_other():
    assert match_splits(["flowers_train", "flowers_test", "more"]) == {
        "flowers_train": "train",
        "flowers_test": "test",
    }
    assert match_splits(["bullet_train", "test_tube"]) == {}
    assert match_splits(["flowers_train", "flowers_train_2"]) == {}
    assert match_splits(["train", "flowers_test"]) == {"train": "train"}


@pytest.mark.parametrize(
    "name", [*JUNK.split(), "System Volume Information", "Temporary Items", "Network Trash Folder"]
)
def test_what_systems_and_tools_leave_is_no_data(name):
    assert is_junk(name)


def test_other_names_are_data():
    assert not any(
        map(is_junk, ["cat", "lost", "recycle", "@home", "#1", "a.jpg", "db", "tmp", "found.1"])
    )

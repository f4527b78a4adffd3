"""A search finds the class folders wherever people have them; what is not clear is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deitctl.data.find_layout import find_layout
from deitctl.data.layout import Layout
from deitctl.data.trees import FolderTree, NameTree
from deitctl.errors import DataError


def search(*folders: str) -> Layout:
    """The layout of images in some folders."""
    return find_layout(NameTree(f"{folder}/1.jpg".lstrip("/") for folder in folders), "data")


def cross(outer: str, inner: str) -> list[str]:
    return [f"{a}/{b}" for a in outer.split() for b in inner.split()]


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (cross("train val test", "a b"), {"train": "train", "val": "val", "test": "test"}),
        (cross("Training Testing", "a b"), {"train": "Training", "test": "Testing"}),
        (cross("training_set test_set", "a b"), {"train": "training_set", "test": "test_set"}),
        (cross("train valid", "a b"), {"train": "train", "val": "valid"}),
        (cross("TRAIN DEV", "a b"), {"train": "TRAIN", "val": "DEV"}),
        (cross("train", "a b"), {"train": "train"}),
        (cross("x_train x_test", "a b"), {"train": "x_train", "test": "x_test"}),
        (cross("val", "a b"), {"val": "val"}),
        # doubled
        (
            cross("seg_train/seg_train seg_test/seg_test", "a b"),
            {"train": "seg_train/seg_train", "test": "seg_test/seg_test"},
        ),
        (cross("train/train val", "a b"), {"train": "train/train", "val": "val"}),
        (
            cross("train/images val/images", "a b"),
            {"train": "train/images", "val": "val/images"},
        ),
        (cross("train/x val/x", "a b"), {"train": "train/x", "val": "val/x"}),
        (["train/photo", "train/sketch", "val/photo"], {"train": "train", "val": "val"}),
        # classes
        (["cat", "dog"], {"": ""}),
        (["cat/2019", "cat/2020", "dog/2020"], {"": ""}),
        (cross("cat dog", "images"), {"": ""}),
        (cross("cat dog", "left right"), {"": ""}),
        (["cat", "cat/more"], {"": ""}),
        (["cat"], {"": ""}),
        # classes called as parts are
        (["train", "bus", "car"], {"": ""}),
        (["train", "train/side", "bus", "car"], {"": ""}),
        (cross("train bus car", "side"), {"": ""}),
        (["test", "control"], {"": ""}),
        (["valid", "invalid"], {"": ""}),
        (["train_test", "trainer"], {"": ""}),
    ],
)
def test_parts_and_classes(folders, parts):
    layout = search(*folders)
    assert (layout.root, dict(layout.parts)) == ("", parts)
    assert not layout.in_classes
    assert not layout.left_out


@pytest.mark.parametrize(
    ("folders", "root", "parts"),
    [
        (cross("chest/train chest/test", "a b"), "chest", {"train": "chest/train"}),
        (cross("chest/chest/train chest/chest/test", "a b"), "chest/chest", {}),
        (cross("archive/data/images", "a b"), "archive/data/images", {}),
        (cross("flowers", "a b c"), "flowers", {"": "flowers"}),
        (["flowers", "flowers/a", "flowers/b"], "flowers", {"": "flowers"}),
        (cross("all_train/train all_train/val", "a b"), "all_train", {"val": "all_train/val"}),
        (cross("train/train train/val", "a b"), "train", {"val": "train/val"}),
        (cross("flowers/flowers", "a b"), "flowers/flowers", {"": "flowers/flowers"}),
    ],
)
def test_folders_around_the_data_are_entered_and_said(folders, root, parts):
    layout = search(*folders)
    assert layout.root == root
    assert dict(layout.parts).items() >= parts.items()
    assert f"those in {root}/." in layout.describe()


def test_a_folder_beside_the_one_around_is_left_out_if_it_has_no_images(tmp_path):
    """Stanford's dogs lie beside their annotations, which have the same folders."""
    for folder in ("Images/a", "Images/b", "Annotation/a", "Annotation/b", "__MACOSX/Images/a"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in "ab":
        (tmp_path / "Images" / folder / "1.jpg").touch()
        (tmp_path / "Annotation" / folder / "1").touch()
    (tmp_path / "README.md").touch()
    layout = find_layout(FolderTree(tmp_path), str(tmp_path))
    assert (layout.root, layout.left_out) == ("Images", ("Annotation",))
    assert "Left out: Annotation/." in layout.describe()


def test_a_usual_layout_needs_no_word():
    for folders in (cross("train val", "a b"), ["a", "b"], cross("training validation", "a b")):
        assert search(*folders).describe() == ""


def test_other_names_of_parts_are_said():
    assert search(*cross("chest/Training chest/Testing", "a b")).describe() == (
        "The data are those in chest/. Parts: train is Training/, test is Testing/."
    )


def test_images_without_class_folders_beside_a_good_part_have_no_labels():
    layout = search("train/a", "train/b", "test")
    assert (dict(layout.parts), dict(layout.unlabeled)) == ({"train": "train"}, {"test": "test"})
    assert "the test images have no labels, and are left out" in layout.describe()
    layout = search(
        *cross("seg_train/seg_train seg_test/seg_test", "a b"), "seg_pred/seg_pred", "test/test"
    )
    assert layout.left_out == ("test/test", "seg_pred")


def test_unlabeled_images_in_a_folder_of_their_own_have_no_labels():
    """As in Tiny ImageNet."""
    layout = search("train/a/images", "train/b/images", "val/images", "test/images")
    assert dict(layout.parts) == {"train": "train"}
    assert dict(layout.unlabeled) == {"val": "val/images", "test": "test/images"}


def test_folders_that_every_class_holds_are_depth_and_said():
    layout = search(*cross("benign malignant", "40X 100X 200X"))
    assert layout.parts == {"": ""}
    assert layout.describe() == (
        "Every class folder holds 100X/, 200X/, 40X/, whose images are those of the class."
    )
    assert not search(*cross("cat dog", "2019"), "cat/2020").describe()


def test_folders_deep_around_the_data_are_entered():
    assert search(*cross("a/b/c/d/e/f", "x y")).root == "a/b/c/d/e/f"


def test_parts_without_any_class_folder_are_no_classes():
    layout = search("train", "test")
    assert not layout.parts
    assert dict(layout.unlabeled) == {"train": "train", "test": "test"}
    assert not search("train").parts
    assert dict(search("archive/images").unlabeled) == {"": "archive/images"}
    assert search("images").parts == search("Photos2").parts == {}
    assert search("images", "cat").parts == {"": ""}
    parts = dict(search(*cross("images", "train val")).unlabeled)
    assert parts == {"train": "images/train", "val": "images/val"}


def test_loose_images_are_counted():
    layout = find_layout(NameTree(["a.JPG", "x/b.png", "x/train/a/1.png", "x/train/b/1.png"]), "d")
    assert (layout.root, dict(layout.loose)) == ("x", {".jpg": 1, ".png": 1})
    assert not search("", "a", "b").loose  # those are counted with the class folders


def test_parts_inside_class_folders_are_read_as_parts():
    assert search(*cross("1 2", "train val")).in_classes
    layout = search(*cross("cat dog", "train val"), "eel/train")
    assert layout.in_classes
    assert layout.parts == {"": ""}
    assert "Each class folder holds the parts" in layout.describe()


@pytest.mark.parametrize(
    ("folders", "what"),
    [
        (cross("train training", "a b"), "a train and a training split, which both mean train"),
        (cross("train Train", "a b"), "which both mean train"),
        (cross("val dev train", "a b"), "which both mean val"),
        (["train/tgv", "train/ice", "bus", "car"], "beside bus/, car/, which may be classes"),
        (cross("train bus car", "side front"), "beside bus/, car/, which may be classes"),
        (cross("train vlaidation", "a b"), "beside vlaidation/, which may be classes"),
        (
            cross("train/train train/val test", "a b"),
            "parts of the data in train/, which is itself named as a part",
        ),
        (["cat/train", "cat/val", "dog"], "in the class folder cat/, and none in dog/"),
        (
            cross("fold1/train fold1/val fold2/train fold2/val", "a b"),
            "fold1/ is a data set with parts of its own",
        ),
        (cross("fold1 fold2 fold3", "a b"), "which of both are the classes is not clear"),
        (cross("set_a set_b", "x y"), "which of both are the classes is not clear"),
        (cross("art clipart", "a b c d e"), "which of both are the classes is not clear"),
        (
            [*cross("x/x/train x/x/val", "a b"), "test/test", "y/z"],
            "x/x/ is a data set with parts of its own",
        ),
        (cross("images masks", "a b"), "which of both are the classes is not clear"),
        (["cat/train", "cat/Train", "cat/val", "dog/train", "dog/val"], "which both mean train"),
    ],
)
def test_what_is_not_clear_is_refused(folders, what):
    with pytest.raises(DataError, match="^(?s:.*)" + what.replace("(", r"\(")) as refused:
        search(*folders)
    assert refused.value.hint


def test_a_data_set_beside_other_things_is_taken(tmp_path):
    for folder in ("chest/train/a", "chest/test/b", "notes/deep"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("chest/train/a", "chest/test/b"):
        (tmp_path / folder / "1.png").touch()
    assert find_layout(FolderTree(tmp_path), str(tmp_path)).root == "chest"


def test_a_folder_that_cannot_be_listed_is_refused():
    with pytest.raises(DataError, match="cannot be read"):
        find_layout(FolderTree(Path("/nowhere/at/all")), "all")


def test_a_search_lists_no_class_folder_to_its_end(tmp_path, monkeypatch):
    """Class folders of a million images open at once."""
    for folder in "abc":
        (tmp_path / folder).mkdir()
        for number in range(50):
            (tmp_path / folder / f"{number}.jpg").touch()
    tree = FolderTree(tmp_path)
    listed = []
    real = tree._iterate

    def iterate(path, *limit):
        for item in real(path, *limit):
            listed.append(path)
            yield item

    monkeypatch.setattr(tree, "_iterate", iterate)
    find_layout(tree, "data")
    assert all(listed.count(folder) < 10 for folder in "abc")


@pytest.mark.parametrize(
    ("folders", "root", "parts"),
    [
        ([*cross("images", "a b c"), "sample"], "images", {"": "images"}),
        (
            [*cross("images", "a b c"), "assets", "docs/img", "results/run1"],
            "images",
            {"": "images"},
        ),
        ([*cross("images", "a b c"), *cross("sample", "a b c"), "docs"], "images", {"": "images"}),
        ([*cross("data/images", "a b c"), "results"], "data/images", {"": "data/images"}),
        ([*cross("data/train data/val", "a b"), "runs"], "data", {"val": "data/val"}),
        ([*cross("dataset/train", "a b"), "runs/exp/plots"], "dataset", {"train": "dataset/train"}),
        ([*cross("images", "a b c"), "images", "demo"], "images", {"": "images"}),
        ([*cross("images", "a b c"), "test_images"], "images", {"": "images"}),
        ([*cross("flowers", "rose tulip"), "docs"], "flowers", {"": "flowers"}),
        ([*cross("mnist", "0 1 2"), "figures"], "mnist", {"": "mnist"}),
        (
            [
                *cross("data", "a b"),
                *["docs", "src", "tests", "web", "app", "out", "tmp", "media", "lib"],
            ],
            "data",
            {"": "data"},
        ),
    ],
)
def test_a_folder_around_the_classes_beside_those_of_a_project_is_entered(folders, root, parts):
    layout = search(*folders)
    assert layout.root == root
    assert dict(layout.parts).items() >= parts.items()
    assert "Left out: " in layout.describe()


@pytest.mark.parametrize(
    ("folders", "what"),
    [
        ([*cross("images", "a b c"), "cat"], "images/ of the folders a/, b/, c/ beside cat/"),
        ([*cross("data", "a b"), *cross("data_v2", "b c")], "data/ of the folders a/, b/ beside"),
        ([*cross("flowers", "rose tulip"), "test"], "flowers/ of the folders rose/, tulip/ beside"),
        (["images", "masks"], "images/, masks/ are no names of classes"),
        (cross("images labels", "train val"), "images/, labels/ are no names of classes"),
        (["JPEGImages", "SegmentationClass", "SegmentationObject"], "are no names of classes"),
    ],
)
def test_a_folder_around_the_classes_or_one_of_them_is_refused(folders, what):
    with pytest.raises(DataError, match=what) as refused:
        search(*folders)
    assert refused.value.hint


@pytest.mark.parametrize(
    "folders",
    [
        [*cross("photo", "2019 2020"), "sketch"],
        [*cross("cat", "persian siamese"), "dog"],
        [*cross("cat", "persian siamese"), "other"],
        [*cross("with_mask", "blue white"), "without_mask"],
        ["with_mask", "without_mask"],
        [*cross("1", "x y"), "2"],
        ["photo", "photo/x", "photo/y", "sketch"],
        ["logs", "planks"],
        ["photo", "sketch", "sample"],
        [*cross("bus", "single double"), "train"],
        cross("photo sketch", "cat dog"),
    ],
)
def test_classes_with_folders_of_their_own_stay_classes(folders):
    layout = search(*folders)
    assert (layout.root, layout.parts, layout.left_out) == ("", {"": ""}, ())


@pytest.mark.parametrize(
    ("folders", "copies"),
    [
        (cross("cells cells/cells", "a b"), ["cells/cells"]),
        ([*cross("cells", "a b"), "a", "b"], ["cells"]),
        (cross("train train/train", "a b"), ["train/train"]),
        (cross("train train/train test test/test", "a b"), ["train/train", "test/test"]),
        (cross("x/y/train x/y/train/data x/y/val", "a b c"), ["x/y/train/data"]),
        (cross("train train/train", " ".join(f"n{n}" for n in range(300))), ["train/train"]),
        (cross("cells cells/cells", " ".join(f"n{n}" for n in range(300))), ["cells/cells"]),
    ],
)
def test_a_copy_of_the_class_folders_beside_them_is_no_class(folders, copies):
    layout = search(*folders)
    assert list(layout.copies) == copies
    assert f"Left out as copies of what is beside them: {copies[0]}/" in layout.describe()
    assert {name for part in layout.parts for name in layout.list_not_read(part)} == {
        path.rsplit("/", 1)[-1] for path in copies
    }


@pytest.mark.parametrize(
    "folders",
    [
        [*cross("cells cells/cells", "a b"), "cells/c"],
        [*cross("cells cells/cells", "a b"), "cells/cells/c"],
        cross("train train/more", "a b c")[:-1],
    ],
)
def test_folders_of_the_same_names_that_are_no_copy_are_refused(folders):
    with pytest.raises(DataError, match="beside folders of the same names"):
        search(*folders)


def test_a_folder_of_the_same_folders_with_other_numbers_of_images_is_refused():
    names = [f"{folder}/1.jpg" for folder in cross("cells cells/cells", "a b")]
    with pytest.raises(DataError, match="with other numbers of images") as refused:
        find_layout(NameTree([*names, "cells/a/2.jpg"]), "data")
    assert "Remove cells/cells/ if it is a copy" in refused.value.hint


@pytest.mark.parametrize(
    ("folders", "masks"),
    [
        (cross("covid normal", "images masks"), ["covid/masks", "normal/masks"]),
        (["a/images", "a/Labels", "b/images"], ["a/Labels"]),
        (["train/a/img", "train/a/gt_masks", "train/b/img"], ["train/a/gt_masks"]),
        (cross("a b", "img seg"), ["a/seg", "b/seg"]),
        (["a/images", "a/ground_truth", "b"], ["a/ground_truth"]),
        (["a", "a/masks", "b", "b/more"], ["a/masks"]),
    ],
)
def test_masks_beside_images_in_class_folders_are_left_out(folders, masks):
    layout = search(*folders)
    assert list(layout.masks) == masks
    assert not layout.same_folders
    assert masks[0] in layout.warn()


@pytest.mark.parametrize(
    "folders",
    [
        cross("a b", "with_mask without_mask"),
        cross("a b", "masks faces"),
        ["a/masks", "b"],
        ["a", "a/seg_train", "b"],
    ],
)
def test_folders_that_may_hold_images_of_a_class_are_no_masks(folders):
    assert not search(*folders).masks


@pytest.mark.parametrize(
    "folders",
    [
        cross("train/images train/masks val/images val/masks", "x y"),
        cross("train/art train/photo val/art val/photo", "dog elephant giraffe"),
        cross("train/fold1 train/fold2", "x y"),
        cross("traincats testcats", "x y"),
        cross("a/images b/images", "dog elephant giraffe"),
    ],
)
def test_what_is_not_clear_in_a_part_is_refused(folders):
    with pytest.raises(DataError, match="which of both are the classes is not clear") as refused:
        search(*folders)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("folders", "inside"),
    [
        (cross("train/cat train/dog val/cat val/dog", "2019 2020"), "2019/, 2020/"),
        (cross("amazon/images dslr/images webcam/images", "bike mug"), "images/bike/, images/mug/"),
        (["train/a/l", "train/a/r", "train/b/l", "train/b/r", "val/a", "val/b"], "l/, r/"),
    ],
)
def test_equal_folders_in_the_class_folders_of_a_part_are_said(folders, inside):
    assert f"Every class folder holds {inside}, whose" in search(*folders).describe()


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ("Trainingsdaten Testdaten", {"train": "Trainingsdaten", "test": "Testdaten"}),
        ("Trainingsbilder Validierung", {"train": "Trainingsbilder", "val": "Validierung"}),
        ("entraînement validation", {"train": "entraînement", "val": "validation"}),
        ("entrenamiento prueba", {"train": "entrenamiento", "test": "prueba"}),
    ],
)
def test_parts_in_other_languages_are_parts_and_said(names, parts):
    layout = search(*cross(names, "ok ng"))
    assert layout.parts == parts
    assert f"train is {parts['train']}/" in layout.describe()


def test_boxes_beside_the_folder_around_the_classes_of_a_part_are_no_class(tmp_path):
    for folder in ("train/images/a", "train/images/b", "train/labels", "val/images/a"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / ("1.txt" if folder == "train/labels" else "1.jpg")).touch()
    layout = find_layout(FolderTree(tmp_path), str(tmp_path))
    assert layout.parts == {"train": "train/images", "val": "val/images"}
    assert set(search(*cross("train val", "photo mask")).parts) == {"train", "val"}
    assert search("train", "test", "control").parts == {"": ""}

"""Every supported layout opens as a dataset; others are refused with the reason."""

from __future__ import annotations

import re
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from deitctl.data import near_duplicates
from deitctl.data.open import open_dataset, open_eval_split, open_for_evaluation
from deitctl.data.readers.folder import open_folder
from deitctl.data.run_data import RunData, read_run_data, write_split
from deitctl.data.splits import hash_paths
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import DataError

SPLIT = {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 2}
WHOLE = {"cat": 10, "dog": 5, "eel": 2}


def names_of(dataset) -> list[tuple[str, str]]:
    """(class by folder, class by label) of every image."""
    return [
        (re.split("[/:]", dataset.name(i))[-2], dataset.class_names[label])
        for i, label in enumerate(dataset.labels)
    ]


def labels_are_right(*datasets) -> bool:
    return all(folder == label for s in datasets for folder, label in names_of(s))


def test_folder_with_train_and_val(image_folder, reporter):
    train, val = open_for_training(Source(str(image_folder(SPLIT))), reporter=reporter)
    assert (len(train.labels), len(val.labels)) == (5, 3)
    assert train.class_names == val.class_names == ("cat", "dog")
    assert labels_are_right(train, val)
    assert train.read(0).size == (24, 18)


@pytest.mark.parametrize(
    ("first", "second"), [("training", "validation"), ("train", "valid"), ("train", "test")]
)
def test_other_names_of_the_splits(first, second, image_folder, reporter):
    counts = {f"{part}/{c}": 2 for part in (first, second) for c in "ab"}
    train, val = open_for_training(Source(str(image_folder(counts))), reporter=reporter)
    assert (len(train.labels), len(val.labels)) == (4, 4)


def test_val_goes_before_test(image_folder, reporter):
    root = image_folder({**SPLIT, "test/cat": 7, "test/dog": 7})
    assert len(open_for_evaluation(str(root), reporter).labels) == 3
    train, val = open_for_training(Source(str(root)), reporter=reporter)
    assert (len(train.labels), len(val.labels)) == (5, 3)
    assert any("(14 images) is left out of training" in note for note in reporter.notes)


def test_test_is_validated_on_where_there_is_no_val(image_folder, reporter):
    root = image_folder({"train/a": 2, "train/b": 2, "test/a": 3, "test/b": 1})
    _, val = open_for_training(Source(str(root)), reporter=reporter)
    assert len(val.labels) == 4
    assert any("its test split is validated on" in note for note in reporter.notes)
    assert open_eval_split(str(root), reporter=reporter).split == "test"


def test_a_fifth_of_train_alone_is_held_out(image_folder, reporter):
    """The same images whether the folder or its only split is named."""
    root = image_folder({"train/cat": 8, "train/dog": 9})
    splits = [
        open_for_training(Source(str(ref)), reporter=reporter) for ref in (root, root / "train")
    ]
    for one, other in zip(*splits, strict=True):
        assert one.indices.tolist() == other.indices.tolist()
    assert sum(len(part.labels) for part in splits[0]) == 17
    assert sum("has no validation set" in note for note in reporter.notes) == 2


def test_an_unsplit_folder_gives_a_fifth_of_every_class(image_folder, reporter):
    root = str(image_folder(WHOLE))
    train, val = open_for_training(Source(root), reporter=reporter)
    assert np.bincount(val.labels).min() >= 1
    assert len(train.labels) + len(val.labels) == 17
    assert not {train.name(i) for i in range(len(train.labels))} & {
        val.name(i) for i in range(len(val.labels))
    }
    assert labels_are_right(train, val)
    held = f"{len(val.labels)} of 17 images are held out"
    assert any(held in note for note in reporter.notes)
    again = open_for_training(Source(root), reporter=reporter)[1]
    assert again.indices.tolist() == val.indices.tolist()


def list_held_out(ref, reporter, seed=0) -> set[str]:
    val = open_for_training(Source(str(ref), split_seed=seed), reporter=reporter)[1]
    return {val.relative_path(i) for i in range(len(val.labels))}


def test_every_layout_holds_out_the_same_images(image_folder, reporter):
    root = image_folder(WHOLE)
    rows = [(f"{c}/{i}.png", c) for c, count in WHOLE.items() for i in range(count)]
    table = write_table(root, rows, "csv", ("path", "label"))
    absolute = [(str(root / path), label) for path, label in rows]
    held = list_held_out(root, reporter)
    assert held == list_held_out(make_tar(root, "deep/er"), reporter)
    assert held == list_held_out(table, reporter)
    assert held == list_held_out(write_table(root, absolute, "csv", ("path", "label")), reporter)
    assert held == list_held_out(shutil.copytree(root, root.parent / "elsewhere"), reporter)
    assert held != list_held_out(root, reporter, seed=1)


def test_an_image_that_resembles_a_training_image_is_trained_on(tmp_path, make_image, reporter):
    """Copies of the held-out images, smaller and under names that are not held out."""
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(15):
            image = Image.fromarray(
                np.random.default_rng(i + 100 * (label == "b")).integers(
                    0, 256, (6, 8, 3), dtype=np.uint8
                )
            )
            image.resize((96, 72), Image.Resampling.BICUBIC).save(
                tmp_path / "data" / label / f"{i}.png"
            )
    before = sorted(list_held_out(tmp_path / "data", reporter))
    assert not any("stayed in training" in note for note in reporter.notes)
    copied = next(path for path in before if path.startswith("a"))
    with Image.open(tmp_path / "data" / copied) as image:
        image.resize((48, 36)).save(tmp_path / "data" / "a" / "copy.jpg")
    after = list_held_out(tmp_path / "data", reporter)
    assert hash_paths(["a/copy.jpg"], 0)[0] > 0.2
    assert set(before) - after == {copied}
    assert (
        "Of that fifth, 1 stayed in training because of a near duplicate there."
        in reporter.notes[-1]
    )


def test_images_that_all_resemble_each_other_are_split_as_others(
    tmp_path, make_image, reporter, monkeypatch
):
    """Else nothing could be held out; equal ones stay together."""
    for label, shade in (("a", 0), ("b", 40)):
        (tmp_path / label).mkdir()
        for i in range(30):
            image = make_image(64, 64, 0)
            image.paste((shade + i // 2, 0, 0), (0, 0, 4, 4))
            image.save(tmp_path / label / f"{i}.png")
    held = list_held_out(tmp_path, reporter)
    assert len(held) >= 2
    assert any("So many images" in warning for warning in reporter.warnings)
    monkeypatch.setattr(near_duplicates, "MAX_IMAGES", 10)
    assert list_held_out(tmp_path, reporter) != held
    assert "Duplicates were not looked for" in reporter.notes[-1]


@pytest.mark.parametrize(("photos", "copies"), [(40, 8), (140, 2)])
def test_copies_are_held_out_together_and_as_often_as_others(photos, copies, tmp_path, reporter):
    """Each by its name, 2 of 320 and 10 of 280 were."""
    for number in range(photos * copies):
        path = tmp_path / "ab"[number % photos % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (number % photos, 0, 0)).save(path)
    train, val = open_for_training(Source(str(tmp_path)), reporter=reporter)
    digests = [{part.digest(i) for i in range(len(part.labels))} for part in (train, val)]
    assert not digests[0] & digests[1]
    assert len(val.labels) == len(digests[1]) * copies
    assert 0.1 < len(val.labels) / (photos * copies) < 0.35
    assert "chosen by content, as many are equal" in reporter.notes[-1]
    assert not reporter.warnings


@pytest.mark.parametrize(("shade", "num_held"), [(0, 52), (100, 2)])
def test_a_fifth_that_copies_make_too_large_or_small_is_warned_of(
    shade, num_held, tmp_path, reporter
):
    """One photo in 51 copies, and nine others: the copies are on one side, whichever it is."""
    for number in range(60):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9), (shade + max(0, number - 50), 0, 0)).save(path)
    _, val = open_for_training(Source(str(tmp_path)), reporter=reporter)
    assert len(val.labels) == num_held
    assert f"{num_held} of 60 images" in reporter.warnings[-1]
    assert "a fifth is 12, because of many copies" in reporter.warnings[-1]


@pytest.mark.parametrize(("first", "second"), [("train", "training"), ("val", "valid")])
def test_two_names_of_one_split_are_refused(first, second, image_folder, reporter):
    """Else the images of one of them would be left out in silence."""
    root = image_folder({f"{part}/{c}": 1 for part in ("train", first, second) for c in "ab"})
    rows = [(f"{part}/a/0.png", "a", part) for part in ("train", first, second)]
    for ref in (str(root), make_tar(root), write_table(root, rows, "csv")):
        with pytest.raises(DataError, match=f"a {first} and a {second} split, which both mean"):
            open_dataset(ref, reporter)


def test_a_resumed_run_is_not_given_a_test_part_that_was_added(image_folder, tmp_path, reporter):
    root = image_folder({"train/cat": 8, "train/dog": 9})
    run = start_run(tmp_path / "run", root, reporter)
    before = open_for_training(Source(str(root)), reporter=reporter, run=run)
    shutil.copytree(root / "train", root / "test")
    after = open_for_training(Source(str(root)), reporter=reporter, run=run)
    for one, other in zip(before, after, strict=True):
        assert one.indices.tolist() == other.indices.tolist()


def test_a_run_does_not_go_on_with_other_labels(image_folder, tmp_path, reporter):
    root = image_folder(WHOLE)
    table = write_table(
        root, [(f"cat/{i}.png", "ab"[i % 2]) for i in range(10)], "csv", ("path", "label")
    )
    run = start_run(tmp_path / "run", table, reporter)
    write_table(root, [(f"cat/{i}.png", "ab"[i // 5]) for i in range(10)], "csv", ("path", "label"))
    with pytest.raises(DataError, match="images with other labels than when"):
        open_for_training(Source(str(table)), reporter=reporter, run=run)


def test_evaluation_takes_all_of_an_unsplit_folder(image_folder, reporter):
    assert len(open_for_evaluation(str(image_folder(WHOLE)), reporter).labels) == 17


def test_evaluation_takes_a_val_folder_itself(image_folder, reporter):
    dataset = open_for_evaluation(str(image_folder(SPLIT) / "val"), reporter)
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset.labels) == 3


def test_empty_class_is_left_out_with_a_warning(image_folder, reporter):
    root = image_folder({"ant": 2, "bee": 0, "cat": 2})
    dataset = open_folder(root, reporter)
    assert dataset.class_names == ("ant", "cat")
    assert labels_are_right(dataset)
    assert any("'bee'" in w for w in reporter.warnings)


def test_val_without_one_of_the_classes_keeps_its_labels_by_name(image_folder, reporter):
    root = image_folder(
        {"train/ant": 2, "train/bee": 2, "train/cat": 2, "val/ant": 1, "val/cat": 2}
    )
    train, val = open_for_training(Source(str(root)), reporter=reporter)
    assert val.class_names == train.class_names == ("ant", "bee", "cat")
    assert val.labels.tolist() == [0, 2, 2]


def test_an_unknown_class_in_val_is_refused(image_folder, reporter):
    root = image_folder({"train/ant": 2, "train/bee": 2, "val/ant": 1, "val/zebra": 2})
    with pytest.raises(
        DataError, match="'zebra' is in the validation set but not in the training set"
    ):
        open_for_training(Source(str(root)), reporter=reporter)


def test_images_are_found_at_any_depth_and_by_any_ending(image_folder, reporter):
    root = image_folder({"cat/2020/june": 2, "dog": 1})
    (root / "dog" / "0.png").rename(root / "dog" / "0.PNG")
    (root / "dog" / "notes.txt").write_text("not data")
    assert np.bincount(open_folder(root, reporter).labels).tolist() == [2, 1]


def test_hidden_folders_and_files_are_no_data(image_folder, reporter):
    root = image_folder(
        {"cat": 2, "dog": 1, ".git": 2, "__MACOSX": 1, "cat/.thumbs": 3, ".ipynb_checkpoints": 1}
    )
    (root / "dog" / "._0.png").write_bytes(b"resource fork")
    dataset = open_folder(root, reporter)
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset.labels) == 3
    assert not reporter.warnings


JUNK = ("@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "cat/@eaDir/0.png", "dog/.thumbnails")


def test_thumbnails_of_servers_and_waste_bins_are_no_data(image_folder, reporter):
    root = image_folder({"cat": 2, "dog": 1, **dict.fromkeys(JUNK, 1)})
    for ref in (str(root), make_tar(root)):
        dataset = open_dataset(ref, reporter).unsplit
        assert (dataset.class_names, len(dataset.labels)) == (("cat", "dog"), 3)
    assert not reporter.warnings


PEOPLES = {
    "archive/Training/cat": 3,
    "archive/Training/dog": 2,
    "archive/Testing/Testing/cat": 2,
    "archive/Testing/Testing/dog": 1,
    "archive/pred": 2,
}


def test_a_folder_and_a_tar_of_one_layout_are_the_same(image_folder, reporter):
    root = image_folder(PEOPLES)
    opened = [open_dataset(ref, reporter) for ref in (str(root), make_tar(root))]
    for split, sizes in (("train", [3, 2]), ("test", [2, 1])):
        one, other = (getattr(data, split) for data in opened)
        assert np.bincount(one.labels).tolist() == np.bincount(other.labels).tolist() == sizes
        assert one.class_names == other.class_names == ("cat", "dog")
        paths = [[d.relative_path(i) for i in range(len(d.labels))] for d in (one, other)]
        assert paths[0] == paths[1]
        assert paths[0][0] == "cat/0.png"
    assert reporter.notes == [
        f"{root}: The data are those in archive/. Parts: train is Training/, test is "
        "Testing/Testing/. Left out: archive/pred/.",
        f"{root}.tar: Parts: train is Training/, test is Testing/Testing/. Left out: archive/pred/.",
    ]


def test_images_in_folders_around_are_held_out_as_those_inside(image_folder, reporter):
    root = image_folder({f"archive/images/{name}": count for name, count in WHOLE.items()})
    held = list_held_out(root / "archive" / "images", reporter)
    assert held == list_held_out(root, reporter)


def test_parts_inside_class_folders_are_parts(image_folder, reporter):
    root = image_folder({"cat/train": 3, "cat/val": 1, "dog/Train": 2, "dog/val": 2})
    for ref in (str(root), make_tar(root)):
        train, val = open_for_training(Source(ref), reporter=reporter)
        assert train.class_names == val.class_names == ("cat", "dog")
        assert np.bincount(train.labels).tolist() == [3, 2]
        assert [val.relative_path(i) for i in range(3)] == [
            "cat/val/0.png",
            "dog/val/0.png",
            "dog/val/1.png",
        ]
        assert train.read(4).size == (24, 18)
    assert not reporter.warnings


def test_unlabeled_test_images_leave_training_as_it_is(image_folder, reporter):
    root = image_folder({"train/cat": 8, "train/dog": 9, "test": 5})
    train, val = open_for_training(Source(str(root)), reporter=reporter)
    assert len(train.labels) + len(val.labels) == 17
    assert "the test images have no labels, and are left out" in reporter.notes[0]
    with pytest.raises(DataError, match="images but no class folders in test/, train/"):
        open_dataset(str(image_folder({"train": 2, "test": 2}, "flat")), reporter)


def test_files_that_are_not_read_are_said_once(image_folder, reporter):
    root = image_folder({"train/cat": 2, "train/dog": 2, "val/cat": 1, "train": 2})
    for name in ("train/cat/a.JXL", "val/cat/b.jxl", "train/dog/c.dcm", "train/dog/notes.txt"):
        (root / name).write_bytes(b"x")
    for ref in (str(root), make_tar(root)):
        open_dataset(ref, reporter)
        assert "5 files are not read" in reporter.warnings[-1]
        for part in ("2 .png beside the class folders", "2 .jxl", "1 .dcm"):
            assert part in reporter.warnings[-1]
    assert len(reporter.warnings) == 2


@pytest.mark.parametrize(
    "name", ["ILSVRC2012_val_00000001", "scan.0001", "cat.jpg_large", "a.PNG "]
)
def test_an_image_without_a_known_extension_is_an_image(name, image_folder, reporter):
    root = image_folder({"cat": 2, "dog": 2})
    (root / "cat" / "1.png").rename(root / "cat" / name)
    (root / "cat" / "LICENSE").write_text("no image")
    for ref in (str(root), make_tar(root)):
        dataset = open_dataset(ref, reporter).unsplit
        assert np.bincount(dataset.labels).tolist() == [2, 2]
        names = [dataset.relative_path(i) for i in range(4)]
        assert dataset.read(names.index(f"cat/{name}")).size == (24, 18)
    assert not reporter.warnings


def test_files_without_extension_that_show_something_are_counted(image_folder, reporter):
    root = image_folder({"cat": 2, "dog": 2})
    (root / "cat" / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (root / "dog" / "LICENSE").write_text("no image")
    for ref in (str(root), make_tar(root)):
        open_dataset(ref, reporter)
        assert "1 file is not read: 1 without an extension, a DICOM file" in reporter.warnings[-1]
    assert len(reporter.warnings) == 2


def test_layouts_of_images_without_a_known_extension_are_found(image_folder, reporter):
    root = image_folder({"data/train/cat": 2, "data/train/dog": 2, "data/val/dog": 1, "docs": 1})
    for image in sorted(root.rglob("*.png")):
        image.rename(image.with_suffix(".0001"))
    for ref in (str(root), make_tar(root)):
        parts = open_dataset(ref, reporter).list_parts()
        assert {name: len(part.labels) for name, part in parts.items()} == {"train": 4, "val": 1}
        assert "Left out: docs/" in reporter.notes[-1]


def test_two_spellings_of_a_class_are_one_and_said(image_folder, reporter):
    root = image_folder({"caf\u00e9": 2, "cafe\u0301": 3, " dog ": 1, "eel": 1})
    for ref in (str(root), make_tar(root)):
        dataset = open_dataset(ref, reporter).unsplit
        assert dataset.class_names == ("caf\u00e9", "dog", "eel")
        assert np.bincount(dataset.labels).tolist() == [5, 1, 1]
        assert r"'cafe\u0301' and 'caf\xe9' are one class" in reporter.warnings[-1]
    assert len(reporter.warnings) == 2
    with pytest.raises(DataError, match="without letters"):
        open_dataset(str(image_folder({" ": 1, "dog": 1}, "spaces")), reporter)


def test_names_of_the_parts_match_in_any_spelling(image_folder, reporter):
    root = image_folder({"train/caf\u00e9": 2, "train/dog": 2, "val/cafe\u0301 ": 1, "val/dog": 1})
    train, val = open_for_training(Source(str(root)), reporter=reporter)
    assert val.class_names == train.class_names == ("caf\u00e9", "dog")
    assert val.labels.tolist() == [0, 1]
    shutil.move(root / "val" / "dog", root / "val" / "Dog")
    with pytest.raises(DataError, match="'Dog' is in the validation set") as refused:
        open_for_training(Source(str(root)), reporter=reporter)
    assert refused.value.hint == "The training set has 'dog': use one spelling."


@pytest.mark.parametrize(
    ("name", "start", "command"),
    [
        ("my data.zip", b"PK\x03\x04", "unzip '.*my data.zip' -d images"),
        ("a.tar.gz", b"\x1f\x8b", "tar -xf .*a.tar.gz -C images"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "7z x .*a.7z"),
        ("a.rar", b"Rar!\x1a\x07", "unrar x .*a.rar"),
        ("download", b"PK\x03\x04", "unzip .*download -d images"),
    ],
)
def test_archives_are_refused_with_what_unpacks_them(name, start, command, tmp_path, reporter):
    (tmp_path / name).write_bytes(start + bytes(40))
    with pytest.raises(DataError, match="archive, whose images are not read in place") as refused:
        open_dataset(str(tmp_path / name), reporter)
    assert re.search(command, refused.value.hint)


@pytest.mark.parametrize("target", [".", "..", "../dog"])
def test_links_that_go_round_end(target, image_folder, reporter):
    root = image_folder({"cat": 2, "dog": 1})
    (root / "cat" / "loop").symlink_to(target, target_is_directory=True)
    counts = np.bincount(open_folder(root, reporter).labels).tolist()
    # a link to another class is followed, as meant
    assert counts == ([3, 1] if target == "../dog" else [2, 1])


def test_a_linked_class_folder_is_followed(image_folder, tmp_path, reporter):
    root, elsewhere = image_folder({"cat": 2}), image_folder({"x": 3}, "elsewhere")
    (root / "dog").symlink_to(elsewhere / "x", target_is_directory=True)
    assert np.bincount(open_folder(root, reporter).labels).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("counts", "what"),
    [
        ({}, "no class folders"),
        ({".": 3}, "images but no class folders"),
        ({"cat": 0, "dog": 0}, "no images in them"),
        ({"cat": 1}, "1 training and 0 validation images in 1 class"),
        ({"cat": 9}, "in 1 class"),
        ({"cat": 1, "dog": 1}, "0 validation images"),
        ({"val/cat": 2, "val/dog": 2}, "a val split and no train split"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_data_that_cannot_be_trained_on_is_refused(counts, what, image_folder, tmp_path, reporter):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=what):
        open_for_training(Source(str(image_folder(counts))), reporter=reporter)


def test_missing_folders_and_other_files_are_refused(tmp_path, reporter):
    with pytest.raises(DataError, match="There is no dataset"):
        open_dataset(str(tmp_path / "nowhere"), reporter)
    (tmp_path / "notes.md").write_text("# nothing")
    with pytest.raises(DataError, match="is a text file, not a dataset"):
        open_dataset(str(tmp_path / "notes.md"), reporter)


@pytest.mark.unprivileged
def test_an_unreadable_folder_is_refused(image_folder, reporter):
    root = image_folder({"cat": 1})
    root.chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be read"):
            open_folder(root, reporter)
    finally:
        root.chmod(0o755)


@pytest.mark.parametrize("ref", ["", "digits"])
def test_the_built_in_set_is_the_default(ref, reporter):
    train, val = open_for_training(Source(ref), reporter=reporter)
    assert (len(train.labels), len(val.labels)) == (1442, 355)


def test_a_folder_named_digits_goes_before_the_built_in_set(image_folder, monkeypatch, reporter):
    root = image_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1}, root="digits")
    monkeypatch.chdir(root.parent)
    assert open_for_training(Source("digits"), reporter=reporter)[0].class_names == ("a", "b")
    # a name left out means the same
    assert len(open_for_training(Source(""), reporter=reporter)[0].labels) == 4


def make_tar(root, inside: str = "") -> str:
    path = root.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        archive.add(root, arcname=inside or ".")
    return str(path)


@pytest.mark.parametrize("inside", ["", "images", "deep/er"])
def test_tar_with_splits_reads_like_the_folder(inside, image_folder, reporter):
    root = image_folder({**SPLIT, "train/.hidden": 2, "test/cat": 4})
    (root / "train" / "dog" / "notes.txt").write_text("not data")
    train, val = open_for_training(Source(make_tar(root, inside)), reporter=reporter)
    expected_train, expected_val = open_for_training(Source(str(root)), reporter=reporter)
    for ours, expected in ((train, expected_train), (val, expected_val)):
        assert ours.class_names == expected.class_names
        assert ours.labels.tolist() == expected.labels.tolist()
        for i in range(len(ours.labels)):
            assert np.array_equal(np.asarray(ours.read(i)), np.asarray(expected.read(i)))


def test_tar_of_class_folders_is_unsplit(image_folder, reporter):
    train, val = open_for_training(Source(make_tar(image_folder(WHOLE))), reporter=reporter)
    assert len(train.labels) + len(val.labels) == 17
    assert labels_are_right(train, val)


def test_compressed_damaged_and_empty_tars_are_refused(image_folder, tmp_path, reporter):
    root = image_folder({"cat": 1})
    with tarfile.open(tmp_path / "z.tar", "w:gz") as archive:
        archive.add(root, arcname=".")
    (tmp_path / "b.tar").write_bytes(b"x" * 2000)
    with tarfile.open(tmp_path / "e.tar", "w"):
        pass
    for name, what in (
        ("z", "uncompressed tar"),
        ("b", "uncompressed tar"),
        ("e", "no class folders"),
    ):
        with pytest.raises(DataError, match=what):
            open_dataset(str(tmp_path / f"{name}.tar"), reporter)


def write_table(root, rows, kind, columns=("path", "label", "split")):
    path = root / f"table.{kind}"
    if kind == "csv":
        path.write_text("\n".join([",".join(columns), *(",".join(r) for r in rows)]) + "\n")
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(
            pyarrow.table(dict(zip(columns, zip(*rows, strict=True), strict=True))), path
        )
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_table_with_splits(kind, image_folder, reporter):
    root = image_folder({"cat": 4, "dog": 4})
    rows = [
        (f"{c}/{i}.png", c, ("train", "train", "val", "test")[i])
        for c in ("dog", "cat")
        for i in range(4)
    ]
    train, val = open_for_training(Source(write_table(root, rows, kind)), reporter=reporter)
    assert train.class_names == val.class_names == ("cat", "dog")
    assert (len(train.labels), len(val.labels)) == (4, 2)  # val goes before test, as with folders
    assert labels_are_right(train, val)
    assert train.read(0).size == (24, 18)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_table_without_splits_is_unsplit(kind, image_folder, reporter):
    root = image_folder({"cat": 5, "dog": 5})
    rows = [(str(root / c / f"{i}.png"), c) for c in ("cat", "dog") for i in range(5)]
    train, val = open_for_training(
        Source(write_table(root, rows, kind, ("path", "label"))), reporter=reporter
    )
    assert len(train.labels) + len(val.labels) == 10
    assert np.bincount(val.labels).min() >= 1
    assert labels_are_right(train, val)


def test_an_unknown_class_in_the_val_rows_of_a_table_is_refused(image_folder, reporter):
    root = image_folder({"cat": 1, "dog": 1, "zebra": 1})
    rows = [
        ("cat/0.png", "cat", "train"),
        ("dog/0.png", "dog", "train"),
        ("zebra/0.png", "zebra", "val"),
    ]
    with pytest.raises(DataError, match="'zebra' is in the validation set"):
        open_for_training(Source(write_table(root, rows, "csv")), reporter=reporter)


def test_a_byte_order_mark_is_no_part_of_the_first_column(image_folder, reporter):
    root = image_folder({"cat": 1})
    (root / "t.csv").write_bytes("\ufeffpath,label\ncat/0.png,cat\n".encode())
    assert open_for_evaluation(str(root / "t.csv"), reporter).class_names == ("cat",)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("path,label\n", "no rows"),
        ("path,label\na.png,\n", "row 2 has no"),
        ("colour,shape\na.png,x\n", "the columns 'colour', 'shape'"),
        ("path,label,split\na.png,x,extra\n", "'extra'"),
        ("path,label,split\na.png,x,train\nb.png,x,\n", "rows without a split"),
    ],
    ids=["empty", "no-label", "other-columns", "unknown-split", "missing-split"],
)
def test_malformed_tables_are_refused(text, what, tmp_path, reporter):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=what):
        open_dataset(str(tmp_path / "t.csv"), reporter)


def test_damaged_parquet_is_refused(tmp_path, reporter):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"not a readable parquet file: it is cut short, .*Copy or"):
        open_dataset(str(tmp_path / "t.parquet"), reporter)


def test_a_class_may_be_called_train(image_folder, reporter):
    root = image_folder({"train": 2, "bus": 2, "car": 2})
    dataset = open_dataset(str(root), reporter).unsplit
    assert dataset.class_names == ("bus", "car", "train")


def add_images(root, make_image, *paths: str) -> None:
    """Add images that are like no other."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(exist_ok=True)
        make_image(30, 20, number).save(root / path)


def start_run(folder, ref, reporter) -> RunData:
    """Write what a run says about its data."""
    folder.mkdir()
    (folder / "run.toml").write_text(f"data = '{ref}'\n")
    write_split(folder, *open_for_training(Source(str(ref)), reporter=reporter))
    return read_run_data(folder)


def test_a_run_is_scored_on_what_it_held_out(image_folder, make_image, tmp_path, reporter):
    root = image_folder(WHOLE)
    held = list_held_out(root, reporter)
    run = start_run(tmp_path / "run", root, reporter)
    add_images(root, make_image, *(f"dog/{i}.png" for i in (5, 6, 7)), "fox/0.png", "fox/1.png")
    moved = shutil.copytree(root, tmp_path / "moved")
    for ref in ("", str(root), f"{root}/", str(moved), make_tar(root)):
        reporter.notes.clear()
        opened = open_eval_split(ref, run=run, reporter=reporter)
        assert opened.split == "val"
        names = [opened.dataset.relative_path(i) for i in range(len(opened.dataset.labels))]
        assert set(names) == held
        assert labels_are_right(opened.dataset)
        assert opened.num_train_images == 0
        scoring = f"Scoring the {len(held)} of 22 images of"
        assert reporter.notes[-1].startswith(scoring)
        assert reporter.notes[-1].endswith("held out. Left out because they are new since: 5.")
    assert not reporter.warnings
    train = open_eval_split("", "train", run=run, reporter=reporter)
    assert train.num_train_images == len(train.dataset.labels) == 17 - len(held)
    everything = open_eval_split(str(root), "all", run=run, reporter=reporter)
    assert (len(everything.dataset.labels), everything.num_train_images) == (22, 17 - len(held))
    warned = f"{17 - len(held)} of these 22 images are training images"
    assert reporter.warnings[-1].startswith(warned)
    with pytest.raises(DataError, match="has no test split") as refused:
        open_eval_split("", "test", run=run, reporter=reporter)
    assert refused.value.hint == "It has: train, val, all."


def test_other_data_is_scored_whole(image_folder, tmp_path, reporter):
    run = start_run(tmp_path / "run", image_folder(WHOLE), reporter)
    other = image_folder({"ant": 10, "cat": 3, "dog": 3}, "other")
    shutil.rmtree(other / "ant")  # so that the others have other contents under the same names
    opened = open_eval_split(str(other), run=run, reporter=reporter)
    assert (opened.split, len(opened.dataset.labels), opened.num_train_images) == ("all", 6, None)
    assert not reporter.warnings


def test_each_split_can_be_scored(image_folder, tmp_path, reporter):
    counts = {**SPLIT, "test/cat": 7, "test/eel": 1}
    root = image_folder(counts)
    rows = [
        (f"{folder}/{i}.png", folder.split("/")[1], folder.split("/")[0])
        for folder, count in counts.items()
        for i in range(count)
    ]
    run = RunData(tmp_path / "run", str(root), 0, None)
    for ref in (str(root), make_tar(root), write_table(root, rows, "csv")):
        sizes = {
            split: len(open_eval_split(ref, split, run=run, reporter=reporter).dataset.labels)
            for split in ("train", "val", "test", "all")
        }
        assert sizes == {"train": 5, "val": 3, "test": 8, "all": 16}
        everything = open_eval_split(ref, "all", reporter=reporter).dataset
        assert everything.class_names == ("cat", "dog", "eel")
        assert labels_are_right(everything)
        assert everything.read(15).size == (24, 18)
        assert everything.num_bytes(15) == len(everything.read_bytes(15))
    assert len(reporter.warnings) == 2  # the folder alone is the run's
    assert all("5 of these" in warning for warning in reporter.warnings)


def test_a_run_that_goes_on_holds_out_what_it_held_out(
    image_folder, make_image, tmp_path, reporter
):
    root = image_folder(WHOLE)
    run = start_run(tmp_path / "run", root, reporter)
    before = open_for_training(Source(str(root)), reporter=reporter, run=run)
    add_images(
        root,
        make_image,
        *(f"ape/{i}.png" for i in range(5)),
        *(f"dog/{i}.png" for i in range(5, 9)),
    )
    after = open_for_training(Source(str(root), split_seed=9), reporter=reporter, run=run)
    for one, other in zip(before, after, strict=True):
        assert one.class_names == other.class_names == ("cat", "dog", "eel")
        assert [one.name(i) for i in range(len(one.labels))] == [
            other.name(i) for i in range(len(other.labels))
        ]
        assert one.labels.tolist() == other.labels.tolist()
    assert reporter.notes[-1].endswith("began are left out: 9.")
    (root / "eel" / "0.png").unlink()
    with pytest.raises(DataError, match=r"lacks images .*: eel/0\.png and 0 more"):
        open_for_training(Source(str(root)), reporter=reporter, run=run)
    (tmp_path / "run" / "split.csv").unlink()
    with pytest.raises(DataError, match=r"has no split\.csv"):
        open_for_training(Source(str(root)), reporter=reporter, run=read_run_data(tmp_path / "run"))


def test_copies_are_left_out_of_folders_and_tars(image_folder, reporter):
    """As archives of cells hold a copy of themselves, and those of X-rays the masks of lungs."""
    counts = {f"train/{where}{name}": 2 for where in ("", "train/") for name in "ab"}
    root = image_folder({**counts, "test/a": 1, "test/b": 1})
    for ref in (str(root), make_tar(root)):
        parts = open_dataset(ref, reporter).list_parts()
        assert [part.class_names for part in parts.values()] == [("a", "b")] * 2
        assert [part.labels.tolist() for part in parts.values()] == [[0, 0, 1, 1], [0, 1]]
        assert all(part.read(0).size for part in parts.values())
        assert "Left out as copies of what is beside them: train/train/." in reporter.notes[-1]
    assert not reporter.warnings


def test_masks_are_left_out_of_folders_and_tars(image_folder, reporter):
    root = image_folder({f"{name}/{kind}": 2 for name in "ab" for kind in ("images", "masks")})
    for ref in (str(root), make_tar(root)):
        (data,) = open_dataset(ref, reporter).list_parts().values()
        assert (data.class_names, data.labels.tolist()) == (("a", "b"), [0, 0, 1, 1])
        assert not any("/masks/" in data.name(index) for index in range(4))
        assert "Left out as what is drawn in images: a/masks/, b/masks/." in reporter.warnings[-1]
    assert len(reporter.warnings) == 2


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        (["test.csv", "train.csv", "val.csv"], "train.csv, val.csv, test.csv say"),
        (["test/metadata.csv", "train/metadata.csv"], "train/metadata.csv, test/metadata.csv say"),
        (["all.csv", "readme.txt", "test.tsv"], "all.csv, test.tsv, readme.txt say"),
    ],
)
def test_unlabeled_images_beside_tables_name_all_of_them(tables, named, image_folder, reporter):
    root = image_folder({"train": 2, "test": 2})
    for table in tables:
        (root / table).write_text("file_name,label\n")
    with pytest.raises(DataError, match=f"If {named} which class .* DATA is {root}/{named[:5]}"):
        open_dataset(str(root), reporter)


@pytest.mark.parametrize(
    ("folders", "drawn"),
    [
        (["images/train", "images/val"], "labels/train"),
        (["train/images", "valid/images"], "train/labels"),
        (["train/images"], "train/labels"),
        (["train2017", "val2017"], "annotations"),
        (["JPEGImages"], "Annotations"),
    ],
)
def test_data_for_detection_are_refused_as_without_class_folders(
    folders, drawn, image_folder, reporter
):
    """YOLO, COCO and VOC keep boxes in files of their own: no folder is a class."""
    root = image_folder(dict.fromkeys(folders, 2))
    (root / drawn).mkdir(parents=True)
    (root / drawn / "0.txt").write_text("0 .5 .5 .2 .2")
    with pytest.raises(DataError, match="images but no class folders in") as refused:
        open_for_training(Source(str(root)), reporter=reporter)
    assert f"as in {drawn.removesuffix('/train')}/, name no class" in refused.value.hint
    assert not reporter.warnings

"""A model is scored on images that it was not trained on, however its data is named."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from deitctl.data.run_data import read_run_data, write_split
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import DataError
from deitctl.evaluation.images import choose_images, describe_images, find_run, open_train_images
from deitctl.events import SilentReporter
from deitctl.exporters.verification_images import open_calibration_images, read_images
from deitctl.models.model_config import Preprocessing
from deitctl.packing.pack import pack

WHOLE = {"cat": 20, "dog": 20}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write what a run folder says about its data: no test here needs its model."""

    def make(data: Path | str, name: str = "run", seed: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.toml").write_text(f'data = "{data}"\nsplit_seed = {seed}\n')
        parts = open_for_training(Source(str(data), split_seed=seed), reporter=SilentReporter())
        write_split(folder, *parts)
        return folder

    return make


@pytest.fixture
def data(image_folder: Callable[..., Path]) -> Path:
    return image_folder(WHOLE)


def list_names(dataset) -> set[str]:
    return {"/".join(Path(dataset.name(i)).parts[-2:]) for i in range(len(dataset.labels))}


def list_held_out(data: Path, seed: int = 0) -> set[str]:
    return list_names(
        open_for_training(Source(str(data), split_seed=seed), reporter=SilentReporter())[1]
    )


@pytest.mark.parametrize("named", ["run alone", "model alone", "data and model", "data and export"])
def test_the_held_out_images_are_scored(named, make_run, data, reporter):
    run = make_run(data)
    (run / "export").mkdir()
    export = run / "export" / "run.onnx"
    export.touch()
    ref, model = {
        "run alone": (str(run), str(run)),
        "model alone": ("", str(run)),
        "data and model": (str(data), str(run)),
        "data and export": (str(data), str(export)),
    }[named]
    images = choose_images(ref, [model], reporter=reporter)
    held_out = list_held_out(data)
    assert list_names(images.dataset) == held_out
    assert (images.data, images.split) == (str(data), "val")
    assert images.count_train_images(model, range(len(held_out))) == 0
    assert not reporter.warnings
    assert f"{len(held_out)} of 40 images of {data} that {run} held out" in reporter.notes[0]


def test_another_model_is_scored_on_the_images_that_a_named_run_held_out(make_run, data, reporter):
    images = choose_images(str(make_run(data)), ["deit_tiny"], reporter=reporter)
    assert list_names(images.dataset) == list_held_out(data)
    assert images.count_train_images("deit_tiny", [0]) is None  # of no run


def test_every_split_can_be_asked_for_and_training_images_are_warned_of(make_run, data, reporter):
    run, num_val = str(make_run(data)), len(list_held_out(data))
    for split, count in (("train", 40 - num_val), ("all", 40), ("val", num_val)):
        images = choose_images(str(data), [run], split, reporter=reporter)
        assert (images.split, len(images.dataset.labels)) == (split, count)
        assert images.count_train_images(run, range(count)) == (
            0 if split == "val" else 40 - num_val
        )
    assert [warning.split(" are")[0] for warning in reporter.warnings] == [
        f"{40 - num_val} of these {40 - num_val} images",
        f"{40 - num_val} of these 40 images",
    ]
    with pytest.raises(DataError, match="no test split"):
        choose_images(str(data), [run], "test", reporter=reporter)


def test_data_that_was_moved_or_packed_is_recognized_by_the_names_in_it(
    make_run, data, tmp_path, reporter
):
    run, held_out = make_run(data), list_held_out(data)
    pack(str(data), tmp_path / "images-packed")
    shutil.move(data, tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"{data}, which is not there.*deitctl eval DATA --model"):
        choose_images("", [str(run)], reporter=reporter)
    for ref in ("elsewhere", "images-packed"):
        images = choose_images(str(tmp_path / ref), [str(run)], reporter=reporter)
        assert len(images.dataset.labels) == len(held_out), ref
        assert images.count_train_images(str(run), range(len(held_out))) == 0
        assert any(f"{ref} has the images of {run}" in note for note in reporter.notes)
    assert not reporter.warnings


def test_other_data_is_scored_whole(make_run, data, image_folder, reporter):
    other = image_folder({"ant": 1, "cat": 9, "dog": 2}, "other")
    shutil.rmtree(other / "ant")  # so that the others have other contents under the same names
    run = str(make_run(data))
    images = choose_images(str(other), [run], reporter=reporter)
    assert (images.split, len(images.dataset.labels)) == ("all", 11)
    assert images.count_train_images(run, range(11)) is None
    assert not reporter.notes + reporter.warnings


def test_files_of_the_training_images_are_recognized_in_tables_and_behind_links(
    make_run, data, tmp_path, reporter
):
    run, held_out = str(make_run(data)), list_held_out(data)
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "some.csv"
    cats = [f"cat/{number}.png" for number in range(20)]
    table.write_text("path,label\n" + "".join(f"../images/{cat},cat\n" for cat in cats))
    links = tmp_path / "links"
    links.mkdir()
    (links / "cat").symlink_to(data / "cat")
    (links / "dog").mkdir()
    for number in range(20):
        (links / "dog" / f"{number}-copy.png").symlink_to(data / "dog" / f"{number}.png")
    for ref, num_held_out in (
        (table, len(held_out.intersection(cats))),
        (links, len(held_out)),
    ):
        images = choose_images(str(ref), [run], reporter=reporter)
        assert (images.split, len(images.dataset.labels)) == ("val", num_held_out), ref
        assert "are left out" in reporter.notes[-1]


def test_training_images_are_scored_with_a_warning_where_there_are_no_others(
    make_run, image_folder, reporter
):
    data = image_folder({"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2})
    run = str(make_run(data))
    images = choose_images(str(data / "train"), [run], reporter=reporter)
    assert images.count_train_images(run, range(8)) == 8
    assert "8 of these 8 images are training images" in reporter.warnings[0]
    images = choose_images("", [run], reporter=reporter)
    assert (images.split, images.count_train_images(run, range(4))) == ("val", 0)


def test_several_models_are_scored_on_images_that_none_was_trained_on(make_run, data, reporter):
    common = {seed: list_held_out(data) & list_held_out(data, seed) for seed in range(1, 20)}
    some = next(seed for seed, names in common.items() if 0 < len(names) < len(list_held_out(data)))
    first, second = str(make_run(data)), str(make_run(data, "second", some))
    images = choose_images(str(data), [first, second], reporter=reporter)
    assert list_names(images.dataset) == common[some]
    indices = range(len(common[some]))
    assert [images.count_train_images(model, indices) for model in (first, second)] == [0, 0]
    assert f"because {second} was trained on them" in reporter.notes[-1]
    choose_images(str(data), [first, second], "val", reporter=reporter)
    assert f"training images of {second}" in reporter.warnings[0]
    none = next(seed for seed, names in common.items() if not names)
    third = str(make_run(data, "third", none))
    choose_images(str(data), [first, third], reporter=reporter)
    assert f"training images of {third}" in reporter.warnings[1]


def test_a_run_that_does_not_say_what_it_held_out_is_warned_of(make_run, data, reporter):
    run = make_run(data)
    (run / "split.csv").unlink()
    images = choose_images("", [str(run)], reporter=reporter)
    assert (len(images.dataset.labels), images.count_train_images(str(run), [0])) == (40, None)
    assert "has no split.csv" in reporter.warnings[0]


def test_images_that_are_new_since_the_run_move_none_of_the_others(
    make_run, data, make_image, reporter
):
    run, held_out = make_run(data), list_held_out(data)
    for number in range(20, 40):
        make_image(24, 18, number).save(data / "cat" / f"{number}.png")
    images = choose_images(str(run), [str(run)], reporter=reporter)
    assert list_names(images.dataset) == held_out
    assert "new since: 20" in reporter.notes[0]
    everything = choose_images(str(run), [str(run)], "all", reporter=reporter)
    assert everything.count_train_images(str(run), range(60)) == 40 - len(held_out)


def test_the_run_of_a_model_is_found_by_its_folder_its_files_and_its_exports(make_run, data):
    run = make_run(data)
    (run / "export" / "timm").mkdir(parents=True)
    (run / "figures").mkdir()
    (run / "model.safetensors").touch()
    for ref in (run, run / "model.safetensors", run / "export" / "timm"):
        found = find_run(str(ref))
        assert found is not None
        assert found.folder.resolve() == run.resolve(), ref
    for ref in ("", "deit_tiny", str(data), str(run / "figures"), str(run / "absent.onnx")):
        assert find_run(ref) is None, ref


def test_images_in_words():
    assert describe_images(1, "a", "val", 0) == "1 image of a (val, held out of training)"
    assert describe_images(350, "a", "all", 280) == "350 images of a (all, 280 of them trained on)"
    assert describe_images(50_000, "imagenet", "val", None) == "50,000 images of imagenet (val)"


def add_images(folder: Path, make_image, count: int, first: int) -> None:
    """Write count images under the first numbers, with other contents than those before."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        make_image(24, 18, first + number).save(folder / f"{number}.png")


def test_images_of_the_same_names_that_a_run_has_not_seen_are_not_its_training_images(
    make_run, image_folder, make_image, tmp_path, reporter
):
    """A test part that is added to the data, and a folder elsewhere that is numbered alike."""
    data = image_folder({"train/cat": 5, "train/dog": 5})
    run = str(make_run(data))
    held_out = list_held_out(data)
    add_images(data / "test" / "cat", make_image, 5, 20)
    add_images(data / "test" / "dog", make_image, 5, 25)
    images = choose_images(str(data), [run], reporter=reporter)
    assert (images.split, list_names(images.dataset)) == ("val", held_out)
    for ref, split, num_train in ((data, "test", 0), (data / "test", "", None)):
        images = choose_images(str(ref), [run], split, reporter=reporter)
        assert len(images.dataset.labels) == 10
        assert images.count_train_images(run, range(10)) == num_train
    assert not any("left out, because" in note for note in reporter.notes)
    everything = choose_images(str(data), [run], "all", reporter=reporter)
    assert everything.count_train_images(run, range(20)) == 10 - len(held_out)


def test_a_digest_tells_images_of_one_size_apart(make_run, tmp_path, reporter):
    """Uncompressed images of one shape all have the same number of bytes."""
    for part, shade in (("ours", 0), ("theirs", 100)):
        for number in range(20):
            path = tmp_path / part / "ab"[number % 2] / f"{number}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (shade + number, 0, 0)).save(path)
    run = str(make_run(tmp_path / "ours"))
    images = choose_images(str(tmp_path / "theirs"), [run], reporter=reporter)
    assert images.count_train_images(run, range(20)) is None
    copy = shutil.copytree(tmp_path / "ours", tmp_path / "copy")
    images = choose_images(str(copy), [run], "all", reporter=reporter)
    held_out = list_held_out(tmp_path / "ours")
    assert images.count_train_images(run, range(20)) == 20 - len(held_out)


SPLIT = {"train/cat": 5, "train/dog": 5, "val/cat": 3, "val/dog": 3}


def test_training_images_that_were_moved_into_val_since_are_counted(
    make_run, image_folder, reporter
):
    data = image_folder(SPLIT)
    run = str(make_run(data))
    for number in (3, 4):
        shutil.move(data / "train" / "cat" / f"{number}.png", data / "val" / "cat")
    images = choose_images(str(data), [run], "val", reporter=reporter)
    assert images.count_train_images(run, range(8)) == 2
    assert "2 of these 8 images are training images" in reporter.warnings[0]
    images = choose_images(str(data), [run], reporter=reporter)
    assert images.count_train_images(run, range(6)) == 0


def test_data_with_its_own_split_is_recognized_as_a_copy_and_a_tar(
    make_run, image_folder, tmp_path, reporter
):
    data = image_folder(SPLIT)
    run = str(make_run(data))
    copy = shutil.copytree(data, tmp_path / "copy")
    tar = tmp_path / "copy.tar"
    with tarfile.open(tar, "w") as archive:
        archive.add(data, "images")
    for ref in (copy, tar):
        reporter.warnings.clear()
        images = choose_images(str(ref), [run], "train", reporter=reporter)
        assert images.count_train_images(run, range(10)) == 10
        assert "10 of these 10 images are training images" in reporter.warnings[0]
        assert choose_images(str(ref), [run], reporter=reporter).count_train_images(run, [0]) == 0


def test_what_an_unlisted_run_was_trained_on_is_not_known(
    make_run, image_folder, tmp_path, reporter
):
    data = image_folder(SPLIT)
    run = make_run(data)
    (run / "split.csv").unlink()
    images = choose_images("", [str(run)], reporter=reporter)
    assert (images.split, images.count_train_images(str(run), range(6))) == ("val", None)
    assert not reporter.warnings
    copy = shutil.copytree(data, tmp_path / "copy")
    images = choose_images(str(copy), [str(run)], "train", reporter=reporter)
    assert images.count_train_images(str(run), range(10)) is None
    assert "such images may be among these" in reporter.warnings[0]


def test_corrected_labels_do_not_hide_a_training_image(make_run, data, tmp_path, reporter):
    rows = [(f"{data}/{c}/{i}.png", c) for c in WHOLE for i in range(20)]
    table = tmp_path / "t.csv"
    table.write_text("path,label\n" + "".join(f"{p},{c}\n" for p, c in rows))
    run = str(make_run(table))
    before = choose_images(str(table), [run], "all", reporter=reporter)
    swapped = {"cat": "dog", "dog": "cat"}
    changed = [(p, swapped[c] if n % 2 else c) for n, (p, c) in enumerate(rows)]
    table.write_text("path,label\n" + "".join(f"{p},{c}\n" for p, c in changed))
    after = choose_images(str(table), [run], "all", reporter=reporter)
    assert before.count_train_images(run, range(40)) == after.count_train_images(run, range(40))


def test_a_pack_of_smaller_images_is_recognized(make_run, image_folder, tmp_path, reporter):
    """It holds the digests of the files that it was made of."""
    data = image_folder(SPLIT)
    run = str(make_run(data))
    pack(str(data), tmp_path / "small", max_size=8, raw=True)
    images = choose_images(str(tmp_path / "small"), [run], "train", reporter=reporter)
    assert images.count_train_images(run, range(10)) == 10


def test_the_images_of_a_runs_table_are_found_where_the_run_found_them(data, tmp_path, reporter):
    table, run = tmp_path / "lists" / "t.csv", tmp_path / "run"
    names = [f"{c}/{n}.png" for c in WHOLE for n in range(20)]
    table.parent.mkdir()
    table.write_text("path,label\n" + "".join(f"/gone/{n},{n[:3]}\n" for n in names))
    run.mkdir()
    (run / "run.toml").write_text(f'data = "{table}"\nimage_folder = "{data}"\n')
    write_split(
        run,
        *open_for_training(Source(str(table), image_folder=str(data)), reporter=SilentReporter()),
    )
    held_out = list_held_out(data)
    for ref in ("", str(run), str(table)):
        assert list_names(choose_images(ref, [str(run)], reporter=reporter).dataset) == held_out
    assert open_train_images(read_run_data(run)) is not None
    with pytest.raises(DataError, match="--images FOLDER"):
        choose_images(str(table), ["deit_tiny"], reporter=reporter)
    images = choose_images(str(table), ["deit_tiny"], image_folder=str(data), reporter=reporter)
    assert len(images.dataset.labels) == 40


@pytest.mark.parametrize(
    ("task", "labels"), [("multilabel", ["", "cat", "dog"]), ("classification", ["cat|dog", "cat"])]
)
def test_a_run_whose_labels_are_read_as_it_was_told_knows_its_images(
    task, labels, data, tmp_path, reporter
):
    """Without the task its table cannot be opened, or has several labels an image."""
    names = [f"{data}/{c}/{n}.png" for c in WHOLE for n in range(20)]
    rows = [f"{name},{labels[n % len(labels)]}\n" for n, name in enumerate(names)]
    table, other, run = tmp_path / "t.csv", tmp_path / "other.csv", tmp_path / "run"
    table.write_text("".join(["path,label\n", *rows]))
    run.mkdir()
    (run / "run.toml").write_text(f'data = "{table}"\ntask = "{task}"\n')
    parts = open_for_training(Source(str(table), task=task), reporter=SilentReporter())
    write_split(run, *parts)
    assert list_names(open_train_images(read_run_data(run))) == list_names(parts[0])
    other.write_text("".join(["path,label\n", *(f"{name},{name[-5]}\n" for name in names[:30])]))
    images = choose_images(str(other), [str(run)], "all", reporter=reporter)
    num_trained = len(list_names(parts[0]) & list_names(images.dataset))
    assert images.count_train_images(str(run), range(30)) == num_trained
    assert f"{num_trained} of these 30 images are training images of {run}" in reporter.warnings[-1]
    for ref in ("", str(table)):
        verified = read_images(images.dataset, Preprocessing(img_size=8), 1)
        calibration = open_calibration_images(str(run), ref, verified, reporter)
        assert list_names(calibration) <= list_names(parts[0])

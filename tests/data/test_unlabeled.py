"""Images without labels follow those with labels, count in no class, and are no validation images."""

from __future__ import annotations

import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data.dataset import FileDataset
from deitctl.data.draws import BalancedDraws
from deitctl.data.fingerprint import fingerprint_split
from deitctl.data.labels import count_images, encode_labels, name_labels
from deitctl.data.run_data import read_run_data, write_split
from deitctl.data.samplers import EpochOrder, TrainBatches, spread_labeled
from deitctl.data.subsets import make_multilabel, renumber
from deitctl.data.training_data import Source, open_folds, open_for_training
from deitctl.data.unlabeled import add_unlabeled, count_unlabeled, find_labeled, select_labeled
from deitctl.errors import DataError
from deitctl.training.class_balance import ClassCounts


def make_dataset(count: int, *, several: bool = False, root: str = "/data/") -> FileDataset:
    labels = np.arange(count) % 3
    if several:
        labels = np.eye(3, dtype=np.bool_)[labels]
        labels[0] = False  # an image that has none of the classes
    return FileDataset(tuple(f"{root}{n}.jpg" for n in range(count)), labels, ("a", "b", "c"), root)


def list_names(dataset) -> list[str]:
    return [dataset.relative_path(n) for n in range(len(dataset.labels))]


@pytest.mark.parametrize("several", [False, True])
def test_images_without_labels_count_in_no_class_and_come_last(several):
    train, others = make_dataset(6, several=several), make_dataset(4, root="/other/")
    both = add_unlabeled(train, others)
    assert both.is_multilabel == several
    assert both.name(6) == "/other/0.jpg"
    assert count_unlabeled(both) == 4
    assert find_labeled(both.labels).tolist() == [True] * 6 + [False] * 4
    assert count_images(both).tolist() == count_images(train).tolist()
    assert name_labels(both) == [*name_labels(train), (), (), (), ()]
    labeled = select_labeled(both)
    assert labeled.labels.dtype == train.labels.dtype
    assert np.array_equal(labeled.labels, train.labels)
    assert select_labeled(train) is train
    renamed = renumber(both, ("c", "b", "a", "d"))
    assert name_labels(renamed) == name_labels(both)
    assert count_unlabeled(renamed) == 4
    val = make_dataset(3, several=several)
    assert fingerprint_split(both, val) != fingerprint_split(train, val)


def test_images_without_labels_have_none_where_an_image_has_several_either():
    part = add_unlabeled(make_dataset(3), make_dataset(1))
    assert make_multilabel(part).labels.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]]
    assert encode_labels(part.labels, 3).tolist()[3] == [False] * 3
    assert make_multilabel(make_dataset(3)).labels.dtype == np.bool_


@pytest.fixture
def data(image_folder, tmp_path) -> Path:
    """Parts with labels, beside a folder of others that has a copy of every validation image."""
    image_folder({"cat": 3, "dog": 3}, root="data/train")
    others = image_folder({"x": 2, "y/deeper": 3}, root="others")
    for file in others.rglob("*.*"):
        file.write_bytes(file.read_bytes() + b"other")  # than the images of the data
    (others / "notes.txt").write_text("no image")
    image_folder({"cat": 2, "dog": 2}, root="data/val")
    for number, file in enumerate(sorted((tmp_path / "data/val").rglob("*.*"))):
        shutil.copy(file, others / f"copy{number}{file.suffix}")
    return tmp_path / "data"


def write_tar(folder: Path) -> Path:
    with tarfile.open(folder.with_suffix(".tar"), "w") as archive:
        archive.add(folder, folder.name)
    return folder.with_suffix(".tar")


def write_list(folder: Path) -> Path:
    paths = [str(p.relative_to(folder.parent)) for p in folder.rglob("*.*") if p.suffix != ".txt"]
    (folder.parent / "list.txt").write_text("\n".join(["path", *sorted(paths)]))
    return folder.parent / "list.txt"


@pytest.mark.parametrize("store", [lambda folder: folder, write_tar, write_list])
def test_a_folder_of_any_depth_a_tar_and_a_list_are_read_without_validation_images(
    data, reporter, store
):
    others = data.parent / "others"
    train, val = open_for_training(
        Source(str(data), unlabelled=str(store(others))), reporter=reporter
    )
    digests = {train.digest(n) for n in range(6, len(train.labels))}
    assert train.labels.tolist()[:6] == [0, 0, 0, 1, 1, 1]
    assert not digests & {val.digest(n) for n in range(len(val.labels))}
    assert count_unlabeled(train) == len(train.labels) - 6 == 5
    assert sum("are equal to validation images" in line for line in reporter.warnings) == 1
    assert sum("the teacher alone labels these" in line for line in reporter.notes) == 1


def test_labels_of_a_data_set_are_left_out(data, reporter):
    path = data.parent / "table.csv"
    files = sorted((data.parent / "others" / "x").iterdir())
    path.write_text("path,label\n" + "".join(f"{file},thing\n" for file in files))
    train, _ = open_for_training(Source(str(data), unlabelled=str(path)), reporter=reporter)
    assert train.class_names == ("cat", "dog")
    assert train.labels.tolist()[6:] == [-1] * count_unlabeled(train)


def test_the_data_itself_an_empty_folder_and_a_missing_one_are_refused(data, reporter):
    empty = data.parent / "empty"
    empty.mkdir()
    for ref, words in ((data, "the data itself"), (empty, "no images"), ("gone", "There is no")):
        with pytest.raises(DataError, match=words):
            open_for_training(Source(str(data), unlabelled=str(ref)), reporter=reporter)
    with pytest.raises(DataError, match="leaves out none"):
        open_for_training(Source(str(data), unlabelled="rest"), reporter=reporter)


def test_training_images_are_left_out_by_file_or_bytes_and_nothing_else_is_refused(
    data, reporter, tmp_path
):
    """The folder of the training images itself, by any name of it, has none that is new."""
    link = tmp_path / "link"
    link.symlink_to(data / "train", target_is_directory=True)
    for ref in (data / "train", link):
        with pytest.raises(DataError, match=r"^6 of 6 images of .* are training images already"):
            open_for_training(Source(str(data), unlabelled=str(ref)), reporter=reporter)
    for file in (data / "train" / "cat").iterdir():
        file.write_bytes(file.read_bytes() + b"train")  # than the images of validation
    shutil.copytree(data / "train" / "cat", data.parent / "others" / "cat")
    others = str(data.parent / "others")
    train, _ = open_for_training(Source(str(data), unlabelled=others), reporter=reporter)
    assert count_unlabeled(train) == 5
    assert sum("are equal to training images" in line for line in reporter.warnings) == 1
    assert "3 of the 12 images" in " ".join(reporter.warnings)


def test_the_rest_are_the_images_that_a_fraction_leaves_out_also_when_a_run_goes_on(
    tmp_path, reporter
):
    source = Source("digits", split_seed=1, fraction=0.1, unlabelled="rest", folds=2, fold=1)
    train, val = open_for_training(source, reporter=reporter)
    every, _ = open_for_training(Source("digits", folds=2, fold=1, split_seed=1), reporter=reporter)
    assert sorted(list_names(train)) == sorted(list_names(every))
    assert count_unlabeled(train) > 8 * len(select_labeled(train).labels)
    folded = open_folds(
        Source("digits", fraction=0.1, unlabelled="rest", folds=2, split_seed=1), reporter=reporter
    )
    assert fingerprint_split(*folded.split(1)) == fingerprint_split(train, val)

    (tmp_path / "run.toml").write_text("data = 'digits'\nfraction = 0.1\nfolds = 2\nfold = 1\n")
    write_split(tmp_path, select_labeled(train), val)
    again = open_for_training(source, reporter=reporter, run=read_run_data(tmp_path))
    assert fingerprint_split(*again) == fingerprint_split(train, val)


def test_every_fold_trains_on_the_images_without_labels(data, reporter):
    others = str(data.parent / "others" / "y")
    source = Source(str(data / "train"), folds=3, unlabelled=others)
    folded = open_folds(source, reporter=reporter)
    for fold in (1, 2, 3):
        train, val = folded.split(fold)
        assert count_unlabeled(train) == 3
        assert count_unlabeled(val) == 0


@pytest.mark.parametrize("folds", [0, 3])
def test_images_of_another_source_with_labels_are_not_trained_on_without_them(
    data, reporter, folds
):
    more = data.parent / "more" / "dog"
    more.mkdir(parents=True)
    for number, file in enumerate(sorted((data.parent / "others" / "x").iterdir())):
        (more / f"{number}{file.suffix}").write_bytes(file.read_bytes())
    source = Source(
        str(data / "train" if folds else data), folds=folds, fold=min(1, folds),
        extra_data=(str(more.parent),), unlabelled=str(data.parent / "others"),
    )  # fmt: skip
    train, _ = open_for_training(source, reporter=reporter)
    digests = [train.digest(n) for n in range(len(train.labels))]
    assert len(set(digests)) == len(digests)
    num_equal = 6 if folds else 2  # the copies of validation images are copies of these too
    assert f"{num_equal} of the 9 images" in " ".join(reporter.warnings)
    assert "are equal to training images" in " ".join(reporter.warnings)
    assert f"8 training images of {source.ref} and {more.parent} have labels" in " ".join(
        reporter.notes
    )
    if folds:
        folded = open_folds(source, reporter=reporter).split(1)[0]
        assert count_unlabeled(folded) == count_unlabeled(train)


@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 9))
def test_every_batch_has_its_share_of_labels_and_mixing_pairs_like_with_like(labeled, others, seed):
    is_labeled = np.arange(labeled + others) < labeled
    order = spread_labeled(np.random.default_rng(seed).permutation(labeled + others), is_labeled)
    assert sorted(order.tolist()) == list(range(labeled + others))
    kinds = is_labeled[order]
    pairs = kinds[: len(kinds) // 2 * 2].reshape(-1, 2)
    assert (pairs[:, 0] != pairs[:, 1]).sum() <= (labeled % 2 and others % 2)
    for start in range(0, len(kinds) - 15, 16):
        share = 16 * labeled / (labeled + others)
        assert abs(kinds[start : start + 16].sum() - share) <= 4  # two pairs


def test_an_epoch_shows_all_and_can_begin_at_any_step():
    is_labeled = np.arange(50) < 7
    whole = list(TrainBatches(50, 8, seed=3, epochs=2, is_labeled=is_labeled))
    assert sorted(key.index for keys in whole[:7] for key in keys) == list(range(50))
    assert (
        list(TrainBatches(50, 8, seed=3, epochs=2, is_labeled=is_labeled, first_step=9))
        == whole[9:]
    )
    thrice = EpochOrder(48, seed=0, epoch=0, repeats=3, is_labeled=np.arange(48) < 24)[:]
    drawn = {key.index for key in thrice}
    assert len(drawn) == 16
    kinds = [
        key.index < 24
        for key in EpochOrder(480, seed=0, epoch=0, repeats=3, is_labeled=np.arange(480) < 24)[:]
    ]
    assert any(kinds[:240])
    assert any(kinds[240:])


@pytest.mark.parametrize(
    "labels", [[0, 1] * 3 + [-1] * 24, [0, 1, 2] * 3 + [-1] * 39, [0] * 9 + [1, -1, -1]]
)
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("is_balanced", [False, True])
def test_the_scale_of_the_labels_makes_up_for_the_share_of_draws_that_have_one(
    labels, repeats, is_balanced
):
    images = FileDataset(
        tuple(f"{n}.jpg" for n in range(len(labels))), np.array(labels), ("a", "b", "c"), "/"
    )
    is_labeled = find_labeled(images.labels)
    keys = (
        key
        for epoch in range(12 if is_balanced else 300)
        for key in EpochOrder(
            len(labels), seed=1, epoch=epoch, repeats=repeats, is_labeled=is_labeled,
            draws=BalancedDraws(images.labels) if is_balanced else None,
        )[:]
    )  # fmt: skip
    share = np.mean([is_labeled[key.index] for key in keys])
    sampling = "balanced" if is_balanced else "shuffle"
    assert share * ClassCounts.of(images).compute_label_scale(sampling) == pytest.approx(
        1, rel=0.05
    )


def test_a_fold_leaves_the_same_copies_out_by_itself_and_among_all(data, reporter):
    """Also those of images that its fraction leaves out."""
    others = data.parent / "others"
    for number, file in enumerate(sorted((data / "train").rglob("*.*"))):
        file.write_bytes(file.read_bytes() + b"train")
        shutil.copy(file, others / f"train{number}{file.suffix}")
    source = Source(str(data / "train"), folds=3, unlabelled=str(others), fraction=0.5)
    folded = open_folds(source, reporter=reporter).split(2)
    alone = open_for_training(replace(source, fold=2), reporter=reporter)
    assert fingerprint_split(*folded) == fingerprint_split(*alone)


def test_balanced_sampling_balances_the_classes_and_shows_the_others_once():
    labels = np.array([0] * 2 + [1] * 18 + [-1] * 60)
    draws = BalancedDraws(labels)
    times = draws.count_before(0, 10, len(labels))
    ones, twos, others = times[:2].sum(), times[2:20].sum(), times[20:]
    assert abs(ones - twos) <= 1
    assert abs(others.mean() - 10) < 0.1
    assert others.max() - others.min() <= 1
    assert "one without a label comes about once" in draws.describe(("a", "b"), 1)

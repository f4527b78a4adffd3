"""A share of the training images: of every class alike, and part of every larger share."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.fraction import take_fraction
from deitctl.data.run_data import read_run_data, write_split
from deitctl.data.training_data import Source, open_folds, open_for_training

FRACTIONS = st.floats(0.01, 1)


def make_dataset(labels: list[int]) -> FileDataset:
    paths = tuple(f"/data/{number}.jpg" for number in range(len(labels)))
    return FileDataset(paths, np.array(labels, np.int64), tuple("abcde"), "/data/")


def name_images(dataset: ImageDataset) -> list[str]:
    return [dataset.name(i) for i in range(len(dataset.labels))]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), FRACTIONS, FRACTIONS)
def test_a_smaller_share_is_part_of_a_larger_one_and_of_every_class_alike(labels, one, other):
    dataset, (small, large) = make_dataset(labels), sorted((one, other))
    less, more = (take_fraction(dataset, fraction, 0) for fraction in (small, large))
    assert set(name_images(less)) <= set(name_images(more))
    for label in set(labels):
        count, taken = labels.count(label), int((less.labels == label).sum())
        assert taken >= 1
        assert abs(taken - small * count) <= 0.5 or taken == 1
    assert name_images(take_fraction(dataset, 1.0, 0)) == name_images(dataset)


def test_another_split_seed_takes_other_images_and_an_added_image_moves_no_other():
    labels = [0] * 100 + [1] * 50
    chosen = name_images(take_fraction(make_dataset(labels), 0.2, 0))
    assert len(chosen) == 30
    assert set(chosen) != set(name_images(take_fraction(make_dataset(labels), 0.2, 1)))
    larger = name_images(take_fraction(make_dataset([*labels, 0, 1]), 0.2, 0))
    assert len(set(chosen) - set(larger)) <= 2


def test_of_several_labels_the_rarest_class_keeps_images():
    labels = np.zeros((40, 2), np.bool_)
    labels[:30, 0], labels[:4, 1] = True, True
    dataset = FileDataset(tuple(f"{n}.jpg" for n in range(40)), labels, ("common", "rare"))
    part = take_fraction(dataset, 0.5, 0)
    assert part.labels.sum(axis=0).tolist() == [15, 2]
    assert len(part.labels) == 20


def test_only_training_images_are_left_out_and_a_run_finds_its_own_again(tmp_path, reporter):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(20):
            image = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
            image.save(tmp_path / "data" / name / f"{number}.png")
    source = Source(str(tmp_path / "data"))
    train, val = open_for_training(source, reporter=reporter)
    part = Source(source.ref, fraction=0.25)
    reporter.notes.clear()
    few, same = open_for_training(part, reporter=reporter)
    assert name_images(same) == name_images(val)
    assert len(few.labels) == sum(round(0.25 * n) for n in np.bincount(train.labels))
    lines = [line for line in reporter.notes if "fraction" in line]
    assert len(lines) == 1
    assert f"{len(few.labels)} of {len(train.labels)} training images are used" in lines[0]

    (tmp_path / "run.toml").write_text(f"data = {str(tmp_path / 'data')!r}\nfraction = 0.25\n")
    write_split(tmp_path, few, val)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "a" / "new.png")
    reporter.notes.clear()
    again, _ = open_for_training(part, reporter=reporter, run=read_run_data(tmp_path))
    assert name_images(again) == name_images(few)
    assert not reporter.notes  # of images that are new: most are, without being so


def test_each_fold_trains_on_a_share_and_holds_out_all(reporter):
    folded = open_folds(Source("digits", folds=2, fraction=0.1), reporter=reporter)
    train, val = folded.split(1)
    assert len(val.labels) > 700
    assert 70 <= len(train.labels) <= 76
    alone, _ = open_for_training(Source("digits", folds=2, fold=1, fraction=0.1), reporter=reporter)
    assert name_images(alone) == name_images(train)

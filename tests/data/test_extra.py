"""Sources beside the data add training images of its classes, and change nothing of its split."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitctl.data.dataset import ImageDataset
from deitctl.data.draws import choose_draws, count_draws
from deitctl.data.extra import add_extra
from deitctl.data.open import open_dataset
from deitctl.data.readers.digits import ArrayDataset
from deitctl.data.run_data import read_run_data, write_split
from deitctl.data.run_match import match_run
from deitctl.data.subsets import JoinedDataset, select_own
from deitctl.data.training_data import Source, open_folds, open_for_training
from deitctl.data.unlabeled import find_copies
from deitctl.errors import DataError
from deitctl.events import SilentReporter
from deitctl.training.class_balance import ClassCounts


def write_images(root: Path, classes: dict[str, int], seed: int) -> None:
    """Write images of noise, of which each seed has others."""
    random = np.random.default_rng(seed)
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = random.integers(0, 255, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:03d}.png")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    root = tmp_path_factory.mktemp("extra")
    write_images(root / "own", {"cat": 12, "dog": 12}, 0)
    write_images(root / "more", {"Dog": 3, "dog": 4, "cat": 2, "elk": 2}, 1)
    write_images(root / "other" / "train", {"cat": 5, "dog": 1}, 2)
    write_images(root / "other" / "val", {"cat": 3, "dog": 3}, 3)
    return str(root / "own"), str(root / "more"), str(root / "other")


def names_of(dataset: ImageDataset) -> list[str]:
    return [dataset.name(index) for index in range(len(dataset.labels))]


def test_images_of_sources_follow_the_datas_whose_split_stays(folders, reporter):
    own, more, other = folders
    train, val = open_for_training(Source(own), reporter=SilentReporter())
    source = Source(own, extra_data=(more, other), extra_weight=(2.0, 0.5))
    joined, same_val = open_for_training(source, reporter=reporter)
    assert names_of(same_val) == names_of(val)
    assert names_of(joined)[: len(train.labels)] == names_of(train) == names_of(select_own(joined))
    assert joined.class_names == ("cat", "dog")
    added = list(zip(names_of(joined), joined.labels.tolist(), strict=True))[len(train.labels) :]
    assert Counter((Path(name).parents[0].name, label) for name, label in added) == {
        ("dog", 1): 4 + 1,
        ("cat", 0): 2 + 5,
    }
    assert not any("/val/" in name for name, _ in added)
    assert joined.draw_weights[len(train.labels) :].tolist() == [2.0] * 6 + [0.5] * 6
    assert (
        f"6 images of {more} are trained on too, each 2 times an epoch; none of them is validated on."
        in (reporter.notes)
    )
    assert reporter.warnings == [
        f"5 of the 11 images of {more} are left out: the data has no class 'Dog', 'elk'."
    ]


def test_copies_of_validation_images_are_left_out(folders, tmp_path, reporter):
    own, _, _ = folders
    _, val = open_for_training(Source(own), reporter=SilentReporter())
    write_images(tmp_path, {"dog": 2}, 7)
    copied = tmp_path / "dog" / "again.png"
    copied.write_bytes(val.read_bytes(0))
    train, _ = open_for_training(Source(own, extra_data=(str(tmp_path),)), reporter=reporter)
    assert str(copied) not in names_of(train)
    assert int(train.is_extra.sum()) == 2
    assert reporter.warnings == [
        f"1 of the 3 images of {tmp_path} are equal to validation images, and are left out: {copied} is the first."
    ]


@dataclass(frozen=True)
class Packed(ArrayDataset):
    """Images that packing encoded anew: of some the digests of their files are recorded."""

    recorded: tuple[int, ...] = ()

    @property
    def recorded_digests(self) -> np.ndarray:
        return np.array(self.recorded, np.uint64)

    def digest(self, index: int) -> int:
        return self.recorded[index] or super().digest(index)


@pytest.mark.parametrize("is_packed", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("limit", [2**32, 100])
def test_copies_are_found_beside_images_that_were_encoded_anew(is_packed, limit, monkeypatch):
    monkeypatch.setattr("deitctl.data.unlabeled.MAX_COMPARED", limit)
    whole, small = (np.zeros((n, size, size), np.uint8) for n, size in ((6, 8), (4, 4)))
    whole += np.arange(6, dtype=np.uint8)[:, None, None]
    files = ArrayDataset(whole, np.zeros(6, np.int64), ("a",), "files")
    digests = [files.digest(n) for n in (5, 3, 1)]
    packed = [
        Packed(small, np.zeros(4, np.int64), ("a",), "packed", recorded=(*its_digests, 0))
        for its_digests in (digests, [*digests[:1], 7, *digests[2:]])
    ]
    images, others = (
        side if its_packed else files for side, its_packed in zip(packed, is_packed, strict=True)
    )
    joined = JoinedDataset((others,), others.labels, ("a",), np.array([len(others.labels)]))
    count = len(images.labels)
    copies, are_all = find_copies(images, range(count), images.read_sizes().tolist(), joined)
    expected = {(True, False): [0, 1, 2], (False, True): [1, 5], (True, True): [0, 2, 3]}[is_packed]
    assert are_all == (limit > 100 or is_packed == (True, True))
    assert copies == (expected if are_all else [])


def test_a_source_is_read_for_the_task_of_the_data(folders, tmp_path):
    """One of its images lies in two class folders, too few to be taken for several labels by themselves."""
    write_images(tmp_path, {"cat": 24, "dog": 1}, 8)
    shutil.copy(tmp_path / "cat" / "003.png", tmp_path / "dog" / "003.png")
    source = Source(folders[0], task="multilabel", extra_data=(str(tmp_path),))
    train, _ = open_for_training(source, reporter=SilentReporter())
    assert sorted(train.labels.sum(axis=1)[train.is_extra].tolist()) == [1] * 24 + [2]


def test_a_source_that_adds_nothing_is_refused(folders, tmp_path):
    write_images(tmp_path, {"elk": 3}, 0)
    source = Source(folders[0], extra_data=(str(tmp_path),))
    with pytest.raises(
        DataError, match="has no image of a class of the data: its classes are 'elk'"
    ):
        open_for_training(source, reporter=SilentReporter())
    with pytest.raises(DataError, match="is the data itself"):
        open_for_training(Source(folders[0], extra_data=(folders[0],)), reporter=SilentReporter())


def test_a_fraction_and_folds_are_of_the_data_alone(folders, reporter):
    own, more, _ = folders
    train, val = open_for_training(
        Source(own, fraction=0.5, extra_data=(more,)), reporter=SilentReporter()
    )
    alone, _ = open_for_training(Source(own, fraction=0.5), reporter=SilentReporter())
    assert names_of(select_own(train)) == names_of(alone)
    assert int(train.is_extra.sum()) == 6
    folded = open_folds(
        Source(own, folds=3, extra_data=(more,), extra_weight=(2.0,)), reporter=reporter
    )
    plain = open_folds(Source(own, folds=3), reporter=SilentReporter())
    for fold in (1, 2, 3):
        train, val = folded.split(fold)
        alone, alone_val = plain.split(fold)
        assert names_of(select_own(train)) == names_of(alone)
        assert names_of(val) == names_of(alone_val)
        assert sorted(set(train.draw_weights.tolist())) == [1, 2]


def test_a_run_of_sources_is_known_again_by_its_own_images(folders, tmp_path):
    """Its extra images are no images of the data, and are known to be trained on."""
    own, more, other = folders
    source = Source(own, extra_data=(more, other))
    train, val = open_for_training(source, reporter=SilentReporter())
    (tmp_path / "run.toml").write_text(f'data = "{own}"\n')
    write_split(tmp_path, train, val)
    run = read_run_data(tmp_path)
    assert Counter(run.rows.parts) == {"all": 24, "extra": 12}
    again, same_val = open_for_training(source, reporter=SilentReporter(), run=run)
    assert names_of(again) == names_of(train)
    assert names_of(same_val) == names_of(val)
    parts = open_dataset(own, SilentReporter()).list_parts()
    match = match_run(own, parts, run)
    assert match.is_own
    assert int(match.train_masks[""].sum()) == len(train.labels) - 12
    parts = open_dataset(other, SilentReporter()).list_parts()
    match = match_run(other, parts, run)
    assert not match.is_own
    assert match.train_masks["train"].all()
    assert not match.train_masks["val"].any()


def test_what_is_written_of_weights_is_what_is_drawn(folders, reporter):
    """Of six images at a tenth one comes each epoch: also where two sources have them."""
    own, more, other = folders
    for extra, line in (((more,), "0.167"), ((more, other), "0.0833")):
        source = Source(own, extra_data=extra, extra_weight=(0.1,) * len(extra))
        train, _ = open_for_training(source, reporter=reporter)
        assert f"{more} are trained on too, each {line} times an epoch" in " ".join(reporter.notes)
        drawn = choose_draws(train, "shuffle").draw(0, 1, count_draws(train))[0]
        assert train.is_extra[drawn].sum() == 1
        assert ClassCounts.of(train).counts.sum() == pytest.approx(count_draws(train))


def test_classes_count_as_often_as_their_images_are_drawn(folders):
    own, more, _ = folders
    source = Source(own, extra_data=(more,), extra_weight=(2.5,))
    train, _ = open_for_training(source, reporter=SilentReporter())
    own_counts = np.bincount(select_own(train).labels)
    counts = ClassCounts.of(train)
    assert counts.counts.tolist() == [own_counts[0] + 2 * 2.5, own_counts[1] + 4 * 2.5]
    assert counts.num_images == own_counts.sum() + 15
    plain = add_extra(select_own(train), [select_own(train)], [])
    assert ClassCounts.of(plain).counts.tolist() == (2 * own_counts).tolist()

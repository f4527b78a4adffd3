"""The index of shards gives what their headers give, and is made anew when anything that it rests on changes."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deitctl.data import index
from deitctl.data.open import open_dataset
from deitctl.data.readers import shard_contents, tar
from deitctl.data.readers.unlabeled import open_unlabeled
from tests.data.readers.tars import jpeg, sample, write_tar


@pytest.fixture(autouse=True)
def _few_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MIN_IMAGES", 1)
    monkeypatch.setattr(index, "MIN_AGE_NS", 10_000_000)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often shards were scanned since the last call."""
    counted = [0]
    real = tar.scan_shards

    def scan(*args):
        counted[0] += 1
        return real(*args)

    monkeypatch.setattr(tar, "scan_shards", scan)

    def take() -> int:
        number, counted[0] = counted[0], 0
        return number

    return take


@pytest.fixture
def shards(tmp_path) -> Path:
    for split in ("train", "val"):
        for n in range(2):
            members = {**sample(f"{n}a", n, cls=0), **sample(f"{n}b", 9 + n, cls=1), "x.cls": b"1"}
            write_tar(tmp_path / "x" / f"{split}-{n}.tar", members)
    time.sleep(0.03)
    return tmp_path / "x"


def content(data) -> list[object]:
    return [
        (
            [part.relative_path(n) for n in range(len(part.labels))],
            [part.read_bytes(n) for n in range(len(part.labels))],
            part.labels.tolist(),
            part.class_names,
        )
        for part in (data.train, data.val)
    ]


def test_the_second_start_reads_no_header_and_says_the_same(shards, reporter, scans):
    first = open_dataset(str(shards), reporter)
    assert scans() == 1
    said, reporter.warnings[:] = reporter.warnings[:], []
    second = open_dataset(str(shards), reporter)
    assert scans() == 0
    assert content(second) == content(first)
    assert reporter.warnings == said
    assert "4 without an image" in said[0]


CHANGES: dict[str, Callable[[Path], object]] = {
    "a shard": lambda folder: write_tar(folder / "val-0.tar", sample("z", 50, cls=0)),
    "a shard more": lambda folder: write_tar(folder / "val-2.tar", sample("z", 50, cls=0)),
    "a list of classes": lambda folder: (folder / "classes.txt").write_text("ant\nbee\n"),
    "a shard less": lambda folder: (folder / "train-1.tar").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_it_rests_on_is_noticed(change, shards, reporter, scans):
    before = content(open_dataset(str(shards), reporter))
    CHANGES[change](shards)
    time.sleep(0.03)
    after = open_dataset(str(shards), reporter)
    assert scans() == 2
    assert content(after) != before
    assert content(open_dataset(str(shards), reporter)) == content(after)
    assert scans() == 0


def test_shards_of_several_labels_and_a_part_of_the_folder_have_indexes_of_their_own(
    tmp_path, reporter, scans
):
    for n in range(3):
        members = sample(f"{n}", n, json={"label": ["a", "b"][: n + 1] if n < 2 else []})
        write_tar(tmp_path / f"x-{n}.tar", members)
    time.sleep(0.03)
    for _ in range(2):
        whole = open_dataset(str(tmp_path), reporter).unsplit
        part = open_dataset(f"{tmp_path}/x-{{0..1}}.tar", reporter).unsplit
        assert whole.labels.tolist() == [[True, False], [True, True], [False, False]]
        assert part.labels.tolist() == [[True, False], [True, True]]
    assert scans() == 2


def test_loaders_get_the_place_of_the_index_and_not_its_content(shards, reporter, scans):
    open_dataset(str(shards), reporter)
    data = open_dataset(str(shards), reporter)
    packed = pickle.dumps(data.train)
    assert b"0a.jpg" not in packed
    again = pickle.loads(packed)
    assert again.read_bytes(3) == data.train.read_bytes(3)
    assert again.name(3) == f"{shards}/train-1.tar:1b.jpg"


def test_many_shards_are_scanned_in_processes_with_the_same_result(tmp_path, reporter, monkeypatch):
    for n in range(20):
        write_tar(tmp_path / "x" / f"x-{n:02}.tar", sample(f"{n}", n, cls=n % 3))
    results = []
    for cores in (1, 2):
        monkeypatch.setattr(shard_contents, "count_cores", lambda cores=cores: cores)
        monkeypatch.setenv("DEITCTL_CACHE", str(tmp_path / f"cache-{cores}"))
        data = open_dataset(str(tmp_path / "x"), reporter).unsplit
        results.append([data.relative_path(n) for n in range(20)] + data.labels.tolist())
    assert results[0] == results[1]


def test_shards_without_labels_have_names_of_their_own_and_an_index(shards, reporter, scans):
    for n in range(2):
        write_tar(shards / f"train-{n}.tar", {"0.jpg": jpeg(n), "a.jpg": jpeg(5), "0.mp4": b"x"})
    time.sleep(0.03)
    (shards / "val-0.tar").unlink()
    (shards / "val-1.tar").unlink()
    for is_first in (True, False):
        images = open_unlabeled(str(shards), lambda ref: pytest.fail(ref), reporter)
        names = [images.relative_path(n) for n in range(4)]
        assert names == ["train-0/0.jpg", "a.jpg", "train-1/0.jpg", "train-1/a.jpg"]
        assert images.labels.tolist() == [-1] * 4
        assert images.read_bytes(2) == jpeg(1)
        assert scans() == is_first
    assert any("2 files are not read: 2 .mp4" in warning for warning in reporter.warnings)


def test_the_index_of_a_tar_is_that_of_its_split(tmp_path, reporter, scans):
    write_tar(tmp_path / "x-0.tar", {**sample("a", 1, cls=0), **sample("b", 2, cls=1)})
    time.sleep(0.03)
    assert open_dataset(str(tmp_path / "x-0.tar"), reporter).unsplit is not None
    info = {"splits": {"val": {"filenames": ["x-0.tar"], "shard_lengths": [2]}}}
    (tmp_path / "_info.json").write_text(json.dumps(info))
    assert open_dataset(str(tmp_path), reporter).val is not None
    assert scans() == 2

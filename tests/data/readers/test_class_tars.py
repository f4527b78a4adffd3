"""A tar of each class, a tar of such tars and a folder of the same images are the same data."""

from __future__ import annotations

import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest

from deitctl.data import shard_files
from deitctl.data.fingerprint import fingerprint_dataset
from deitctl.data.open import open_dataset
from deitctl.data.readers import shard_contents
from deitctl.data.readers.unlabeled import open_unlabeled
from deitctl.errors import DataChanged, DataError
from deitctl.events import SilentReporter
from tests.data.readers.tars import jpeg, sample, write_tar

CLASSES = ("n01440764", "n01443537", "n01484850")


def images(prefix: str = "", count: int = 3) -> dict[str, bytes]:
    return {f"{prefix}{n}.JPEG": jpeg(n * 20 + len(prefix)) for n in range(count)}


@pytest.fixture
def folder(tmp_path) -> Path:
    for at, name in enumerate(CLASSES):
        for file, data in images(f"{name}_" + "x" * at).items():
            (tmp_path / "folder" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "folder" / name / file).write_bytes(data)
    return tmp_path / "folder"


@pytest.fixture
def class_tars(folder) -> Path:
    for own in folder.iterdir():
        files = {file.name: file.read_bytes() for file in own.iterdir()}
        write_tar(folder.parent / "tars" / f"{own.name}.tar", files)
    return folder.parent / "tars"


def content(dataset) -> tuple[object, ...]:
    indices = range(len(dataset.labels))
    return (
        [dataset.relative_path(n) for n in indices],
        [dataset.read_bytes(n) for n in indices],
        dataset.labels.tolist(),
        dataset.class_names,
        fingerprint_dataset(dataset, SilentReporter()),
    )


def test_folder_class_tars_tar_of_tars_and_shards_are_the_same_data(folder, class_tars, tmp_path):
    expected = content(open_dataset(str(folder), SilentReporter()).unsplit)
    inner = {path.name: path.read_bytes() for path in class_tars.iterdir()}
    files = sorted(file for file in folder.rglob("*.JPEG"))
    members = {}
    for n, file in enumerate(files):
        label = CLASSES.index(file.parent.name)
        name = f"{file.parent.name}/{file.name}"
        members |= {f"{n:04}.jpg": file.read_bytes(), f"{n:04}.cls": b"%d" % label}
        members[f"{n:04}.json"] = b'{"filename": "%s"}' % name.encode()
    listed = list(members.items())
    for n in range(3):
        write_tar(tmp_path / "wds" / f"x-{n}.tar", dict(listed[n * 9 : n * 9 + 9]))
    for ref in (class_tars, write_tar(tmp_path / "all.tar", inner), tmp_path / "wds"):
        assert content(open_dataset(str(ref), SilentReporter()).unsplit) == expected


def test_a_val_tar_without_labels_is_left_out_in_one_line(class_tars, tmp_path, reporter):
    inner = {path.name: path.read_bytes() for path in class_tars.iterdir()}
    write_tar(tmp_path / "in" / "ILSVRC2012_img_train.tar", inner)
    write_tar(tmp_path / "in" / "ILSVRC2012_img_val.tar", images("ILSVRC2012_val_"))
    data = open_dataset(str(tmp_path / "in"), reporter)
    assert data.train.class_names == CLASSES
    assert data.val is None
    assert "the val images have no labels, and are left out" in reporter.notes[0]
    with pytest.raises(DataError, match="no class folders"):
        open_dataset(str(tmp_path / "in" / "ILSVRC2012_img_val.tar"), reporter)


def test_shards_of_images_without_labels_are_refused_and_read_as_unlabeled(tmp_path, reporter):
    for n in range(3):
        write_tar(tmp_path / f"x-{n:06}.tar", images(f"{n}_"))
    pattern = f"{tmp_path}/x-{{000000..000002}}.tar"
    with pytest.raises(DataError, match=r"images but no labels: .*--unlabelled"):
        open_dataset(pattern, reporter)

    def never(ref: str):
        raise AssertionError(ref)

    for ref in (pattern, str(tmp_path)):
        unlabeled = open_unlabeled(ref, never, reporter)
        assert len(unlabeled.labels) == 9
        assert unlabeled.read(8).size == (24, 18)


def test_class_folders_in_shards_are_one_data_set(tmp_path, reporter):
    write_tar(tmp_path / "part-a.tar", {f"ant/{k}": v for k, v in images("a").items()})
    write_tar(tmp_path / "part-b.tar", {f"bee/{k}": v for k, v in images("b").items()})
    dataset = open_dataset(str(tmp_path), reporter).unsplit
    assert dataset.class_names == ("ant", "bee")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_more_shards_than_a_process_may_open_are_read(tmp_path, monkeypatch):
    for n in range(40):
        write_tar(tmp_path / "x" / f"x-{n:02}.tar", sample(f"{n}", n, cls=n % 2))
    monkeypatch.setattr(
        shard_files, "open_shard", shard_files.lru_cache(8)(shard_files.open_stored)
    )
    monkeypatch.setattr(shard_contents, "count_cores", lambda: 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    gaps = highest + 1 - len(os.listdir("/proc/self/fd"))
    fillers = [os.open(os.devnull, os.O_RDONLY) for _ in range(gaps)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 15, hard))
    try:
        dataset = open_dataset(str(tmp_path / "x"), SilentReporter()).unsplit
        order = np.random.default_rng(0).permutation(40).tolist()
        assert all(dataset.read(n).size == (24, 18) for n in order)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
    again = pickle.loads(pickle.dumps(dataset))
    assert [again.read_bytes(n) for n in order] == [dataset.read_bytes(n) for n in order]


def test_a_shard_that_was_replaced_is_noticed_in_another_process(class_tars):
    dataset = open_dataset(str(class_tars), SilentReporter()).unsplit
    write_tar(class_tars / "new", images("other"))
    (class_tars / "new").rename(class_tars / f"{CLASSES[0]}.tar")
    assert dataset.read(0).size == (24, 18)  # the file that was opened
    shard_files.get_opener.cache_clear()
    with pytest.raises(DataChanged, match=r"n01440764.tar was replaced while in use"):
        dataset.read(0)

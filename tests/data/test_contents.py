"""What a start reads of files, each once: sizes in threads where that takes long, hashes of what was read."""

from __future__ import annotations

import hashlib
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deitctl.data.contents import NUM_AT_A_TIME, Contents, compute_digest
from deitctl.data.dataset import FileDataset, ImageDataset
from deitctl.data.subsets import join, select
from deitctl.errors import DataError


class Disk:
    """Counts the looks at sizes, each of which takes some time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.looks = seconds, Counter[int]()
        self.threads: set[int] = set()

    def __call__(self, index: int) -> int:
        self.looks[index] += 1
        self.threads.add(threading.get_ident())
        if self.seconds:
            time.sleep(self.seconds)
        return 10 * index


@pytest.mark.parametrize(("seconds", "is_slow"), [(0.0, False), (4e-4, True)])
def test_sizes_are_looked_up_once_and_in_threads_where_that_takes_long(
    seconds: float, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_slow:  # also where other programs take the core
        monkeypatch.setattr(time, "thread_time", time.perf_counter)
    count, disk = 8 * NUM_AT_A_TIME + 1, Disk(seconds)
    contents = Contents(count)
    assert contents.find_size(3, disk) == 30
    some = np.array([5, 3, 700])
    assert contents.find_sizes(some, disk).tolist() == [50, 30, 7000]
    every = np.arange(count)
    assert contents.find_sizes(every, disk).tolist() == (10 * every).tolist()
    assert contents.find_sizes(every, disk).tolist() == (10 * every).tolist()
    assert disk.looks == dict.fromkeys(range(count), 1)
    assert (len(disk.threads) > 2) is is_slow


@pytest.fixture
def files(image_folder: Callable[..., Path]) -> FileDataset:
    paths = sorted(map(str, image_folder({"a": 3, "b": 2}).rglob("*.png")))
    return FileDataset(tuple(paths), np.array([0, 0, 0, 1, 1]), ("a", "b"))


def list_views(files: FileDataset) -> list[ImageDataset]:
    """The same five images, each a way to name them."""
    return [
        files,
        files.with_bands(0),
        select(files, range(5)),
        join([files]),
        files.with_value_range(None),
    ]


def test_all_views_of_images_share_what_was_read(
    files: FileDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, read = Counter[int](), FileDataset.read_bytes

    def count_reads(self: FileDataset, index: int) -> bytes:
        reads[index] += 1
        return read(self, index)

    monkeypatch.setattr(FileDataset, "read_bytes", count_reads)
    data = [Path(path).read_bytes() for path in files.paths]
    select(files, [4]).expect_fingerprints()
    files.open_hashed(4)
    for view in list_views(files):
        assert view.read_sizes().tolist() == [len(part) for part in data]
        assert [view.digest(n) for n in range(5)] == [compute_digest(part) for part in data]
        assert [view.fingerprint(n).is_deep for n in range(5)] == [False] * 5
    assert reads == dict.fromkeys(range(5), 1)


def test_fingerprints_that_nobody_expects_are_taken_when_they_are_needed(
    files: FileDataset,
) -> None:
    data = [Path(path).read_bytes() for path in files.paths]
    files.open_hashed(0)
    files.digest(1)
    expected = [hashlib.sha256(part).digest() for part in data]
    assert [files.fingerprint(n).sha256 for n in range(5)] == expected


def test_joined_images_have_the_sizes_of_their_parts(files: FileDataset) -> None:
    both = join([select(files, [4, 0]), files])
    sizes = files.read_sizes()
    assert both.read_sizes().tolist() == sizes[[4, 0, 0, 1, 2, 3, 4]].tolist()
    assert both.read_sizes(np.array([6, 1])).tolist() == sizes[[4, 0]].tolist()
    assert both.fingerprint(0) == files.fingerprint(4)


def test_what_was_read_stays_in_the_process(files: FileDataset) -> None:
    before = len(pickle.dumps(files))
    files.read_sizes()
    files.digest(0)
    assert len(pickle.dumps(files)) == before
    copy = pickle.loads(pickle.dumps(files))
    Path(files.paths[0]).unlink()
    assert copy.num_bytes(0) == 0
    assert files.num_bytes(0) > 0


def test_an_image_that_cannot_be_read_has_no_hashes_and_may_have_some_later(
    files: FileDataset,
) -> None:
    data = Path(files.paths[0]).read_bytes()
    Path(files.paths[0]).unlink()
    with pytest.raises(DataError):
        files.fingerprint(0)
    assert files.digest(0) == 0
    Path(files.paths[0]).write_bytes(data)
    assert files.digest(0) == compute_digest(data)

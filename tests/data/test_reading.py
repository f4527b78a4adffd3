"""A failed read says nothing about the image: it is tried again where that can help, and never waited for often."""

from __future__ import annotations

import errno
import os
import threading
import time

import numpy as np
import pytest

from deitctl.data import reading
from deitctl.data.dataset import FileDataset
from deitctl.data.decode import read_bytes
from deitctl.data.reading import raise_read_error, read_patiently
from deitctl.errors import DataError, ReadError

REAL_PAUSES_S = reading.PAUSES_S


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """Six pauses of 1 ms, and no outage so far."""
    monkeypatch.setattr(reading, "PAUSES_S", (0.001,) * 6)
    monkeypatch.setattr(reading, "_patient_from_s", 0.0)


class Disk:
    """Fails some times, then reads."""

    def __init__(self, number: int, failures: int) -> None:
        self.number, self.failures, self.calls = number, failures, 0

    def __call__(self) -> bytes:
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError(self.number, os.strerror(self.number))
        return b"bytes"


def test_the_pauses_are_six_seconds_in_all():
    assert sum(REAL_PAUSES_S) == pytest.approx(6)


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EAGAIN", "EHOSTDOWN"])
def test_a_disk_that_is_away_for_a_moment_is_waited_for(name):
    disk = Disk(getattr(errno, name), failures=6)
    assert read_patiently(disk, "x") == b"bytes"
    assert disk.calls == 7


def test_an_outage_is_waited_for_once_a_minute(monkeypatch):
    gone = Disk(errno.EIO, failures=1000)
    with pytest.raises(OSError, match="Input/output error"):
        read_patiently(gone, "x")
    assert gone.calls == 7
    for _ in range(100):
        with pytest.raises(OSError, match="Input/output error"):
            read_patiently(gone, "x")
    assert gone.calls == 107
    monkeypatch.setattr(reading, "_patient_from_s", time.monotonic())
    assert read_patiently(Disk(errno.EIO, failures=2), "x") == b"bytes"


def test_a_missing_file_in_its_folder_is_not_waited_for(tmp_path):
    (tmp_path / "other").touch()
    missing = Disk(errno.ENOENT, failures=9)
    with pytest.raises(FileNotFoundError):
        read_patiently(missing, str(tmp_path / "x.jpg"), was_there=True)
    assert missing.calls == 1


@pytest.mark.parametrize("folder", ["gone", "empty"])
def test_a_listed_file_whose_folder_is_away_is_waited_for(folder, tmp_path):
    if folder == "empty":
        (tmp_path / folder).mkdir()
    path = str(tmp_path / folder / "x.jpg")
    missing = Disk(errno.ENOENT, failures=2)
    assert read_patiently(missing, path, was_there=True) == b"bytes"
    with pytest.raises(FileNotFoundError):  # a name that somebody typed may be wrong
        read_patiently(Disk(errno.ENOENT, failures=1), path)


def test_a_data_set_outlasts_a_mount_that_is_away(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PAUSES_S", (0.05,) * 20)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.jpg").write_bytes(b"bytes")
    dataset = FileDataset((str(tmp_path / "a/x.jpg"),), np.zeros(1, np.int64), ("a",))
    (tmp_path / "a").rename(tmp_path / "away")
    timer = threading.Timer(0.2, lambda: (tmp_path / "away").rename(tmp_path / "a"))
    timer.start()
    assert dataset.read_bytes(0) == b"bytes"
    timer.join()


def test_what_cannot_be_read_now_is_told_from_what_is_nothing_to_read(tmp_path):
    with pytest.raises(ReadError, match=r"no\.png cannot be read: No such file or directory\."):
        read_bytes(tmp_path / "no.png")
    with pytest.raises(ReadError, match=r"^x cannot be read: Input/output error\.$"):
        raise_read_error("x", OSError(errno.EIO, "Input/output error"))
    for path in (tmp_path, tmp_path / "a\0.png"):
        with pytest.raises(DataError) as caught:
            read_bytes(path)
        assert not isinstance(caught.value, ReadError)


def test_want_of_memory_and_descriptors_is_this_process_own():
    with pytest.raises(MemoryError, match="x: there is not enough memory to read it"):
        raise_read_error("x", OSError(errno.ENOMEM, "Cannot allocate memory"))
    for number in (errno.EMFILE, errno.ENFILE):
        with pytest.raises(OSError, match="many open files") as caught:
            raise_read_error("x", OSError(number, os.strerror(number)))
        assert caught.value.errno == number

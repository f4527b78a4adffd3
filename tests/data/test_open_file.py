"""Files that stay open are read and written at an offset, and what changes them is noticed."""

from __future__ import annotations

import errno
import os
import pickle

import pytest

from deitctl.data import open_file
from deitctl.data.open_file import OpenFile, read_at, share_open_files, write_at
from deitctl.errors import DataChanged


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.pack"
    path.write_bytes(bytes(range(200)))
    return path


def test_bytes_at_an_offset_up_to_the_end(path):
    file = OpenFile(str(path))
    assert file.read(10, 3) == bytes([10, 11, 12])
    assert file.read(198, 9) == bytes([198, 199])
    assert file.read(500, 9) == b""


CHANGES = {
    "cut": lambda path: os.truncate(path, 50),
    "cut to nothing": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "written over": lambda path: path.write_bytes(bytes(200)),
    "touched": lambda path: os.utime(path, ns=(1, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_changed_in_place_is_refused_at_the_next_read(change, path):
    file = OpenFile(str(path))
    CHANGES[change](path)
    with pytest.raises(DataChanged, match=r"x\.pack was changed while in use\. .*rename"):
        file.read(10, 3)


def test_a_file_that_is_replaced_by_a_rename_is_read_on(path, tmp_path):
    """As by `mv`; another process, which opens the file by its name, refuses the new one."""
    file = OpenFile(str(path))
    sent = pickle.dumps(file)
    (tmp_path / "new").write_bytes(b"new")
    os.replace(tmp_path / "new", path)
    assert file.read(10, 3) == bytes([10, 11, 12])
    with pytest.raises(DataChanged, match=r"x\.pack was replaced while in use"):
        pickle.loads(sent)


def test_a_file_that_is_cut_during_the_read_is_refused(path, monkeypatch):
    file, really = OpenFile(str(path)), read_at

    def cut_first(handle, offset, size):
        os.truncate(path, 11)
        return really(handle, offset, size)

    monkeypatch.setattr(open_file, "read_at", cut_first)
    with pytest.raises(DataChanged, match="was changed while in use"):
        file.read(10, 3)


def test_a_stale_handle_is_opened_anew(path, monkeypatch):
    """As after a restart of an NFS server; the read that failed is the caller's to repeat."""
    file, really, failures = OpenFile(str(path)), read_at, [errno.ESTALE]

    def fail_once(handle, offset, size):
        if failures:
            raise OSError(failures.pop(), "Stale file handle")
        return really(handle, offset, size)

    monkeypatch.setattr(open_file, "read_at", fail_once)
    with pytest.raises(OSError, match="Stale"):
        file.read(10, 3)
    assert file.read(10, 3) == bytes([10, 11, 12])


def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        OpenFile(str(tmp_path / "pipe"))


def test_what_is_written_at_an_offset_is_read_there(path):
    handle = os.open(path, os.O_RDWR)
    try:
        write_at(handle, 100, b"abc")
        assert read_at(handle, 99, 5) == bytes([99]) + b"abc" + bytes([103])
    finally:
        os.close(handle)


def test_partial_reads_and_writes_are_continued(path, monkeypatch):
    """A network file system may return or take less than it was asked for."""
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(
        os, "pread", lambda handle, size, offset: pread(handle, min(size, 7), offset)
    )
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, data[:7], at))
    handle = os.open(path, os.O_RDWR)
    try:
        write_at(handle, 10, bytes(range(100, 130)))
        assert read_at(handle, 10, 30) == bytes(range(100, 130))
    finally:
        os.close(handle)


def test_a_process_that_may_open_few_files_holds_a_quarter_of_them_open():
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
        assert share_open_files(256) == 50
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert share_open_files(8) == 8

"""A folder is written completely or not at all, and in place of nothing but an earlier one of ours."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from deitctl.packing.destination import (
    choose_folder,
    require_space,
    warn_of_leftovers,
    write_folder,
)
from deitctl.paths import DiskError


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("has_earlier", [False, True])
def test_a_folder_takes_its_name_when_it_is_complete(has_earlier, tmp_path):
    path = tmp_path / "x"
    if has_earlier:
        path.mkdir()
        (path / "old").touch()
    with write_folder(path) as draft:
        (draft / "new").touch()
        assert draft.name.startswith(".x.")
        assert path.exists() == has_earlier
    assert (list_names(tmp_path), list_names(path)) == (["x"], ["new"])
    assert path.stat().st_mode & 0o777 == 0o777 & ~_read_umask()


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_an_interruption_leaves_what_was_there(error, tmp_path):
    path = tmp_path / "x"
    path.mkdir()
    (path / "old").touch()

    def fail() -> None:
        with write_folder(path) as draft:
            (draft / "new").touch()
            raise error

    with pytest.raises((KeyboardInterrupt, DiskError)):
        fail()
    assert (list_names(tmp_path), list_names(path)) == (["x"], ["old"])


def test_a_rename_that_fails_brings_the_earlier_folder_back(tmp_path, monkeypatch):
    path, rename = tmp_path / "x", os.rename
    path.mkdir()
    (path / "old").touch()

    def fail_once(source: Path, target: Path) -> None:
        if target == path and "earlier" not in source.name:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(DiskError, match="Input/output error"), write_folder(path):
        pass
    assert (list_names(tmp_path), list_names(path)) == (["x"], ["old"])


def test_too_little_space_is_one_line_before_anything_is_written(tmp_path):
    with pytest.raises(
        DiskError, match=r"needs 1,000,000,000,000,000,000 bytes, and [\d,]+ are free"
    ):
        require_space(tmp_path / "x", 10**18)
    require_space(tmp_path / "x", 1)


def test_a_folder_below_none_is_made(tmp_path):
    path = choose_folder(str(tmp_path / "a" / "b"), "digits")
    with write_folder(path) as draft:
        (draft / "new").touch()
    assert list_names(tmp_path / "a") == ["b"]


def test_what_a_killed_process_left_is_named(tmp_path, reporter):
    for name in (".x.0123abcd", ".x.0123abcd.earlier", ".x.notes", ".xy.0123abcd", "x"):
        (tmp_path / name).mkdir()
    warn_of_leftovers(tmp_path / "x", reporter)
    (warning,) = reporter.warnings
    assert f"{tmp_path} holds .x.0123abcd, .x.0123abcd.earlier, which" in warning
    warn_of_leftovers(tmp_path / "y", reporter)
    warn_of_leftovers(tmp_path / "none" / "x", reporter)
    assert len(reporter.warnings) == 1

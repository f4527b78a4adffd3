"""Atomic writes and bounded reads; see tests/hostile/test_texts.py for damaged and hostile files."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading

import pytest

from deitctl.errors import DeitctlError
from deitctl.paths import (
    DiskError,
    atomic_path,
    open_atomic,
    open_no_follow,
    refuse_links,
    require_writable,
    suggest_path,
    walk,
    write_bytes,
    write_json,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """flowers-mini/train/Rose.jpg, photos/ and runs/deit_tiny-flowers/, from where they lie."""
    monkeypatch.chdir(tmp_path)
    for name in ("flowers-mini/train", "photos", "runs/deit_tiny-flowers", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "flowers-mini/train/Rose.jpg").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("flowrs-mini/", "'flowers-mini'"),
        ("Photos", "'photos'"),
        ("flowrs-mini/train", "'flowers-mini/train'"),
        ("flowrs-mini/trian/rose.JPG", "'flowers-mini/train/Rose.jpg'"),
        ("deit_tiny-flowers", "'runs/deit_tiny-flowers'"),
        ("deit_tiny-flower", "'runs/deit_tiny-flowers'"),
        ("runs/deit_tin-flowers", "'runs/deit_tiny-flowers'"),
        ("digts", "'digits'"),
        (".hiden", "'.hidden'"),
    ],
)
def test_a_misspelled_path_is_found(path, meant, folder):
    assert suggest_path(path, "digits") == f"Did you mean {meant}?"
    absolute = str(folder / path)
    if "runs/" not in meant and "digits" not in meant:
        assert suggest_path(absolute) == f"Did you mean {str(folder / eval(meant))!r}?"


@pytest.mark.parametrize("path", ["", "hidden", "elsewhere", "photos/x", "a\0b", "x" * 5000])
def test_nothing_is_made_up_for_a_path_that_is_like_no_other(path, folder):
    assert suggest_path(path) == ""


def test_a_link_to_nothing_is_not_suggested(folder):
    (folder / "photoz").symlink_to("gone")
    assert suggest_path("photox/a.jpg") == ""
    assert suggest_path("photox") == "Did you mean 'photos'?"


def test_a_huge_folder_costs_little(folder, monkeypatch):
    monkeypatch.setattr("deitctl.paths.MAX_SIBLINGS", 3)
    for number in range(10):
        (folder / "photos" / f"image-{number}.jpg").touch()
    assert suggest_path("photos/image-3.jpeg").count(".jpg") <= 3


def test_another_number_is_another_thing(folder):
    (folder / "photos" / "n44507694_12183.JPEG").touch()
    assert suggest_path("photos/n01440764_1234.JPEG") == ""
    assert suggest_path("photos/n4450769_12183.JPEG") != ""


def test_readers_never_see_half_a_file(tmp_path):
    path, seen = tmp_path / "x", set()
    write_bytes(path, b"a" * 100_000)
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            data = path.read_bytes()
            seen.add((len(data), len(set(data))))

    reader = threading.Thread(target=read)
    reader.start()
    for letter in (b"b", b"c", b"d") * 5:
        write_bytes(path, letter * 100_000)
    stop.set()
    reader.join()
    assert seen == {(100_000, 1)}


def test_an_error_in_the_block_is_raised_unchanged_and_leaves_no_file(tmp_path):
    with pytest.raises(KeyError, match="mine"), open_atomic(tmp_path / "x"):
        raise KeyError("mine")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.ENOSPC, "Free some space"), (errno.EIO, "Name another --out")]
)
def test_a_disk_error_in_the_block_names_the_option(number, hint, tmp_path):
    with pytest.raises(DiskError, match=hint), atomic_path(tmp_path / "x", "--out"):
        raise OSError(number, os.strerror(number))
    assert os.listdir(tmp_path) == []


def test_a_name_that_no_file_can_have_is_a_disk_error(tmp_path):
    with pytest.raises(DiskError, match="Cannot write"):
        write_bytes(tmp_path / "a\0b", b"")


def test_json_of_a_file_name_that_is_not_text_is_escaped(tmp_path):
    write_json(tmp_path / "x.json", {"name": "\udcff", "other": "ä"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"name": "\udcff", "other": "ä"}


def test_require_writable_creates_folders_and_no_file(tmp_path):
    require_writable(tmp_path / "a" / "x", "--output")
    require_writable(tmp_path / "b", "--output", folder=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b"]
    with pytest.raises(DeitctlError, match=r"Cannot write .*a: .*Name another file with --output"):
        require_writable(tmp_path / "a", "--output")


def test_walk_yields_what_os_walk_does_and_can_be_pruned(tmp_path):
    for name in ("a/b/1", "a/2", "c/3", "4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    ours = {(f, *sorted(d), *sorted(n)) for f, d, n in walk(str(tmp_path), follow=False)}
    assert ours == {(f, *sorted(d), *sorted(n)) for f, d, n in os.walk(tmp_path)}
    visited = []
    for folder, folders, _ in walk(str(tmp_path), follow=False):
        visited.append(os.path.basename(folder))
        folders[:] = [f for f in folders if f != "a"]
    assert visited == [tmp_path.name, "c"]


WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


def test_a_file_of_ours_is_created_cut_and_read(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")  # the folder is the user's, and may be a link
    for text in (b"longer than the next", b"short"):
        handle = open_no_follow(tmp_path / "run" / "log", WRITE)
        assert not os.get_inheritable(handle)
        os.write(handle, text)
        os.close(handle)
    assert (tmp_path / "disk" / "log").read_bytes() == b"short"
    os.close(open_no_follow(tmp_path / "run" / "log", os.O_RDONLY))
    with pytest.raises(FileNotFoundError):
        open_no_follow(tmp_path / "run" / "none", os.O_RDONLY)


@pytest.mark.parametrize("flags", [WRITE, os.O_RDWR, os.O_RDONLY | os.O_NONBLOCK])
@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe", "socket"])
def test_what_is_no_file_of_ours_is_one_line(kind, flags, tmp_path):
    theirs, path = tmp_path / "theirs", tmp_path / "log"
    theirs.write_text("precious")
    match kind:
        case "link":
            path.symlink_to(theirs)
        case "dangling link":
            path.symlink_to(tmp_path / "new")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)  # opening it would wait for the other end
        case "socket":
            os.mknod(path, stat.S_IFSOCK)
    with pytest.raises(DiskError, match=r"log is a .*, and deitctl writes only files of its own\."):
        open_no_follow(path, flags)
    assert theirs.read_text() == "precious"
    assert not (tmp_path / "new").exists()


def test_a_hard_link_is_read_and_not_written(tmp_path):
    theirs, path = tmp_path / "theirs", tmp_path / "log"
    theirs.write_text("precious")
    os.link(theirs, path)
    with pytest.raises(DiskError, match="hard links"):
        open_no_follow(path, WRITE)
    assert theirs.read_text() == "precious"
    os.close(open_no_follow(path, os.O_RDONLY))


@pytest.mark.parametrize("follows", [True, False])
def test_a_file_that_becomes_a_link_between_the_look_and_the_opening_is_refused(
    follows, tmp_path, monkeypatch
):
    """Without O_NOFOLLOW, as on Windows, only the first look guards."""
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "log").write_text("ours")
    if follows:
        monkeypatch.delattr(os, "O_NOFOLLOW")
    else:
        status = os.lstat(tmp_path / "log")
        monkeypatch.setattr(os, "lstat", lambda _: status)
    (tmp_path / "log").unlink()
    (tmp_path / "log").symlink_to("theirs")
    with pytest.raises(DiskError, match="log is a symbolic link"):
        open_no_follow(tmp_path / "log", WRITE)
    assert (tmp_path / "theirs").read_text() == "precious"


def test_links_among_our_names_are_refused_and_one_above_them_is_not(tmp_path):
    (tmp_path / "disk" / "figures").mkdir(parents=True)
    run = tmp_path / "run"
    run.symlink_to("disk")
    names = ("lock", "figures/curves.png")
    refuse_links(run, names)  # none is there
    (run / "figures" / "curves.png").symlink_to("/etc/passwd")
    with pytest.raises(DiskError, match=r"run/figures/curves\.png is a symbolic link"):
        refuse_links(run, names)
    (run / "figures" / "curves.png").unlink()
    (run / "figures").rmdir()
    (run / "figures").symlink_to("nowhere")
    with pytest.raises(DiskError, match=r"run/figures is a symbolic link"):
        refuse_links(run, names)

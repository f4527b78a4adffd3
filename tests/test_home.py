"""The cache without a home: private, owner-checked, said in a line; libraries get folders of their own."""

from __future__ import annotations

import os
import pwd
import re
import stat
import tempfile
from pathlib import Path

import pytest

import deitctl
from deitctl import home
from deitctl.home import (
    CACHE_VARIABLE,
    VARIABLES,
    cache_root,
    can_write,
    choose_cache_path,
    expand_home,
    find_home,
    find_private_folder,
    is_in_private_folder,
    provide_folders,
)

SOURCES = Path(deitctl.__file__).parent


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own, and no variable that names a cache."""
    folder = tmp_path / "tmp"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(home, "_told", set())
    for variable in (CACHE_VARIABLE, "XDG_CACHE_HOME", *VARIABLES):
        monkeypatch.delenv(variable, raising=False)
    return folder


@pytest.fixture
def nameless(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home, and without a name in passwd."""

    def find_nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", find_nobody)


def test_the_cache_is_the_variables_or_the_users(temp, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_root() == Path("/home/someone/.cache/deitctl")
    monkeypatch.setenv("XDG_CACHE_HOME", "/kept")
    assert cache_root() == Path("/kept/deitctl")
    monkeypatch.setenv(CACHE_VARIABLE, "~/mine")
    assert cache_root() == Path("/home/someone/mine")


def test_a_path_below_a_home_that_is_not_known_stays_as_it_is(nameless):
    assert expand_home("~/photos") == Path("~/photos")
    assert expand_home("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert find_home() == Path("/")
    assert cache_root() == Path("/.cache/deitctl")


def test_no_other_module_asks_for_the_home_or_the_users_name():
    asks = re.compile(r"\.expanduser\(\)|Path\.home\(|getuser\(|getlogin\(|getpwuid\(")
    found = [path.name for path in SOURCES.rglob("*.py") if asks.search(path.read_text("utf-8"))]
    assert not found


def test_the_private_folder_is_made_for_its_owner_alone_and_found_again(temp):
    folder = find_private_folder()
    assert folder == temp / f"deitctl-{os.geteuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert find_private_folder() == folder
    assert is_in_private_folder(folder / "cache" / "x")
    assert not is_in_private_folder(temp / "cache")


@pytest.mark.parametrize("planted", ["link", "file", "open to others", "another user's"])
def test_what_another_user_planted_under_its_name_is_not_used(planted, temp, tmp_path, monkeypatch):
    folder = temp / f"deitctl-{os.geteuid()}"
    if planted == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    elif planted == "file":
        folder.touch()
    elif planted == "open to others":
        folder.mkdir()
        folder.chmod(0o770)
    else:
        folder.mkdir(mode=0o700)
        others = os.geteuid() + 1
        folder.rename(temp / f"deitctl-{others}")
        monkeypatch.setattr(os, "geteuid", lambda: others)
    assert find_private_folder() is None


def test_a_temporary_folder_in_which_anybody_may_rename_is_not_used(temp):
    temp.chmod(0o777)
    assert find_private_folder() is None
    temp.chmod(0o1777)
    assert find_private_folder() is not None


def test_without_any_temporary_folder_there_is_no_private_one(temp, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(temp / "gone"))
    assert find_private_folder() is None
    assert choose_cache_path("x") == cache_root() / "x"


def test_a_folder_can_be_written_if_the_nearest_one_above_it_can(tmp_path):
    assert can_write(tmp_path)
    assert can_write(tmp_path / "not" / "yet" / "there")
    (tmp_path / "file").touch()
    assert can_write(tmp_path / "file")  # to name it in the error of writing, not to pass it over


@pytest.mark.unprivileged
def test_a_cache_that_cannot_be_written_is_read_and_what_is_new_goes_elsewhere_said_once(
    temp, tmp_path, monkeypatch, reporter
):
    root = tmp_path / "baked"
    (root / "teachers" / "old").mkdir(parents=True)
    (root / "teachers").chmod(0o555)
    root.chmod(0o555)
    monkeypatch.setenv(CACHE_VARIABLE, str(root))
    assert choose_cache_path("teachers/old", reporter) == root / "teachers" / "old"
    assert reporter.warnings == []
    private = temp / f"deitctl-{os.geteuid()}" / "cache"
    for name in ("teachers/new", "teacher_targets/new"):
        assert choose_cache_path(name, reporter) == private / name
    assert reporter.warnings == [
        f"The cache {root} cannot be written: {private} is used, and is lost with a container. "
        "$DEITCTL_CACHE names a folder that is kept."
    ]


def test_libraries_get_folders_of_their_own_where_there_is_no_home(nameless, temp):
    provide_folders()
    private = temp / f"deitctl-{os.geteuid()}"
    for variable in VARIABLES:
        assert os.environ.pop(variable) == str(private / variable.lower())


@pytest.mark.unprivileged
def test_weights_in_a_home_that_cannot_be_written_are_still_found(temp, tmp_path, monkeypatch):
    baked = tmp_path / "home" / ".cache" / "huggingface"
    baked.mkdir(parents=True)
    baked.parent.chmod(0o555)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    provide_folders()
    values = {variable: os.environ.pop(variable) for variable in VARIABLES}
    assert values["HF_HOME"] == str(baked)
    assert values["MPLCONFIGDIR"].startswith(str(temp))


def test_a_home_that_can_be_written_changes_nothing(temp, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    provide_folders()
    assert not set(VARIABLES) & set(os.environ)
    assert list(temp.iterdir()) == []

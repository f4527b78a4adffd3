"""A lock has one holder, which is named, and is released when the holder ends, killed or not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deitctl.events import SilentReporter
from deitctl.lock import Busy, locked

HOLDER = """
import sys
from pathlib import Path
from deitctl.lock import locked
with locked(Path(sys.argv[1]), what="it"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_holder_is_refused_with_the_first_ones_process_number(tmp_path: Path) -> None:
    path = tmp_path / "run" / "lock"
    with locked(path, what="The run"):
        for _ in range(2):  # being refused changes nothing
            with pytest.raises(Busy, match=rf"The run is being written .*\(number {os.getpid()}\)"):
                locked(path, what="The run").__enter__()
    with locked(path, what="The run"):
        assert path.read_text() == str(os.getpid())


def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "lock", what="x"):
        raise KeyError
    with locked(tmp_path / "lock", what="x"):
        pass


def test_another_lock_is_another_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "a", what="a"), locked(tmp_path / "b", what="b"):
        pass


def test_a_waiting_process_calls_when_busy_and_gets_the_lock_next(tmp_path: Path) -> None:
    path, order, busy = tmp_path / "lock", [], threading.Event()

    def second() -> None:
        with locked(path, what="x", when_busy=busy.set):
            order.append("second")

    with locked(path, what="x"):
        waiter = threading.Thread(target=second)
        waiter.start()
        assert busy.wait(20)
        order.append("first")
    waiter.join(20)
    assert order == ["first", "second"]


def test_when_busy_is_not_called_for_a_free_lock(tmp_path: Path) -> None:
    calls: list[int] = []
    with locked(tmp_path / "lock", what="x", when_busy=lambda: calls.append(1)):
        assert not calls


def test_a_killed_process_releases_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(Busy, match=rf"\(number {holder.pid}\)"):
                locked(path, what="it").__enter__()
        finally:
            holder.kill()
    with locked(path, what="it"):
        assert path.read_text() == str(os.getpid())


FORKING = """
import os, sys, time
from pathlib import Path
from deitctl.lock import locked
with locked(Path(sys.argv[1]), what="it"):
    child = os.fork()
    if not child:
        os.write(1, b"%d\\n" % os.getpid())  # it has run, so what is closed in children is closed
        time.sleep(60)
        os._exit(0)
    sys.stdin.read()
"""


def test_a_child_of_a_killed_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    """Loader processes outlive a kill of their parent by seconds, in which a resume must not be refused."""
    command = [sys.executable, "-c", FORKING, str(tmp_path / "lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    with pytest.raises(Busy):
        locked(tmp_path / "lock", what="it").__enter__()
    holder.kill()
    holder.wait()
    with locked(tmp_path / "lock", what="it"):
        os.kill(child, 9)  # it was there still
    holder.stdin.close()
    holder.stdout.close()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="symbolic links"):
        locked(tmp_path / "lock", what="it").__enter__()
    assert (tmp_path / "theirs").read_text() == "precious"


def test_a_file_with_other_content_is_locked_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("precious")
    with locked(tmp_path / "lock", what="it"), pytest.raises(Busy, match=r"by another process\."):
        locked(tmp_path / "lock", what="it").__enter__()
    assert (tmp_path / "lock").read_text() == "precious"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """NFS without lockd, some of FUSE: a training there is not refused."""

    def flock(fd: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    notes: list[str] = []
    reporter = SilentReporter()
    monkeypatch.setattr(reporter, "note", notes.append)
    for _ in range(2):
        with locked(tmp_path / "lock", what="runs/x", reporter=reporter):
            assert not (tmp_path / "lock").read_text()  # no soft lock, which a kill would leave
    with pytest.raises(KeyError) as info, locked(tmp_path / "lock", what="runs/x"):
        raise KeyError
    assert info.value.__context__ is None
    assert notes == ["runs/x cannot be locked on this file system: start no second run in it."] * 2


def test_another_error_of_the_file_system_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="Input/output"):
        locked(tmp_path / "lock", what="it").__enter__()

"""A lock has one holder, who is named, and is free when the holder is gone, however it went."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deitctl.lock import Busy, locked

pytest.importorskip("fcntl", reason="nothing is locked without it")

HOLDER = """
import sys
from pathlib import Path
from deitctl.lock import locked
with locked(Path(sys.argv[1]), what="it"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_one_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
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


def test_one_that_waits_says_so_and_gets_it_next(tmp_path: Path) -> None:
    path, order, said = tmp_path / "lock", [], threading.Event()

    def second() -> None:
        with locked(path, what="x", when_busy=said.set):
            order.append("second")

    with locked(path, what="x"):
        waiter = threading.Thread(target=second)
        waiter.start()
        assert said.wait(20)
        order.append("first")
    waiter.join(20)
    assert order == ["first", "second"]


def test_one_that_need_not_wait_does_not_say_so(tmp_path: Path) -> None:
    said: list[int] = []
    with locked(tmp_path / "lock", what="x", when_busy=lambda: said.append(1)):
        assert not said


def test_a_killed_process_lets_its_lock_go(tmp_path: Path) -> None:
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

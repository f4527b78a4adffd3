"""Commands run with closed standard streams, and with messages that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deitctl.cli.streams import MessageFile

UNIX = pytest.mark.skipif(os.name == "nt", reason="closes descriptors by the shell")


DEITCTL = (sys.executable, "-m", "deitctl")


def shell(command: str, before: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f"{before}{' '.join(DEITCTL)} {command}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@UNIX
def test_messages_go_nowhere_where_stderr_is_closed() -> None:
    """By cron and by daemons; the command does what it is for."""
    done = shell("models --format json 2>&-")
    assert (done.returncode, done.stdout[:1], done.stderr) == (0, "{", "")


@UNIX
def test_a_closed_standard_output_is_said() -> None:
    done = shell("models >&-")
    assert done.returncode == 0
    assert done.stderr == "warning: standard output is closed: what this prints is lost.\n"


@UNIX
def test_a_file_that_is_opened_gets_no_number_of_a_closed_stream() -> None:
    """Else what a C library writes to stderr would be written into it."""
    code = (
        "from deitctl.cli.streams import prepare_streams; prepare_streams();"
        "import os, sys; sys.stdout.write(str(os.open(os.devnull, os.O_RDONLY)))"
    )
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -c '{code}' 2>&- <&-"],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert int(done.stdout) > 2


def test_messages_without_a_reader_are_dropped() -> None:
    reader, writer = os.pipe()
    with MessageFile(writer, "w") as file:
        assert file.write(b"read") == 4
        assert os.read(reader, 100) == b"read"
        os.close(reader)
        assert file.write(memoryview(b"unread")) == 6


@UNIX
def test_a_current_folder_that_was_deleted_is_one_line() -> None:
    """Libraries that torch loads would abort."""
    done = subprocess.run(
        [
            "sh",
            "-c",
            'cd "$(mktemp -d)" && rmdir "$PWD" && "$@"',
            "sh",
            *DEITCTL,
            "predict",
            "x.jpg",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: The current folder cannot be read")


@UNIX
def test_no_room_for_the_libraries_is_want_of_memory() -> None:
    done = shell("predict x.jpg", "ulimit -v 900000; ")
    assert done.returncode == 1
    assert done.stderr.startswith("error: There is not enough memory to load PyTorch.")
    assert done.stderr.count("\n") == 1

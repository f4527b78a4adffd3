"""Standard streams that no command stumbles over: closed ones, and messages that nobody reads any more."""

from __future__ import annotations

import io
import os
import sys

STDIN, STDOUT, STDERR = 0, 1, 2


class MessageFile(io.FileIO):
    """A file of messages, which are dropped where they cannot be written.

    The reader of a pipe that has gone (`2>&1 | head`, a dead `tee`, a closed ssh), a terminal that was
    closed and a full disk take the messages away, and must not take the work with them.
    """

    def write(self, data: object, /) -> int:
        """Write all of the data or none; return its length either way."""
        try:
            written = super().write(data)  # type: ignore[arg-type]
        except OSError:
            written = None
        # BufferedWriter would write the rest again, or raise for none
        return len(memoryview(data)) if written is None else written  # type: ignore[arg-type]


def prepare_streams() -> bool:
    """Make the standard streams usable, whatever the caller has left of them.

    File names need not be text, so that bytes of them pass unchanged.

    Returns:
        Whether standard output was closed, so that what is printed goes nowhere.
    """
    is_closed = [_is_closed(number) for number in (STDIN, STDOUT, STDERR)]
    if any(is_closed):
        # Else the next file that is opened would get its number, and messages of C libraries.
        for number in (STDIN, STDOUT, STDERR):
            if is_closed[number]:
                os.dup2(handle := os.open(os.devnull, os.O_RDWR), number)
                if handle != number:
                    os.close(handle)
    if sys.stdin is None:
        sys.stdin = open(STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(STDOUT, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_choose_errors(stream.encoding))
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(MessageFile(STDERR, "w", closefd=False)),
        encoding=encoding,
        errors=_choose_errors(encoding),
        line_buffering=True,
    )
    return is_closed[STDOUT]


def _choose_errors(encoding: str) -> str:
    # Of ASCII and its like, most names have characters that it lacks: in escapes.
    return "surrogateescape" if encoding.lower() in ("utf-8", "utf8") else "backslashreplace"


def _is_closed(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False

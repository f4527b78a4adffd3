"""Signals of the command line: each ends a command within seconds, whatever it waits for.

A handler of Python runs between two of its instructions, so a main thread that is in a decoder, in a
collective or waits for a lock would not see it. A second thread, which the kernel's delivery wakes, ends the
process then.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

from deitctl.errors import Signalled

ENDING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU")
    if hasattr(signal, name)
)
"""Signals that ask for the end: SIGHUP when the terminal is closed, SIGXCPU when a limit on CPU time is reached."""
PATIENCE_S = 2.0
"""From a signal to the end of a command whose main thread does not obey it."""
REPEAT_WINDOW_S = 1.0
"""Within it two signals are one: a terminal signals the whole group, and a launcher passes it on."""


def raise_signalled(signum: int, _: FrameType | None) -> None:
    """Handle a signal: raise `Signalled`."""
    raise Signalled(signum)


def install() -> None:
    """Let signals raise `Signalled`, and start the thread that ends what does not obey."""
    for signum in ENDING:
        if signal.getsignal(signum) is not signal.SIG_IGN or signum == signal.SIGINT:  # nohup
            signal.signal(signum, raise_signalled)
    if hasattr(signal, "SIGUSR1"):
        # Slurm warns of the end with it; before a run has installed its handler it would end the process
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if os.name == "nt":
        return  # its console has another thread for Ctrl-C
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(
        target=_watch, args=(reader, writer), name="watch for signals", daemon=True
    )
    with suppress(RuntimeError):  # no more threads are allowed; then the handlers alone end it
        watch.start()


def restore() -> None:
    """Let the next signal end the process: during the last message it would be a traceback."""
    for signum in ENDING:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)


def _watch(reader: socket.socket, _writer: socket.socket) -> None:
    first_s = 0.0
    while signums := reader.recv(1):
        signum = signums[0]
        if signum not in ENDING or signal.getsignal(signum) is signal.SIG_IGN:
            continue
        now = time.monotonic()
        # the kernel repeats this one every second
        is_repeated = bool(first_s) and signum != getattr(signal, "SIGXCPU", 0)
        insists = is_repeated and now - first_s > REPEAT_WINDOW_S
        first_s = first_s or now
        timer = threading.Timer(PATIENCE_S, _end_if_running, (signum, insists))
        timer.daemon = True  # a command that ends by itself does not wait for it
        timer.start()


def _end_if_running(signum: int, insists: bool) -> None:
    # A training holds signals, and saves; one that comes again ends it all the same.
    if insists or signal.getsignal(signum) is raise_signalled:
        sys.stderr.write("interrupted\n")
        sys.stderr.flush()
        os._exit(128 + signum)

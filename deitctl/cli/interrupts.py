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
from deitctl.training.signals import ENDING, REPEAT_WINDOW_S

ENDING_SIGNALS = tuple(getattr(signal, name) for name in ENDING if hasattr(signal, name))
ENDS_WITH_STDIN = "DEITCTL_ENDS_WITH_STDIN"
"""Of the environment, as `sweeps.run_process` sets it, whose import takes torch."""
PATIENCE_S = 2.0
"""From a signal to the end of a command whose main thread does not obey it."""
POLL_S = 0.1


def raise_signalled(signum: int, _: FrameType | None) -> None:
    """Handle a signal: raise `Signalled`."""
    raise Signalled(signum)


def install() -> None:
    """Let signals raise `Signalled`, and start the thread that ends what does not obey."""
    for signum in ENDING_SIGNALS:
        # Ignored: under nohup, or SIGINT in the background of a script.
        if signal.getsignal(signum) != signal.SIG_IGN:
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


def end_with_stdin() -> None:
    """Stop this process, as SIGTERM does, when its standard input ends, if whoever started it wants that.

    A sweep holds that end: its runs save and stop when it is killed.
    """
    if os.environ.pop(ENDS_WITH_STDIN, ""):
        threading.Thread(target=_await_end_of_stdin, name="watch the sweep", daemon=True).start()


def _await_end_of_stdin() -> None:
    with suppress(OSError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def restore() -> None:
    """Let the next signal end the process: during the last message it would be a traceback."""
    for signum in ENDING_SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)


def _watch(reader: socket.socket, _writer: socket.socket) -> None:
    first_s, is_ending = 0.0, False
    while signums := reader.recv(1):
        signum = signums[0]
        if signum not in ENDING_SIGNALS or signal.getsignal(signum) == signal.SIG_IGN:
            continue
        now = time.monotonic()
        # the kernel repeats SIGXCPU every second
        is_repeated = bool(first_s) and signum != getattr(signal, "SIGXCPU", 0)
        insists = is_repeated and now - first_s > REPEAT_WINDOW_S
        first_s = first_s or now
        if insists or not is_ending:
            is_ending = True
            threading.Thread(target=_end_if_running, args=(signum, insists), daemon=True).start()


def _end_if_running(signum: int, insists: bool) -> None:
    """End the process when its main thread has had `PATIENCE_S` to do so, unless it prints its last lines.

    A training holds signals until it has saved, and has that time afterwards; one that comes again, and
    insists, does not wait for it.
    """
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        time.sleep(POLL_S)
        handler = signal.getsignal(signum)
        if handler == signal.SIG_DFL:  # `restore`
            return
        if handler is not raise_signalled and not insists:
            deadline = time.monotonic() + PATIENCE_S
    sys.stderr.write("interrupted\n")
    sys.stderr.flush()
    os._exit(128 + signum)

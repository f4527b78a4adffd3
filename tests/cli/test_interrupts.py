"""A signal ends a command within seconds, also where its main thread does not come back to Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

UNIX = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
START = """
import signal, time
from deitctl.cli import interrupts
interrupts.install()
"""
READY = 'print("ready", flush=True)'
# It swallows what the handler raises, as library code that catches everything does.
STUCK = f"""{START}
while True:
    try:
        {READY}
        while True:
            time.sleep(0.1)
    except BaseException:
        time.sleep(100)
"""
HOLDING = f"{START}signal.signal(signal.SIGTERM, lambda *_: None)\n{READY}\ntime.sleep(100)"


def start(code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@UNIX
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_main_thread_that_does_not_obey_is_ended(signum: int) -> None:
    with start(STUCK) as process:
        sent = time.monotonic()
        process.send_signal(signum)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signum
    assert errors == "interrupted\n"
    assert time.monotonic() - sent < 10  # two seconds on a quiet machine


@UNIX
def test_what_holds_signals_is_ended_by_the_second_one() -> None:
    """A training holds them until it has saved. Terminal and launcher send one twice within a moment."""
    with start(HOLDING) as process:
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        time.sleep(3.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM


@UNIX
def test_a_command_that_ends_by_itself_does_not_wait_for_the_watching_thread() -> None:
    with start(START + READY) as process:
        assert process.wait(timeout=30) == 0

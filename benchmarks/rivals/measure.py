"""Run a command and say what it took: seconds, seconds of the processors, the most memory of all its processes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

LOOK_EVERY = 0.25  # seconds between two looks at the memory
GROWN = 1.02  # times the most so far, before it is counted exactly
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Finished:
    """A command that has ended; lines are (seconds since its start, text)."""

    code: int
    seconds: float
    cpu: float
    """Seconds of the processors, loader processes included."""
    memory: float
    """MiB: the largest sum, over its processes, of resident pages, a page that several share counted once."""
    out: list[tuple[float, str]] = field(default_factory=list)
    err: list[tuple[float, str]] = field(default_factory=list)

    @property
    def last_words(self) -> str:
        """The last line it said."""
        said = [text.strip() for _, text in self.err + self.out if text.strip()]
        return said[-1] if said else f"exit code {self.code}"


def run(command: Sequence[str], env: Mapping[str, str], cwd: Path, timeout: float) -> Finished:
    """Run `command` to its end, or until `timeout` seconds are over (code -9)."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        env={**os.environ, **env},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    ended, peak = threading.Event(), [0.0]
    out: list[tuple[float, str]] = []
    err: list[tuple[float, str]] = []
    assert process.stdout is not None
    assert process.stderr is not None
    threads = [
        threading.Thread(target=_read, args=(process.stdout, out, start), daemon=True),
        threading.Thread(target=_read, args=(process.stderr, err, start), daemon=True),
        threading.Thread(target=_watch_memory, args=(process.pid, peak, ended), daemon=True),
    ]
    for thread in threads:
        thread.start()
    alarm = threading.Timer(timeout, _end_group, (process.pid,))
    alarm.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        _end_group(process.pid)
        raise
    finally:
        alarm.cancel()
        ended.set()
    seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    for thread in threads:
        thread.join(timeout=5)
    return Finished(process.returncode, seconds, usage.ru_utime + usage.ru_stime, peak[0], out, err)


def _read(stream: IO[str], lines: list[tuple[float, str]], start: float) -> None:
    lines.extend((time.monotonic() - start, line.rstrip("\n")) for line in stream)


def _end_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _watch_memory(pid: int, peak: list[float], ended: threading.Event) -> None:
    """Count shared pages once, but only where all pages together are more than ever: it walks all their tables."""
    most = 0.0
    while not ended.wait(LOOK_EVERY):
        family = _family(pid)
        if (resident := sum(map(_resident_mib, family))) > GROWN * most:
            most = resident
            peak[0] = max(peak[0], sum(map(_proportional_mib, family)))


def _family(pid: int) -> list[int]:
    """List a process and all that descend from it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def _resident_mib(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 2**20
    except OSError:  # it has ended meanwhile
        return 0.0


def _proportional_mib(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def shown(command: Sequence[str]) -> str:
    """Return a command as a shell would take it."""
    return shlex.join(command)

"""A run of a sweep as a process of its own: `deitctl train --resume RUN`, with its messages in a file.

A crash, or the kernel's kill where memory is short, ends one run and not the sweep. The process ends with the sweep,
also with one that is killed: its standard input, which the sweep holds open, then ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from deitctl.config import MACHINE_SETTINGS, TrainConfig
from deitctl.paths import DiskError, open_no_follow, open_regular
from deitctl.settings import Setting, list_settings
from deitctl.training.run_dir import Run

ENDS_WITH_STDIN = "DEITCTL_ENDS_WITH_STDIN"
"""Of the environment: the process stops, as by SIGTERM, when its standard input ends."""
MAX_TAIL = 2**16
"""Bytes at the end of a log that are searched for the error."""


class RunProcess:
    """A running process of a run."""

    def __init__(self, config: TrainConfig, log: Path, environ: Mapping[str, str]) -> None:
        """Start to train the run in `config.output_dir`, which has its `run.toml`.

        Args:
            config: of the run; its machine settings count, where those in the folder differ.
            log: file that its messages are appended to.
            environ: what to add to the environment.

        Raises:
            DiskError: the log cannot be written.
        """
        self.log = log
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            handle = open_no_follow(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        except OSError as error:
            raise DiskError.from_os_error(log, error) from error
        with os.fdopen(handle, "ab") as file:
            self._log_begin = file.seek(0, os.SEEK_END)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "deitctl", *spell_command(config)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env=os.environ | environ | {ENDS_WITH_STDIN: "1"},
                # a terminal's Ctrl-C goes to the sweep, which passes it on
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Return the exit code, None while it runs; minus the signal if one ended it."""
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def stop(self, signum: int) -> None:
        """Send a signal."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signum)

    def kill(self) -> None:
        """End the process at once."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self.poll()

    def explain_failure(self, code: int) -> str:
        """Return why the process failed: its own error line, or what ended it."""
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            reason = " Perhaps memory was short." if name == "SIGKILL" else ""
            return f"Its process was ended by {name}.{reason}"
        if code > 128:
            return f"It was interrupted (exit code {code})."
        error = read_error(self.log, self._log_begin)
        return error or f"It ended with exit code {code}; see {self.log}."


def spell_command(config: TrainConfig) -> list[str]:
    """Return the words after `deitctl` that begin or continue a run, with the machine's settings as they are now."""
    root = Path(config.output_dir)
    words = ["train", "--resume", str(root), "--format", "json"]
    existing = Run.open(root)[1]
    for setting in list_settings():
        name = setting.name
        if name not in MACHINE_SETTINGS or name == "output_dir":
            continue
        if (value := getattr(config, name)) != getattr(existing, name):
            words += _spell_setting(setting, value)
    return words


def _spell_setting(setting: Setting, value: Any) -> list[str]:
    """Return the option that sets a value; `--set` where none does."""
    on, _, off = setting.flag.partition("/")
    if setting.option.panel and isinstance(value, bool):
        if flag := on if value else off:
            return [flag]
    elif setting.option.panel and value != "":  # which as an option is no setting
        return [on, str(value)]
    return ["--set", f"{setting.name}={str(value).lower() if isinstance(value, bool) else value}"]


def read_error(log: Path, begin: int = 0) -> str:
    """Return the last line of a log that begins with `error:`, without that word, else its last line.

    Args:
        log: the file.
        begin: byte from which on it is read: what is before is of earlier processes.
    """
    try:
        with open_regular(log, 2**62) as file:
            file.seek(max(begin, file.seek(0, os.SEEK_END) - MAX_TAIL))
            lines = file.read(MAX_TAIL).decode("utf-8", "replace").splitlines()
    except (OSError, ValueError):
        return ""
    errors = [line for line in lines if line.startswith("error: ")]
    return (
        (errors or [line for line in lines if line.strip()] or [""])[-1]
        .removeprefix("error: ")
        .strip()
    )


def write_waiting(config: TrainConfig) -> None:
    """Make the folder of a run that waits, with its `run.toml`.

    Raises:
        DeitctlError: it cannot be written.
    """
    run = Run(Path(config.output_dir))
    run.require_creatable()
    Run.create(run.root, config)

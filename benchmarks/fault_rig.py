"""What the cases of faults.py share: commands that are run, watched and judged, and the folders that they work on."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SMALL = ("--model", "deit_tiny", "--no-pretrained", "--img-size", "32", "--batch-size", "32")
STUDENT = ("--student", "deit_tiny", "--no-pretrained", "--allow-weak-teacher")
PLAIN = (0, 1, 3)
"""Exit codes of a command that no signal ended."""


class Trial(NamedTuple):
    """What was done to a command, what it did, and whether that is what the pages promise."""

    what: str
    happened: str
    held: bool


Case = Callable[["Rig"], Iterator[Trial]]


@dataclass(frozen=True)
class Outcome:
    """How a command ended; `code` is None if it had to be killed because it hung."""

    code: int | None
    out: str
    err: str
    seconds: float
    cpu_seconds: float = 0.0

    @property
    def lines(self) -> list[str]:
        """Return what it said on stderr."""
        return [line for line in self.err.splitlines() if line.strip()]

    @property
    def has_traceback(self) -> bool:
        """Whether a traceback is in what it said, or a message of the interpreter about itself."""
        return "Traceback" in self.err or "Exception ignored" in self.err

    def is_plain(self, *codes: int) -> bool:
        """Return whether it ended with one of `codes` (default: 0, 1, 3) and without a traceback."""
        return self.code in (codes or PLAIN) and not self.has_traceback

    def __str__(self) -> str:
        end = "hung" if self.code is None else f"exit {self.code}"
        trace = ", TRACEBACK" if self.has_traceback else ""
        last = self.lines[-1].strip()[:230] if self.lines else ""
        return f"{end} after {self.seconds:.0f} s{trace}: {last or '(nothing said)'}"


@dataclass
class Process:
    """A command that runs, with its own session, so that a case can end it and what it started."""

    popen: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path
    cpu_before: float = field(default_factory=lambda: read_cpu_seconds())

    @property
    def pid(self) -> int:
        """Return the number of the main process."""
        return self.popen.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.popen.poll() is not None

    def loaders(self) -> list[int]:
        """Return its loader processes."""
        return list_loaders(self.pid)

    def catch_loaders(self, patience: float = 60) -> list[int]:
        """Wait until loaders have been at work for a moment, and return them; none if none come."""
        end = time.monotonic() + patience
        while time.monotonic() < end and not self.ended:
            before = self.loaders()
            time.sleep(0.4)
            if len(lasting := [pid for pid in self.loaders() if pid in before]) > 1:
                return lasting
        return []

    def signal(self, number: int) -> None:
        """Send a signal to the main process alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait_until(self, ready: Callable[[], object], patience: float = 60) -> bool:
        """Wait for a condition; return False if the command ended, or patience did, before."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if ready():
                return True
            if self.ended:
                return bool(ready())
            time.sleep(0.02)
        return False

    def finish(self, patience: float = 60) -> Outcome:
        """Wait for its end, and kill it and what it started if that does not come."""
        since = time.monotonic()
        family = list_family(self.pid)
        try:
            code: int | None = self.popen.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            code = None
        seconds = time.monotonic() - since
        for pid in {*family, *list_family(self.pid)} if code is None else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.popen.wait()
        cpu_seconds = read_cpu_seconds() - self.cpu_before
        return Outcome(code, _read(self.stdout), _read(self.stderr), seconds, cpu_seconds)


class Rig:
    """A scratch folder, the images to work on, and the commands."""

    def __init__(self, root: Path, images: Path, patience: float) -> None:
        """Work in `root` with a folder of class folders; a command hangs after `patience` seconds."""
        self.scratch, self.images, self._patience = root, images.resolve(), patience
        self.root = root
        self.prepared = root / "prepared"
        self.prepared.mkdir(parents=True, exist_ok=True)
        self.count = 0

    @property
    def patience(self) -> float:
        """Return the seconds after which a command hangs, more of them on a busy machine."""
        return self._patience * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))

    def enter(self, name: str) -> None:
        """Work in a new folder of a case's own."""
        self.root = self.scratch / name
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)

    def start(
        self,
        *options: str | Path,
        env: Mapping[str, str] | None = None,
        limit: str = "",
        redirect: str = "",
        prefix: Sequence[str] = (),
        launcher: Sequence[str] = (),
    ) -> Process:
        """Start a command in the case's folder.

        Args:
            options: of deitctl.
            env: variables to set.
            limit: shell commands before it, such as `ulimit -n 24;`.
            redirect: shell redirections, such as `2>&-`; others go to files.
            prefix: a program that runs it.
            launcher: options of Python before `-m deitctl`, of torchrun.
        """
        self.count += 1
        out, err = self.root / f".out-{self.count}", self.root / f".err-{self.count}"
        words = [*prefix, sys.executable, *launcher, "-m", "deitctl", *map(str, options)]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            "DEITCTL_CACHE": str(self.root / "cache"),
            "HF_HUB_OFFLINE": "1",
            **(env or {}),
        }
        script = f'{limit} exec "$@" {redirect}'
        with out.open("wb") as stdout, err.open("wb") as stderr:
            popen = subprocess.Popen(
                ["bash", "-c", script, "bash", *words],
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=restore_signals,
            )
        return Process(popen, out, err)

    def run(
        self,
        *options: str | Path,
        env: Mapping[str, str] | None = None,
        limit: str = "",
        redirect: str = "",
        prefix: Sequence[str] = (),
    ) -> Outcome:
        """Run a command to its end, as `start`."""
        return self.start(*options, env=env, limit=limit, redirect=redirect, prefix=prefix).finish(
            self.patience
        )

    def resume(self, run: Path | str, *options: str) -> Outcome:
        """Resume a run, to its end."""
        return self.run("train", "--resume", run, "--quiet", *options)

    def train(self, output: str, *options: str | Path, data: Path | None = None) -> Process:
        """Start a training of a few steps in this process alone."""
        return self.start(
            "train", data or self.images, *SMALL, "--output", output, *self._small(options)
        )

    @staticmethod
    def _small(options: Sequence[str | Path]) -> list[str | Path]:
        defaults = {"--workers": "0", "--quiet": "", "--epochs": "2"}
        for option in options:
            defaults.pop(str(option), None)
        return [*options, *(word for pair in defaults.items() for word in pair if word)]

    def base(self) -> Path:
        """Return a finished run of 2 epochs, made once, with a checkpoint of every 4 steps."""
        if not (self.prepared / "base" / "result.json").exists():
            shutil.rmtree(self.prepared / "base", ignore_errors=True)
            done = self.train(str(self.prepared / "base"), "--save-every", "4").finish(300)
            assert done.code == 0, done.err
        return self.prepared / "base"

    def half(self) -> Path:
        """Return a run that was killed after the checkpoint of step 12 of 27, made once."""
        folder = self.prepared / "half"
        if not (folder / "checkpoint" / "state.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            running = self.train(str(folder), "--epochs", "3", "--save-every", "12")
            running.wait_until((folder / "checkpoint" / "state.json").exists, 120)
            running.signal(signal.SIGKILL)
            running.finish()
        return folder

    def copy(self, run: Path, name: str = "x") -> Path:
        """Return a fresh copy of a run, links kept."""
        target = self.root / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(run, target, symlinks=True)
        return target

    def copy_images(self, name: str = "data") -> Path:
        """Return a fresh copy of the images."""
        target = self.root / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.images, target)
        return target

    def long_table(self, repeats: int = 12) -> Path:
        """Return a table that names every image several times, so that loaders work for a while."""
        table = self.prepared / f"long-{repeats}.csv"
        rows = ["path,label,split"]
        for number in range(repeats):
            for image in sorted(self.images.glob("*/*")):
                split = "train" if number % 4 else "val"
                rows.append(f"{image},{image.parent.name},{split}")
        table.write_text("\n".join(rows) + "\n")
        return table


def read_cpu_seconds() -> float:
    """Return the processor time of all commands that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def list_family(pid: int) -> list[int]:
    """Return a process and all that it started and that still has a living parent among them."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def list_loaders(pid: int) -> list[int]:
    """Return the loader processes of a command: of what it started, those that started nothing themselves."""
    family = list_family(pid)
    return [p for p in family[1:] if len(list_family(p)) == 1 and not _is_service(p)]


def is_alive(pid: int) -> bool:
    """Return whether a process lives; one that waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def count_steps(run: Path) -> int:
    """Return the step of a run's checkpoint, -1 if there is none."""
    import json

    for name in ("checkpoint", "checkpoint.old"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return int(json.loads((run / name / "state.json").read_text())["step"])
    return -1


def forge_state(checkpoint: Path, **changes: object) -> None:
    """Change values of a checkpoint's state.json, and remove its checksums, as of a version without."""
    import json

    path = checkpoint / "state.json"
    record = json.loads(path.read_text()) | changes
    kept = {k: v for k, v in record.items() if k not in ("crc32", "checksums")}
    path.write_text(json.dumps(kept))


def has_logged(run: Path, text: str = '"kind"', times: int = 1) -> Callable[[], bool]:
    """Return a condition: the run's log has so many lines with a text."""
    return lambda: _read(run / "metrics.jsonl").count(text) >= times


def restore_signals() -> None:
    """Undo what nohup and a shell's background jobs leave: ignored signals."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def _is_service(pid: int) -> bool:
    command = _read(Path(f"/proc/{pid}/cmdline"))
    return any(name in command for name in ("resource_tracker", "forkserver", "spawn_main"))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""

"""Progress of the library: Rich bars on a terminal, elsewhere a plain line every few seconds.

Rich is imported with the first message, because its import takes longer than many commands.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from deitctl.cli.console import escape_markup, make_stderr_console, print_message
from deitctl.events import Reporter, SilentReporter, Task

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

LINE_INTERVAL_S = 5.0


def make_reporter(quiet: bool) -> Reporter:
    """Return the reporter for this terminal: bars, lines, or with `quiet` warnings alone."""
    if os.environ.get("RANK", "0") != "0":
        return SilentReporter()  # of several processes the first reports
    if quiet:
        return _QuietReporter()
    return BarReporter() if sys.stderr.isatty() else LineReporter()


class _QuietReporter(SilentReporter):
    @cached_property
    def console(self) -> Console:
        return make_stderr_console()

    def warn(self, message: str) -> None:
        print_message(self.console, message, "warning", "yellow")


class LineReporter(_QuietReporter):
    """A line every few seconds of a step."""

    def note(self, message: str) -> None:
        print_message(self.console, message)

    @contextmanager
    def task(self, label: str, total: int | None, unit: str = "images") -> Iterator[Task]:
        yield _LineTask(self.console, label, total, unit)


class _LineTask:
    def __init__(self, console: Console, label: str, total: int | None, unit: str) -> None:
        self.console, self.label, self.total, self.unit = console, label, total, unit
        self.done, self.skipped, self.start = 0, 0, time.monotonic()
        self.last_line_s = self.start

    def skip(self, amount: int) -> None:
        self.done += amount
        self.skipped += amount

    def advance(self, amount: int = 1, **fields: object) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.last_line_s < LINE_INTERVAL_S:
            return
        self.last_line_s = now
        speed = (self.done - self.skipped) / (now - self.start)
        remaining = (
            f", {max(0, self.total - self.done) / speed:.0f} s left" if self.total and speed else ""
        )
        extra = "".join(f", {k} {v}" for k, v in fields.items())
        of = f"/{self.total}" if self.total else ""
        self.console.print(
            escape_markup(
                f"{self.label}: {self.done}{of} {self.unit}, {speed:.1f}/s{remaining}{extra}"
            )
        )


class BarReporter(_QuietReporter):
    """A bar a step, with speed and time left; it vanishes when the step is done."""

    open = 0

    @cached_property
    def progress(self) -> Progress:
        from rich import progress as p

        return p.Progress(
            p.SpinnerColumn(),
            p.TextColumn("{task.description}"),
            p.BarColumn(),
            p.MofNCompleteColumn(),
            p.TextColumn("{task.fields[speed]}"),
            p.TimeElapsedColumn(),
            p.TimeRemainingColumn(),
            p.TextColumn("{task.fields[extra]}"),
            console=self.console,
            # units of minutes: of a shorter period there is one, or none, and no speed
            speed_estimate_period=3600,
            transient=True,
            # what else is printed on the terminal stands above the bars; a file or pipe gets it as it is
            redirect_stdout=sys.stdout.isatty(),
        )

    def note(self, message: str) -> None:
        print_message(self.console, message)  # the bars' console too, which keeps them below

    @contextmanager
    def task(self, label: str, total: int | None, unit: str = "images") -> Iterator[Task]:
        if not self.open:
            self.progress.start()
        self.open += 1
        task = self.progress.add_task(escape_markup(label), total=total, speed="", extra="")
        try:
            yield _Bar(self.progress, task, unit)
        finally:
            self.progress.remove_task(task)
            self.open -= 1
            if not self.open:
                self.progress.stop()


class _Bar:
    def __init__(self, progress: Progress, task: TaskID, unit: str) -> None:
        self.progress, self.task, self.unit = progress, task, unit
        self.done, self.start, self.extra = 0, time.monotonic(), ""

    def skip(self, amount: int) -> None:
        # not by `update`, from which the time left is reckoned
        (task,) = (task for task in self.progress.tasks if task.id == self.task)
        task.completed += amount

    def advance(self, amount: int = 1, **fields: object) -> None:
        self.done += amount
        if fields:
            self.extra = " ".join(f"{k} {v}" for k, v in fields.items())
        speed = self.done / max(time.monotonic() - self.start, 1e-6)
        self.progress.update(
            self.task, advance=amount, speed=f"{speed:.1f} {self.unit}/s", extra=self.extra
        )

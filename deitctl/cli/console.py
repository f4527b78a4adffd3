"""Two readers: data goes to stdout, talk to stderr."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from deitctl.errors import ConfigError, Interrupted, Signalled, did_you_mean

if (
    TYPE_CHECKING
):  # Rich is imported where something is shown: an answer in half a second has no time for it
    from rich.console import Console

HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""What a terminal obeys or reorders instead of showing: control characters, directions of writing, half characters."""
LONGEST = 4000
"""Characters of a text that is shown to people."""


class Record(Protocol):
    """What a streaming command says of one input."""

    @property
    def error(self) -> str | None: ...

    def to_dict(self) -> dict[str, Any]: ...


def printable(text: str) -> str:
    """Return a text from anywhere as a terminal may have it: names are others' and could hold its commands."""
    text = text if len(text) <= LONGEST else text[:LONGEST] + " ..."
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shown(text: str) -> str:
    """Return a text for Rich, which takes nothing in it for markup."""
    from rich.markup import escape

    return escape(printable(text))


def talk() -> Console:
    """Return the console for people: stderr, honoring NO_COLOR."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def error_line(error: Exception) -> None:
    """Say on stderr what happened and what to do; after an interruption the last line is the command that resumes."""
    console = talk()
    rank = os.environ.get("RANK", "0")
    if isinstance(error, Interrupted):
        if rank != "0":
            return
        console.print(
            "[yellow]interrupted[/]"
            + (", what was finished is saved" if error.resume_command else "")
        )
        if error.resume_command:
            console.print(shown(error.resume_command))
        return
    text = " ".join(str(error).split())
    who = "" if rank == "0" else shown(f"[process {rank}] ")
    console.print(f"{who}[red]error:[/] {shown(text)}")


@contextmanager
def rerun_on_interruption() -> Iterator[None]:
    """Let an interruption of a command that finds what it has finished say that the same command goes on."""
    try:
        yield
    except (Interrupted, Signalled) as stop:
        raise Interrupted(stop.signum, shlex.join(["deitctl", *sys.argv[1:]])) from stop


def print_json(value: Any) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(json_text(value) + "\n")


def json_text(value: Any) -> str:
    """Return one line of JSON, exact, with what a terminal would obey in escapes, and valid UTF-8 whatever the names."""
    text = json.dumps(value, ensure_ascii=False)
    return HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def print_records(stream: Iterable[Record]) -> int:
    """Print a line of JSON for each record as it comes, and return how many are of a failure."""
    failed = 0
    for record in stream:
        failed += record.error is not None
        sys.stdout.write(json_text(record.to_dict()) + "\n")
        sys.stdout.flush()
    return failed


def print_line(text: str) -> None:
    """Print a line on stdout, never wrapped: it is to be copied."""
    sys.stdout.write(printable(text) + "\n")


def print_table(
    title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], numeric: int = 1
) -> None:
    """Print a table on stdout; columns from `numeric` on are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for position, column in enumerate(columns):
        table.add_column(
            column, justify="right" if position >= numeric else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(
            *("\n".join(map(shown, cell.split("\n"))) for cell in row)
        )  # lines are made by ourselves
    console = Console(highlight=False)
    console.print(
        f"[bold]{shown(title)}[/]", soft_wrap=True
    )  # a table's own title would wrap at the table's width
    console.print(table)


def left_out_code(count: int) -> int:
    """Return the exit code of work in which `count` images could not be read.

    Under torchrun it is 0, because any other makes it stop the processes, and start them again if it may.
    """
    return 3 if count and "TORCHELASTIC_RUN_ID" not in os.environ else 0


def choose_format(asked: str | None, known: tuple[str, ...], piped: str) -> str:
    """Return the output format: as asked, or a table on a terminal and `piped` elsewhere; raise on an unknown one."""
    if asked is None:
        return "table" if sys.stdout.isatty() else piped
    if asked not in known:
        hint = did_you_mean(asked, known) or f"There are: {', '.join(known)}."
        raise ConfigError(f"There is no output format {asked!r}.", hint)
    return asked

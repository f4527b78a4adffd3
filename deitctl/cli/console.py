"""What commands print: data (JSON, tables, lines) on stdout, messages on stderr."""

from __future__ import annotations

import gc
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from deitctl.errors import DeitctlError, Interrupted, Signalled, UsageError, did_you_mean
from deitctl.records import to_json, to_object

if TYPE_CHECKING:  # Rich takes 0.1 s to import: where nothing is drawn, it is not
    from rich.console import Console

# What a terminal obeys or reorders instead of showing: control characters, directions of writing, half characters.
CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
UNBROKEN = re.compile(
    r"`[^`]*`|\bdeitctl [a-z-]+(?: (?:--\S+(?: [^-\s]\S*)?|[A-Z][A-Z/|.]*\b|\S*[/'=]\S*))*"
)
"""What stands in one line of a message: text in backticks, and a command with its options and paths."""
UNITS = {"mib": "MiB", "px": "pixels", "s": "s"}
KEPT = "What was finished is kept."
"""Of commands that write each result as it comes, when they are interrupted."""
MAX_TEXT = 4000
"""Characters of a text that is shown on a terminal."""


class Record(Protocol):
    """The result of a streaming command for one input."""

    @property
    def error(self) -> str | None: ...


def escape_control(text: str) -> str:
    """Return a text from anywhere as a terminal may have it: names are others' and could hold its commands."""
    text = text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " ..."
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def escape_markup(text: str) -> str:
    """Return a text for Rich, which takes nothing in it for markup."""
    from rich.markup import escape

    return escape(escape_control(text))


def make_stderr_console() -> Console:
    """Return the console for messages."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def wrap_words(text: str, width: int) -> str:
    """Return a text in lines of `width` characters, broken at spaces alone.

    A command stays in one line, so that it can be copied; what is longer than a line runs over its end.
    """
    glued = UNBROKEN.sub(lambda match: match[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        glued, max(width, 1), break_long_words=False, break_on_hyphens=False, expand_tabs=False
    )
    return "\n".join(lines).replace("\0", " ")


def print_message(console: Console, text: str, label: str = "", style: str = "") -> None:
    """Print a message after its label: on a terminal wrapped at words, elsewhere in one line."""
    from rich.text import Text

    text = escape_control(f"{label}: {text}" if label else text)
    if console.is_terminal:
        text = wrap_words(text, console.width)
    message = Text(text)
    message.stylize(style, 0, len(label) + 1 if label else 0)
    console.print(message, soft_wrap=True)


def print_next(command: Iterable[str], *, shape: str, quiet: bool = False) -> None:
    """Print the command that is useful next: on stderr, beside a table on a terminal, unless `quiet`.

    Args:
        command: its words after `deitctl`; those in capitals stand for what the user knows.
        shape: output format of this command.
        quiet: of this command.
    """
    is_first_process = os.environ.get("RANK", "0") == "0"
    if shape == "table" and not quiet and is_first_process and sys.stderr.isatty():
        line = escape_control(shlex.join(["deitctl", *command]))
        # never wrapped: it is to be copied
        make_stderr_console().print(f"[cyan]next:[/] {escape_markup(line)}")


def print_error(error: Exception) -> None:
    """Print an error as one line on stderr; after an interruption the last line is the command that resumes."""
    console = make_stderr_console()
    rank = os.environ.get("RANK", "0")
    if isinstance(error, Interrupted):
        if rank != "0":
            return
        console.print(f"[yellow]interrupted[/]{error.saved and f'. {escape_markup(error.saved)}'}")
        if error.resume_command:
            console.print(escape_markup(error.resume_command))
        return
    if isinstance(error, DeitctlError) and error.is_reported:
        return
    text = " ".join(str(error).split())
    print_message(console, text, "error" if rank == "0" else f"[process {rank}] error", "red")


@contextmanager
def rerun_on_interruption(saved: str = "") -> Iterator[None]:
    """Let an interruption say that the same command goes on, and what of it is `saved`, as a sentence."""
    try:
        yield
    except (Interrupted, Signalled) as stop:
        inner = stop.saved if isinstance(stop, Interrupted) else ""
        command = shlex.join(["deitctl", *sys.argv[1:]])
        raise Interrupted(stop.signum, command, inner or saved) from stop


def print_json(value: Any) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(json_text(value) + "\n")


def json_text(value: Any) -> str:
    """Return one line of JSON in valid UTF-8, with what a terminal would obey in escapes."""
    text = json.dumps(value, ensure_ascii=False)
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def print_records(records: Iterable[Record]) -> int:
    """Print a line of JSON for each record as it comes, and return how many are failures."""
    num_failed = 0
    for record in records:
        num_failed += record.error is not None
        sys.stdout.write(json_text(to_object(record)) + "\n")
        sys.stdout.flush()
    return num_failed


def print_line(text: str, indent: str = "") -> None:
    """Print a line on stdout, on a terminal wrapped at words."""
    text = escape_control(text)
    if sys.stdout.isatty():
        text = wrap_words(text, shutil.get_terminal_size().columns - len(indent))
    text = textwrap.indent(text, indent)
    sys.stdout.write(text + "\n")


def print_table(
    title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], numeric: int = 1
) -> None:
    """Print a table on stdout; columns from `numeric` on are right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for position, column in enumerate(columns):
        table.add_column(
            column, justify="right" if position >= numeric else "left", overflow="fold"
        )
    for row in rows:
        # the line breaks are ours; any other control character is escaped
        table.add_row(*("\n".join(map(escape_markup, cell.split("\n"))) for cell in row))
    console = Console(highlight=False)
    # a table's own title would wrap at the table's width
    title = escape_control(title)
    if console.is_terminal:
        title = wrap_words(title, console.width)
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(table)


def count_units(count: int, unit: str) -> str:
    """Return `1 run`, or `2 runs`."""
    return f"{count:,} {unit}" + ("" if count == 1 else "s")


def print_values(title: str, values: Mapping[str, Any]) -> None:
    """Print named values as a table, without those that are None or empty."""
    rows = [
        (_format_name(name), _format(value))
        for name, value in values.items()
        if value not in (None, "", [])
    ]
    print_table(title, ("what", "value"), rows, 2)


def print_record(title: str, record: Any) -> None:
    """Print the values of a result as a table, without those of results within it."""
    values = to_json(record)
    print_values(title, {k: v for k, v in values.items() if not isinstance(v, Mapping)})


def _format_name(name: str) -> str:
    """Return a key of the JSON in words: `free_memory_mib` becomes `free memory, MiB`."""
    words = name.replace(".", " ").split("_")
    unit = UNITS.get(words[-1]) if len(words) > 1 else None
    return " ".join(words) if unit is None else f"{' '.join(words[:-1])}, {unit}"


def _format(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def exit_code_for_unreadable(count: int) -> int:
    """Return the exit code of work in which `count` images could not be read.

    Under torchrun it is 0, because any other makes it stop the processes, and start them again if it may.
    """
    return 3 if count and "TORCHELASTIC_RUN_ID" not in os.environ else 0


def choose_format(output_format: str | None, formats: tuple[str, ...], piped: str = "json") -> str:
    """Return the output format: as given, or a table on a terminal and `piped` elsewhere.

    Raises:
        UsageError: an unknown format.
    """
    if output_format is None:
        return "table" if sys.stdout.isatty() else piped
    if output_format not in formats:
        hint = did_you_mean(output_format, formats) or f"There are: {', '.join(formats)}."
        raise UsageError(f"There is no output format {output_format!r}.", hint)
    return output_format


@contextmanager
def pause_gc() -> Iterator[None]:
    """Import and load in the block with the garbage collector off, and freeze the objects that exist at its end.

    Importing torch makes a million objects that live as long as the process: the collector would traverse them dozens
    of times during the imports, and once more at exit.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

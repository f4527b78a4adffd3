"""Messages: wrapped at words on a terminal, one line elsewhere; the next command for people alone."""

from __future__ import annotations

import inspect
import io
import json
import sys
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import deitctl
from deitctl.cli import console
from deitctl.cli.app import app
from deitctl.cli.console import print_message, print_next, wrap_words
from deitctl.cli.options import spell_options, spell_switches, take_options
from deitctl.cli.progress import make_reporter

MESSAGE = (
    "There is no dataset 'a/b'. Use `deitctl check a/b --fix-list x.csv` to see what is there."
)


def test_lines_break_at_spaces_and_never_in_a_command():
    lines = wrap_words(MESSAGE, 40).split("\n")
    assert lines == [
        "There is no dataset 'a/b'. Use",
        "`deitctl check a/b --fix-list x.csv` to",
        "see what is there.",
    ]
    assert wrap_words(MESSAGE, 20).split("\n")[2] == "`deitctl check a/b --fix-list x.csv`"
    lines = wrap_words("To go on: deitctl train --resume runs/a --lr 1 DATA. Then see it.", 30)
    assert lines.split("\n") == [
        "To go on:",
        "deitctl train --resume runs/a --lr 1 DATA.",
        "Then see it.",
    ]
    assert wrap_words("`x` and deitctl sweep does it", 20).split("\n")[0] == "`x` and"
    assert wrap_words("at /a/path-that/is-long.jpg", 8) == "at\n/a/path-that/is-long.jpg"


@pytest.mark.parametrize("width", [80, 120])
def test_a_message_is_wrapped_on_a_terminal_and_one_line_in_a_pipe(width):
    def show(is_terminal: bool) -> str:
        file = io.StringIO()
        screen = Console(
            file=file, width=width, force_terminal=is_terminal, color_system=None, soft_wrap=True
        )
        print_message(screen, f"{MESSAGE} {MESSAGE}", "error", "red")
        return file.getvalue()

    assert show(False) == f"error: {MESSAGE} {MESSAGE}\n"
    wrapped = show(True)
    assert max(map(len, wrapped.splitlines())) <= width
    assert wrapped.count("`deitctl check a/b --fix-list x.csv`") == 2
    assert " ".join(wrapped.split()) == f"error: {MESSAGE} {MESSAGE}"


def test_a_message_cannot_command_the_terminal_or_color_itself():
    file = io.StringIO()
    print_message(Console(file=file, force_terminal=True, soft_wrap=True), "[red]\x1b[2J", "error")
    assert "[red]\\x1b[2J" in file.getvalue()


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("shape", "quiet", "rank", "shown"),
    [
        ("table", False, "0", True),
        ("json", False, "0", False),
        ("table", True, "0", False),
        ("table", False, "1", False),
    ],
)
def test_the_next_command_is_for_people(shape, quiet, rank, shown, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    print_next(["eval", "a folder/val", "--model", "runs/x"], shape=shape, quiet=quiet)
    line = "next: deitctl eval 'a folder/val' --model runs/x\n"
    assert screen.getvalue() == (line if shown else "")
    monkeypatch.setattr("sys.stderr", io.StringIO())
    print_next(["eval"], shape="table")
    assert console.sys.stderr.getvalue() == "", "not in a pipe"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_bar_on_stderr_leaves_data_on_stdout_alone(is_terminal, monkeypatch):
    out, err = Screen() if is_terminal else io.StringIO(), Screen()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    with make_reporter(quiet=False).task("predicting", 2) as task:
        sys.stdout.write("data\n")
        task.advance()
    assert "predicting" in err.getvalue()
    # where both are the terminal, Rich writes what is printed above the bar
    assert (out.getvalue(), "data" in err.getvalue()) == (
        ("", True) if is_terminal else ("data\n", False)
    )


def test_options_are_spelled_as_they_were_given():
    words: list[list[str]] = []

    @take_options(deitctl.distill)
    def command(arguments: dict[str, Any]) -> None:
        words.append(spell_options(arguments))

    given = {
        "data": "my photos",
        "teacher": "regnety_160",
        "tau": 2.0,
        "compile": "off",
        "dist_token": True,
        "output": "runs/x",
    }
    command(**{**dict.fromkeys(inspect.signature(command).parameters), **given})
    assert " ".join(words[0]) == (
        "my photos --teacher regnety_160 --output runs/x --tau 2.0 --no-dist-token --compile off"
    )


@pytest.mark.parametrize(
    ("words", "spelled"),
    [
        ("--compile", "--compile=on"),
        ("--compile photos", "--compile=on photos"),
        ("--compile auto photos", "--compile auto photos"),
        ("--no-compile --seed 1", "--compile=off --seed 1"),
        ("-- --compile", "-- --compile"),
    ],
)
def test_options_of_a_value_may_be_written_as_switches(words, spelled):
    assert " ".join(spell_switches(words.split())) == spelled


def list_next(*arguments: str, monkeypatch) -> list[str]:
    """Return the commands that a command names as the next one."""
    named: list[str] = []

    def record(command, *, shape, quiet=False):
        if shape == "table" and not quiet:
            named.append(" ".join(command))

    for name in ("check", "pack", "models", "doctor", "push", "predict", "explain"):
        monkeypatch.setattr(f"deitctl.cli.{name}.print_next", record)
    result = CliRunner().invoke(app, [*arguments, "--format", "table"])
    assert result.exit_code in (0, 3), result.exception
    return named


def test_commands_end_with_the_next_one(image_folder, tmp_path, monkeypatch):
    sound = str(image_folder({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1}))
    broken = image_folder({"train/a": 2, "train/b": 2}, "broken")
    (broken / "train" / "a" / "0.png").write_bytes(b"no image")
    pack = str(tmp_path / "x")

    def run(*arguments: str) -> list[str]:
        return list_next(*arguments, monkeypatch=monkeypatch)

    assert run("check", sound) in (
        [f"train {sound}"],
        [f"check {sound} --fix-list fixes.csv"],
    )
    assert run("check", "digits") == ["train digits"]
    assert run("check", str(broken)) == [f"check {broken} --fix-list fixes.csv"]
    assert run("pack", sound, pack) == [f"train {pack}"]
    assert run("pack", sound, pack, "--verify") == [f"train {pack}"]
    assert run("pack", sound, pack, "--quiet") == []
    assert run("models", "deit_tiny") == ["predict IMAGE --model deit_tiny"]
    assert run("doctor") == ["bench --model deit_tiny"]


def test_json_on_stdout_is_all_there_is(monkeypatch):
    result = CliRunner().invoke(app, ["models", "deit_tiny", "--format", "json"])
    assert json.loads(result.stdout)["models"]
    assert result.stderr == ""

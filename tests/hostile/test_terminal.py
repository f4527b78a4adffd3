"""Names that would command a terminal or a spreadsheet: docs/security.md, "Output"."""

from __future__ import annotations

import csv
import io
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.cli import console, predict
from deitctl.cli.console import escape_control, json_text, print_error, print_line, print_table
from deitctl.cli.progress import LineReporter, make_reporter
from deitctl.errors import DeitctlError
from deitctl.inference.classifier import Prediction, ScoredClass
from deitctl.paths import write_json

EVIL = (
    "a\x1b]0;pwned\x07\x1b[2J\x9b31m\r\nerror: \u202egnp.exe\u2066\u200f[red]b[/red]\udcff\x00\x7f"
)
ORDERS = {
    chr(c) for c in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
} - {"\n"}
ORDERS |= set("\u200e\u200f\u2028\u2029\u061c\ufeff")


def stream() -> list[Prediction]:
    good = Prediction(EVIL, (ScoredClass(0, EVIL, 0.75), ScoredClass(1, "=1+1", 0.25)), None)
    return [good, Prediction("=cmd|' /C calc'!A0", (), f"{EVIL} cannot be read.")]


def assert_harmless(text: str, lines: int) -> None:
    assert not ORDERS & set(text)
    assert text.count("\n") == lines
    text.encode()


@given(st.text())
def test_what_is_printable_obeys_nobody_and_is_left_alone_when_harmless(text):
    assert not (ORDERS | {"\n"}) & set(escape_control(text))
    assert escape_control("Käfer 猫 🐈 é\u0301 ~ \\") == "Käfer 猫 🐈 é\u0301 ~ \\"


def test_a_table_of_predictions_shows_names_in_escapes(capsys):
    assert predict._print_table(stream()) == 1
    out = capsys.readouterr().out
    assert_harmless(out, 5)
    assert r"a\x1b]0;pwned\x07\x1b[2J\x9b31m\r\nerror: \u202egnp.exe" in out
    assert "[red]b[/red]" in out


@pytest.mark.parametrize("write", [console.print_records, predict._print_json])
def test_json_is_exact_and_harmless(write, capsys):
    write(stream())
    out = capsys.readouterr().out
    assert_harmless(out, out.count("\n"))
    records = (
        json.loads(out)
        if write is predict._print_json
        else [json.loads(line) for line in out.splitlines()]
    )
    assert records[0]["input"] == EVIL
    assert records[0]["predictions"][0]["label"] == EVIL


@given(st.text(), st.text())
def test_json_says_the_same_as_json_does(name, value):
    assert json.loads(json_text({name: [value]})) == {name: [value]}


def test_a_spreadsheet_finds_no_formula(capsys):
    rows = [
        Prediction(n, (ScoredClass(-1, n, 1e-9),), None)
        for n in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "plain", "a=b")
    ]
    predict._print_csv([*rows, Prediction("=x", (), "-broken")])
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline="")))
    for row in table:
        assert not row["input"].startswith(predict.FORMULA)
        assert not row["label"].startswith(predict.FORMULA)
        assert not row["error"].startswith(predict.FORMULA)
    assert [r["input"] for r in table[-3:]] == ["plain", "a=b", "'=x"]
    assert table[0]["index"] == "-1", "numbers are ours and stay numbers"


def test_a_spreadsheet_on_a_terminal_is_harmless_and_exact_in_a_file(capsys, monkeypatch):
    name = EVIL.replace("\udcff", "")
    rows = [Prediction(name, (ScoredClass(0, name, 0.75),), None), Prediction(name, (), name)]
    predict._print_csv(rows)
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline="")))
    assert [r["input"] for r in table] == [name, name]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    predict._print_csv(rows)
    assert_harmless(capsys.readouterr().out, 3)


def test_talk_of_all_kinds_is_harmless(capsys):
    print_error(DeitctlError(EVIL, EVIL))
    reporter = make_reporter(False)
    assert isinstance(reporter, LineReporter)
    reporter.note(EVIL)
    reporter.warn(EVIL)
    with reporter.task(EVIL, 3, EVIL) as task:
        task.last_line_s -= 10  # type: ignore[attr-defined]
        task.advance(1, loss=EVIL)
    assert_harmless(capsys.readouterr().err, 4)


def test_tables_and_lines_to_copy_are_harmless(capsys):
    print_table(EVIL, ("x", "y"), [(EVIL, EVIL)])
    print_line(EVIL)
    out = capsys.readouterr().out
    assert_harmless(out, out.count("\n"))


def test_a_message_without_end_has_one(capsys):
    print_error(DeitctlError("x" * 10**7))
    assert len(capsys.readouterr().err) < 5000


def test_a_file_name_that_is_no_text_is_kept_in_a_record(tmp_path):
    write_json(tmp_path / "r.json", {"unreadable": [EVIL, "\ud800"], "ä": "ä"})
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["unreadable"] == [
        EVIL,
        "\ud800",
    ]


def test_the_command_line_sends_no_command_of_a_name_to_the_terminal(monkeypatch, capsys, tmp_path):
    from deitctl.cli.app import run_commands

    monkeypatch.setattr("signal.signal", lambda *_: None)
    for arguments in (
        ["eval", EVIL.replace("\0", "")],
        ["predict", "x.png", "--model", "deit\x1b[2J"],
        ["train", "--config", f"{tmp_path}/\x1b[2J"],
    ):
        monkeypatch.setattr(sys, "argv", ["deitctl", *arguments])
        with pytest.raises(SystemExit) as stop:
            run_commands()
        assert stop.value.code == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("error:") >= 1
        assert not ORDERS & set(captured.err)

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from deitctl.cli.app import app, main

COMMANDS = (
    "train",
    "distill",
    "eval",
    "predict",
    "export",
    "push",
    "verify",
    "teach",
    "compare",
    "bench",
    "check",
    "pack",
    "explain",
    "models",
    "doctor",
)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([c, "--help"] for c in COMMANDS)]
)
def test_help_answers_without_importing_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from deitctl.cli.app import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'timm', 'torchvision', 'numpy', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_overview_needs_no_rich_and_cuts_no_sentence_off() -> None:
    code = (
        "import sys; from deitctl.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not [m for m in sys.modules if m.partition('.')[0] == 'rich']"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "..." not in done.stdout.partition("Commands:")[2]
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)


def test_nothing_asked_for_shows_the_overview_and_is_a_wrong_command_line() -> None:
    result = CliRunner().invoke(app, [])
    assert (result.exit_code, "Commands:" in result.output) == (2, True)


def test_every_command_shows_an_example() -> None:
    runner = CliRunner()
    for command in COMMANDS:
        result = runner.invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert f"Example: deitctl {command}" in result.output


def test_train_and_distill_share_their_options() -> None:
    commands = {c.name: c for c in typer.main.get_command(app).commands.values()}  # type: ignore[attr-defined]
    names = {c: {p.name for p in commands[c].params} for c in ("train", "distill")}
    assert names["train"] - names["distill"] == {"model", "replay"}
    assert names["distill"] - names["train"] == {
        "teacher",
        "student",
        "teacher_weights",
        "teacher_img_size",
        "teacher_input",
        "teacher_cache",
        "adapt",
        "mode",
        "alpha",
        "tau",
        "reduction",
        "no_token",
        "views",
        "view_seed",
        "words_topk",
        "force_teacher",
    }


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["deitctl", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["predict", "x.jpg", "--model", "deit_tinny"], 1, "Did you mean 'deit_tiny'"),
        (["predict", "x.jpg", "--format", "xml"], 1, "There are: table, json, jsonl, csv"),
        (["explain", "x.jpg", "--model", "deit_tinny"], 1, "Did you mean 'deit_tiny'"),
        (["explain", "x.jpg", "--format", "csv"], 1, "There are: table, jsonl"),
        (["explain", "x.jpg", "--method", "lime"], 1, "There are: rollout, gradient, last-layer"),
        (["predict"], 2, "Missing argument"),
        (
            ["predict", "x.jpg", "--model", "deit_tiny", "--img-size", "100000"],
            1,
            "1 to 2048 pixels a side",
        ),
        (["predict", "x.jpg", "--model", "gone.onnx"], 1, "There is no ONNX file 'gone.onnx'"),
        (
            ["predict", "x.jpg", "--format", "csv", "--image"],
            1,
            "--image goes with a table, not with csv",
        ),
        (["eval", "--model", "deit_tiny", "--img-size", "100000"], 1, "1 to 2048 pixels a side"),
        (["eval", "/nowhere"], 1, "There is no data set '/nowhere'"),
        (["eval", "--model", "deit_tiny"], 1, "--weights FILE"),
        (["bench", "/nowhere"], 1, "There is no data set '/nowhere'"),
        (["bench", "--seconds", "0"], 1, "a stage takes more than 0 and at most 600 seconds"),
        (["bench", "digits", "--model", "deit_tinny"], 1, "Did you mean 'deit_tiny'"),
        (["bench", "digits", "--teacher", "regnety_16"], 1, "Did you mean 'regnety_160'"),
        (["bench", "--batch-size", "many"], 2, "neither a number from 1 on nor auto"),
        (["check", "/nowhere"], 1, "There is no data set '/nowhere'"),
        (["check", "digits", "--write-table", "table.txt"], 1, "must end in .csv"),
        (["check", "digits", "--ground-truth", "labels.txt"], 1, "cannot be read: No such file"),
        (["pack", "/nowhere", "x.pack"], 1, "There is no data set '/nowhere'"),
        (["pack", "digits", "x.tar"], 1, "must end in .pack"),
        (["pack", "digits", "x.pack", "--check"], 1, "There is no x.pack"),
        (["pack", "digits", "x.pack", "--check", "--raw"], 1, "--check writes nothing"),
        (["pack", "digits", "x.pack", "--max-size", "0"], 2, "Invalid value for '--max-size'"),
        (["pack", "digits"], 2, "Missing argument"),
        (["train", "/nowhere"], 1, "There is no data set"),
        (["train", "--set", "epoch=3"], 1, "Did you mean"),
        (["train", "--resume", "/nowhere"], 1, "is not a run"),
        (["train", "--device", "cuda:99"], 1, "CUDA"),
        (["distill", "--mode", "harder"], 1, "There is no distillation mode"),
        (["distill", "--teacher", "regnety_16"], 1, "regnety_160"),
        (["export", "deit_tiny", "--to", "onnxx"], 1, "Did you mean 'onnx'"),
        (["export", "deit_tiny", "--to", "onnx", "--quantize", "int4"], 1, "Did you mean 'int8'"),
        (
            ["export", "deit_tiny", "--to", "onnx", "--runtime", "x.tgz"],
            1,
            "--runtime is for --to web",
        ),
        (
            ["export", "deit_tiny", "--to", "web", "--runtime", "gone.tgz"],
            1,
            "gone.tgz cannot be read",
        ),
        (
            ["export", "deit_tiny", "--to", "torch", "--no-preprocess"],
            1,
            "torch has no bare variant",
        ),
        (["export", "deit_tiny", "--to", "timm", "--any-size"], 1, "--any-size is for --to onnx"),
        (["eval", "--model", "gone.onnx"], 1, "There is no ONNX file 'gone.onnx'"),
        (["push", "/nowhere", "me/mine", "--dry-run"], 1, "There is nothing at /nowhere"),
        (
            ["push", "/nowhere", "mine", "--dry-run"],
            1,
            "'mine' is no repository of the hub: its names are OWNER/NAME",
        ),
        (
            ["push", "/nowhere", "me/mine"],
            1,
            "There is no token of the hub here. Log in: hf auth login; or set HF_TOKEN",
        ),
    ],
)
def test_a_mistake_is_one_line_and_a_code(
    arguments: list[str],
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: object,
) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "400")
    assert run(arguments, monkeypatch) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert "Traceback" not in captured.err
    if code == 1:
        assert sum(line.startswith("error:") for line in captured.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "what"),
    [("--views=3", "views"), ("--teacher=x", "teacher"), ("--no-token", "no token")],
)
def test_a_configuration_is_not_contradicted_in_silence(
    option: str, what: str, tmp_path: Path
) -> None:
    """An option that did nothing would be worse than one that is refused."""
    (tmp_path / "run.toml").write_text("")
    result = CliRunner().invoke(app, ["distill", "--config", str(tmp_path / "run.toml"), option])
    assert f"has its own {what}" in str(result.exception)

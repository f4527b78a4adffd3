"""The command: formats as they are computed, codes, images, and nothing imported that is not needed."""

from __future__ import annotations

import csv
import gc
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deitctl.cli.app import app
from deitctl.cli.console import pause_gc
from deitctl.errors import Interrupted, Signalled
from deitctl.events import SilentReporter
from deitctl.models.build import build_model
from deitctl.models.checkpoint_io import save_model
from deitctl.models.introspect import describe_layers, pin_img_size


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A DeiT-tiny at 32 pixels with three named classes."""
    built = build_model(
        "deit_tiny",
        class_names=("ant", "bee", "cow"),
        img_size=32,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=None,
        reporter=SilentReporter(),
    )
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(
        folder,
        built.model.state_dict(),
        pin_img_size(built.model, built.model_config),
        describe_layers(built.model),
    )
    return str(folder)


@pytest.fixture
def inputs(image_folder) -> list[str]:
    root = image_folder({"in": 3})
    (root / "in" / "1.png").write_bytes(b"no image")
    return [str(root / "in" / f"{n}.png") for n in range(3)]


def test_every_format_says_the_same(model, inputs):
    def run(shape: str) -> str:
        result = CliRunner().invoke(app, ["predict", *inputs, "--model", model, "--format", shape])
        assert result.exit_code == 3
        return result.stdout

    records = json.loads(run("json"))
    assert [json.loads(line) for line in run("jsonl").splitlines()] == records
    assert [r["input"] for r in records] == inputs
    assert [r["error"] is None for r in records] == [True, False, True]
    rows = list(csv.DictReader(io.StringIO(run("csv"), newline="")))
    flat = [
        (r["input"], g["label"], f"{g['score']:.6f}") for r in records for g in r["predictions"]
    ]
    assert [(r["input"], r["label"], r["score"]) for r in rows if not r["error"]] == flat
    assert [r["input"] for r in rows if r["error"]] == [inputs[1]]
    table = run("table")
    assert table.count(inputs[1]) == 1, "an unreadable path is said once"
    assert all(f"{100 * g['score']:5.1f} %" in table for r in records for g in r["predictions"])


@pytest.mark.parametrize("to_file", [False, True])
def test_the_last_line_says_what_was_passed_over_and_what_failed(model, inputs, tmp_path, to_file):
    folder = Path(inputs[0]).parent
    for name in ("a.cr2", "b.cr2", "labels.txt"):
        (folder / name).write_bytes(b"x")
    out = ["--output", str(tmp_path / "out.jsonl")] if to_file else ["--format", "jsonl"]
    result = CliRunner().invoke(app, ["predict", str(folder), "--model", model, "--quiet", *out])
    assert result.exit_code == 3
    assert " ".join(result.stderr.split()) == (
        "warning: 2 files are not read: 2 .cr2 (develop them to JPEG or PNG, by darktable for example). "
        "1 of 3 inputs could not be classified; their records say why."
    )


def test_where_all_was_read_there_is_no_such_line(model, image_folder):
    folder = str(image_folder({"in": 2}))
    result = CliRunner().invoke(app, ["predict", folder, "--model", model, "--quiet"])
    assert (result.exit_code, result.stderr) == (0, "")


def test_nothing_to_say_is_valid_json(model, tmp_path):
    result = CliRunner().invoke(
        app, ["predict", "-", "--model", model, "--format", "json"], input="\n\n"
    )
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])


def test_a_prediction_on_stdin_comes_before_the_next_name_is_read(model, inputs):
    command = [
        sys.executable,
        "-m",
        "deitctl",
        "predict",
        "-",
        "--model",
        model,
        "--format",
        "jsonl",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for name in inputs:
            child.stdin.write(f"{name}\n")
            child.stdin.flush()
            assert json.loads(child.stdout.readline())["input"] == name
        child.stdin.close()
        assert child.wait() == 3


def test_an_image_belongs_to_a_table_on_a_terminal(model, inputs):
    refused = CliRunner().invoke(
        app, ["predict", inputs[0], "--model", model, "--format", "jsonl", "--show-image"]
    )
    assert "goes with a table" in str(refused.exception)
    unable = CliRunner().invoke(
        app, ["predict", inputs[0], "--model", model, "--format", "table", "--show-image"]
    )
    assert unable.exit_code == 0
    assert "▀" not in unable.stdout
    assert "need a terminal with 256 colors" in unable.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of our own is POSIX")
@pytest.mark.parametrize(
    ("arguments", "environment", "images"),
    [
        ([], {}, 1),
        (["--no-show-image"], {}, 0),
        ([], {"NO_COLOR": "1"}, 0),
        ([], {"TERM": "dumb"}, 0),
        (["second"], {}, 0),
        (["second", "--show-image"], {}, 2),
    ],
    ids=str,
)
def test_on_a_terminal_one_image_is_shown_or_all_that_are_requested(
    arguments, environment, images, model, inputs, monkeypatch, capsys
):
    from rich.console import Console

    from deitctl.cli import prediction_table as table

    where = {"TERM": "xterm-256color", "COLORTERM": "truecolor", **environment}
    console = Console(force_terminal=True, width=100, _environ=where)
    monkeypatch.setattr(table, "make_stdout_console", lambda: console)
    names = [inputs[2] if a == "second" else a for a in arguments]
    result = CliRunner().invoke(
        app, ["predict", inputs[0], *names, "--model", model, "--format", "table"]
    )
    assert result.exit_code == 0, result.exception
    assert result.stdout.count("▀") == images * 32 * 16


def test_our_models_predict_without_what_they_do_not_need(model, inputs):
    """Nor with parts of torch that `import torch` leaves out, of which one wrong call imports hundreds."""
    code = (
        "import sys, torch; plain = {m for m in sys.modules if m.startswith('torch')}\n"
        "from deitctl.cli.app import app\n"
        f"try: app(['predict', {inputs[0]!r}, '--model', {model!r}, '--format', 'jsonl'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "needless = {'timm', 'torchvision', 'matplotlib', 'sklearn', 'scipy', 'onnx', 'onnxruntime', 'pyarrow',"
        " 'tomli_w', 'huggingface_hub', 'rich.console', 'deitctl.data.loader', 'deitctl.inference.download'}\n"
        "assert not needless & set(sys.modules), needless & set(sys.modules)\n"
        "more = {m for m in sys.modules if m.startswith('torch')} - plain; assert len(more) < 5, more"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("fails", [False, True])
def test_garbage_is_collected_again_after_the_start(fails):
    frozen = gc.get_freeze_count()
    with pytest.raises(KeyError) if fails else pause_gc(), pause_gc():
        assert not gc.isenabled()
        if fails:
            raise KeyError
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen
    gc.unfreeze()


def test_a_reader_that_has_enough_ends_it_without_a_word(model, inputs, tmp_path: Path):
    names = tmp_path / "names"
    names.write_text(f"{inputs[0]}\n" * 400)
    command = f"{sys.executable} -m deitctl predict - --model {model} < {names} | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["input"] == inputs[0]
    assert "rror" not in done.stderr


def predict_to(path: Path, option: str, model: str, *arguments: str) -> int:
    names = ["predict", *arguments, "--model", model, "--batch-size", "2", option, str(path)]
    result = CliRunner().invoke(app, names)
    assert result.stdout == ""
    return result.exit_code


def test_a_file_cut_anywhere_is_continued_to_what_it_would_have_been(model, inputs, tmp_path):
    """The first input twice, and one that cannot be read: one record an input, whatever it says."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    names = [*inputs, inputs[0], inputs[2]]
    assert predict_to(whole, "--output", model, *names) == 3
    records = whole.read_bytes()
    assert [json.loads(line)["input"] for line in records.splitlines()] == names
    for size in (0, 1, len(records) // 3, len(records) // 2, len(records) - 1, len(records)):
        cut.write_bytes(records[:size])
        assert predict_to(cut, "--resume", model, *names) == 3, "errors of before count too"
        assert cut.read_bytes() == records
    cut.unlink()
    assert predict_to(cut, "--resume", model, *names) == 3, "a missing file is begun"
    assert cut.read_bytes() == records


def test_what_stdout_had_can_be_continued(model, inputs, tmp_path):
    path = tmp_path / "out.jsonl"
    arguments = ["predict", *inputs, "--model", model, "--batch-size", "2"]
    printed = CliRunner().invoke(app, [*arguments, "--format", "jsonl"])
    path.write_text(printed.stdout.splitlines()[0] + "\n")
    assert predict_to(path, "--resume", model, *inputs) == 3
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        json.loads(line) for line in printed.stdout.splitlines()
    ]


def test_an_interruption_says_how_to_continue(model, inputs, tmp_path, monkeypatch):
    from deitctl.inference.prediction_file import PredictionFile

    def interrupt(*_: object) -> None:
        raise Signalled(15)

    monkeypatch.setattr(PredictionFile, "append", interrupt)
    monkeypatch.setattr("sys.argv", ["deitctl", "predict", "a b", "--output", "x.jsonl"])
    result = CliRunner().invoke(
        app, ["predict", *inputs, "--model", model, "--output", str(tmp_path / "x.jsonl")]
    )
    assert isinstance(result.exception, Interrupted)
    assert result.exception.resume_command == "deitctl predict 'a b' --resume x.jsonl"


def test_the_next_command_explains_what_was_classified(model, inputs, monkeypatch):
    """With the same model, and the first image that could be read; an ONNX file cannot be explained."""
    named: list[str] = []
    monkeypatch.setattr(
        "deitctl.cli.predict.print_next", lambda command, **_: named.append(shlex.join(command))
    )
    arguments = ["--model", model, "--format", "table"]
    CliRunner().invoke(app, ["predict", inputs[1], inputs[2], *arguments])
    assert named == [f"explain {inputs[2]} --model {model}"]
    CliRunner().invoke(app, ["predict", inputs[1], *arguments])
    assert len(named) == 1, "nothing was classified"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--output", "a.jsonl", "--resume", "b.jsonl"], "Leave --output out"),
        (["--output", "a.jsonl", "--format", "csv"], "Leave --format csv out"),
        (["--output", "a.csv"], "they end in .jsonl"),
    ],
)
def test_a_file_of_records_goes_with_no_other_output(options, says, model, inputs):
    result = CliRunner().invoke(app, ["predict", *inputs, "--model", model, *options])
    assert says in str(result.exception)


def test_progress_goes_to_stderr_and_not_for_a_single_image(model, inputs):
    arguments = ["--model", model, "--format", "jsonl"]
    several = CliRunner().invoke(app, ["predict", *inputs, *arguments])
    assert [json.loads(line)["input"] for line in several.stdout.splitlines()] == inputs
    assert re.fullmatch(
        r"3 images in \d+\.\d s, \d+\.\d images/s\.\n1 of 3 inputs .*\n", several.stderr
    )
    assert CliRunner().invoke(app, ["predict", inputs[0], *arguments]).stderr == ""
    assert CliRunner().invoke(app, ["predict", *inputs, "--quiet", *arguments]).stderr == ""

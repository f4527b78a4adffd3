from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import deitctl
from deitctl import api
from deitctl import settings as settings_module
from deitctl.cli import completion
from deitctl.cli.app import app, run_commands
from deitctl.cli.options import take_options
from deitctl.settings import list_settings

COMMANDS = (
    "train",
    "distill",
    "eval",
    "predict",
    "export",
    "push",
    "verify",
    "cache-teacher",
    "rank-teachers",
    "sweep",
    "runs",
    "reproduce",
    "bench",
    "check",
    "pack",
    "explain",
    "models",
    "recipes",
    "doctor",
)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([c, "--help"] for c in COMMANDS)]
)
def test_help_works_without_importing_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from deitctl.cli.app import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'timm', 'torchvision', 'numpy', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_overview_imports_no_rich_and_cuts_no_sentence_off() -> None:
    code = (
        "import sys; from deitctl.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert not [m for m in sys.modules if m.partition('.')[0] == 'rich']"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "..." not in done.stdout.partition("Commands:")[2]
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)


def test_no_command_shows_the_overview_and_is_a_usage_error() -> None:
    result = CliRunner().invoke(app, [])
    assert (result.exit_code, "Commands:" in result.output) == (2, True)


def test_every_command_shows_an_example() -> None:
    runner = CliRunner()
    for command in COMMANDS:
        result = runner.invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert f"Example: deitctl {command}" in result.output


def list_options(command: str) -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return {option.name: option for option in group.commands[command].params}


def test_train_and_distill_share_their_options() -> None:
    train, distill = set(list_options("train")), set(list_options("distill"))
    teacher = {
        s.keyword for s in list_settings() if s.name.startswith("distill.") and s.option.panel
    }
    assert train - distill == {"model", "replay"}
    assert distill - train == {"student", *teacher}


FUNCTIONS = {
    "train": deitctl.train,
    "distill": deitctl.distill,
    "cache-teacher": deitctl.cache_teacher,
    "rank-teachers": deitctl.rank_teachers,
    "runs": deitctl.list_runs,
    "eval": deitctl.evaluate,
    "bench": deitctl.bench,
    "check": deitctl.check,
    "pack": deitctl.pack,
    "predict": deitctl.predict,
    "explain": deitctl.explain,
    "export": deitctl.export,
    "verify": deitctl.verify,
    "push": deitctl.push,
    "doctor": deitctl.collect_env,
}
CLI_ONLY = {"output_format", "quiet", "dry_run", "changes", "show_image", "replay"}
OWN_OPTIONS = {
    "cache-teacher": {"verify", "num_images"},
    "pack": {"verify"},
    "predict": {"output", "resume"},
    "runs": {"compare"},
}
"""Options of a command that stand for another function, or for what it prints."""
API_ONLY = {"reporter", "overrides", "stdin", "keep_pixels", "command", *api.FUNCTIONS}


@pytest.mark.parametrize("command", FUNCTIONS)
def test_options_are_the_keywords_of_the_python_function_with_the_same_defaults(
    command: str,
) -> None:
    options = list_options(command)
    keywords = inspect.signature(FUNCTIONS[command]).parameters
    own = OWN_OPTIONS.get(command, set())
    assert options.keys() - CLI_ONLY - own == keywords.keys() - API_ONLY - CLI_ONLY
    for name in options.keys() & keywords.keys():
        default = keywords[name].default
        if default is inspect.Parameter.empty or name in ("model", "protocol", "inputs", "runs"):
            continue
        # None: the command chooses, as the function does by its own default
        assert options[name].default in (
            str(default) if isinstance(default, Path) else default,
            None,
        ), name


def test_a_sweep_has_the_options_of_its_function_and_of_distillation() -> None:
    options = list_options("sweep").keys() - CLI_ONLY
    own = inspect.signature(deitctl.sweep).parameters.keys() - API_ONLY - CLI_ONLY - {"settings"}
    runs = list_options("distill").keys() - CLI_ONLY
    assert options == own | {"model"} | (runs - {"student", "resume", "more_epochs", "config"})


def test_the_command_that_was_renamed_names_the_new_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", "photos/", "--seeds", "3"], monkeypatch) == 2
    now = "Use: deitctl sweep --preset deit-table3 photos/ --seeds 3"
    assert now in " ".join(capsys.readouterr().err.split())


def test_every_option_of_training_is_a_setting_that_is_declared_once() -> None:
    names = [s.keyword for s in list_settings() if s.option.panel]
    assert len(names) == len(set(names))
    special = {"data", "student", "recipe", "resume", "more_epochs", "config", *CLI_ONLY}
    assert list_options("distill").keys() | {"model"} == {*names, *special} - {
        "show_image",
        "replay",
    }


@pytest.mark.parametrize("command", ["eval", "predict", "explain", "export", "verify", "push"])
def test_an_option_that_training_has_too_has_the_same_help(command: str) -> None:
    others = list_options(command)
    settings = settings_module.list_options()
    shared = {"weights", "workers", "device", "precision", "img_size", "on_bad_image"}
    for name in shared & others.keys():
        assert others[name].help.partition(" Default: ")[0] == settings[name].option.help


def test_arguments_have_the_order_of_the_functions_keywords() -> None:
    """So that the first one that is refused does not change with PYTHONHASHSEED."""
    order: list[str] = []

    @take_options(deitctl.distill)
    def command(arguments: dict[str, Any]) -> None:
        order.extend(arguments)

    command(**dict.fromkeys(inspect.signature(command).parameters, "x"))
    keywords = [n for n in inspect.signature(deitctl.distill).parameters if n not in API_ONLY]
    assert order == keywords


def test_a_command_is_built_alone() -> None:
    """Typer would build the options of every command for each call."""
    code = (
        "import inspect, sys, typer.main\n"
        "from deitctl.cli.app import app\n"
        "built, build = [], typer.main.get_command_from_info\n"
        "def count(info, **details): built.append(info.name); return build(info, **details)\n"
        "typer.main.get_command_from_info = count\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(built, file=sys.stderr)"
    )
    for arguments, built in ((["--help"], []), (["doctor", "--help"], ["doctor"])):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stderr.strip() == str(built)


def test_help_has_the_everyday_options_first() -> None:
    """Typer prints the panels in the order of their first option, after the one without a name."""
    result = CliRunner().invoke(app, ["distill", "--help"], env={"COLUMNS": "80"})
    panels = re.findall(r"─ (\w+) ─", result.output)
    assert panels == [
        "Arguments",
        "Options",
        "Teacher",
        "Optimization",
        "Machine",
        "Resuming",
        "Output",
    ]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_cuts_no_option_off(command: str, columns: int) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": str(columns)})
    assert "…" not in result.output
    assert max(map(len, result.output.splitlines())) <= columns
    for option in list_options(command).values():
        if option.param_type_name == "option":
            assert all(flag in result.output for flag in (*option.opts, *option.secondary_opts))


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("train --model deit_sm", "deit_small"),
        ("distill --teacher deit_base_d", "deit_base_distilled"),
        ("train --recipe paper-", "paper-384"),
        ("train --set augment.mix", "augment.mixup="),
        ("distill --set distill.al", "distill.alpha="),
        ("distill --teacher regnety_16", "regnety_160"),
        ("sweep --teacher regnety_16", "regnety_160"),
        ("sweep --preset deit-t", "deit-table3"),
        ("sweep --vary optim.weight", "optim.weight_decay="),
        ("train --resume au", "auto"),
        ("explain --method ro", "rollout"),
        ("train --device cu", "cuda"),
        ("train --precision bf", "bf16"),
        ("distill --reduction batch", "batchmean"),
        ("export --to on", "onnx"),
        ("export runs/x --quantize int8-", "int8-static"),
        ("predict --head avg-l", "avg-logits"),
        ("predict --format js", "jsonl"),
        ("eval --protocol na", "native"),
        ("train flow", "flowers102"),
    ],
)
def test_the_shell_completes_values_that_exist(line: str, value: str) -> None:
    """As bash asks for it, through the variable that Typer's script sets; nothing heavy is imported."""
    code = (
        "import sys\nfrom deitctl.cli.app import app\n"
        "try: app(prog_name='deitctl')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    words = f"deitctl {line}"
    completion = {
        "_DEITCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | completion,
    )
    assert value in done.stdout.split()


def test_completed_values_are_those_that_there_are() -> None:
    from deitctl.exporters.formats import FORMATS
    from deitctl.sweeps.presets import PRESETS

    assert set(completion.EXPORT_FORMATS) == set(FORMATS)
    assert set(completion.PRESETS) == set(PRESETS)


def test_a_teachers_settings_are_completed_where_there_is_a_teacher() -> None:
    for command, is_there in (("train", False), ("distill", True), ("sweep", True)):
        context: Any = SimpleNamespace(info_name=command)
        names = completion.complete_set(context, "")
        assert ("distill.alpha=" in names) is is_there
        assert "augment.mixup=" in names


def test_runs_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(completion.list_runs()) == []
    for name in ("a", "b", "no-run"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "runs" / name / "run.toml").touch()
    assert sorted(completion.complete_resume("runs/")) == ["runs/a", "runs/b"]
    assert "runs/a" in completion.complete_model("runs/a")


@pytest.mark.parametrize("command", COMMANDS)
def test_defaults_are_said_in_one_way(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert "[default:" not in result.output
    for option in list_options(command).values():
        if isinstance(option.default, int | float | str) and option.default not in ("", False):
            assert "Default: " in option.help, option.name


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["deitctl", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_commands()
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["predict", "x.jpg", "--model", "deit_tinny"], 1, "Did you mean 'deit_tiny'"),
        (["predict", "x.jpg", "--format", "xml"], 2, "There are: table, json, jsonl, csv"),
        (["explain", "x.jpg", "--model", "deit_tinny"], 1, "Did you mean 'deit_tiny'"),
        (["explain", "x.jpg", "--format", "csv"], 2, "There are: table, jsonl"),
        (["explain", "x.jpg", "--method", "lime"], 2, "There are: gradient, rollout, last-layer"),
        (["predict"], 2, "Missing argument"),
        (
            ["predict", "x.jpg", "--model", "deit_tiny", "--img-size", "100000"],
            2,
            "--img-size = 100000 is out of range: it must be at least 0 and at most 2,048",
        ),
        (["predict", "x.jpg", "--model", "gone.onnx"], 1, "There is no ONNX file 'gone.onnx'"),
        (
            ["predict", "x.jpg", "--format", "csv", "--show-image"],
            2,
            "--show-image goes with a table, not with csv",
        ),
        (["eval", "--model", "deit_tiny", "--img-size", "100000"], 2, "at most 2,048"),
        (["eval", "/nowhere"], 1, "There is no dataset '/nowhere'"),
        (["eval", "--model", "deit_tiny"], 1, "--weights FILE"),
        (["sweep", "/nowhere", "--seeds", "2"], 1, "There is no dataset '/nowhere'"),
        (["sweep", "digits"], 1, "Nothing is varied. Name it, --vary"),
        (["sweep", "digits", "--vary", "optim.lr"], 2, "'optim.lr' is not key=values"),
        (["sweep", "digits", "--vary", "optim.lrr=1"], 2, "Did you mean 'optim.lr'"),
        (
            ["sweep", "digits", "--preset", "table3"],
            2,
            "There are: deit-table3, deit-table2, deit-in-small, beyond-in-small",
        ),
        (["runs", "/nowhere"], 1, "There is no folder '/nowhere'"),
        (["runs", "/nowhere", "--compare"], 1, "Name two: deitctl runs A B"),
        (["bench", "/nowhere"], 1, "There is no dataset '/nowhere'"),
        (["bench", "--seconds", "0"], 1, "use more than 0 and at most 600 for a stage"),
        (["bench", "digits", "--model", "deit_tinny"], 1, "Did you mean 'deit_tiny'"),
        (["bench", "digits", "--teacher", "regnety_16"], 1, "Did you mean 'regnety_160'"),
        (["bench", "--batch-size", "many"], 2, "neither a number nor auto"),
        (["check", "/nowhere"], 1, "There is no dataset '/nowhere'"),
        (["check", "digits", "--write-manifest", "table.txt"], 1, "must end in .csv"),
        (["check", "digits", "--ground-truth", "labels.txt"], 1, "cannot be read: No such file"),
        (["pack", "/nowhere", "x"], 1, "There is no dataset '/nowhere'"),
        (["pack", "digits", "x.tar"], 1, "shards are a folder"),
        (["pack", "digits", "x", "--verify"], 1, "There is no x."),
        (["pack", "digits", "x", "--verify", "--raw"], 2, "--verify writes nothing"),
        (
            ["pack", "digits", "x", "--max-size", "0"],
            2,
            "--max-size: it must be at least 1. See",
        ),
        (["pack", "digits"], 2, "Missing argument"),
        (["train", "/nowhere"], 1, "There is no dataset"),
        (
            ["train", "x-00.tar", "x-01.tar"],
            2,
            "The shell made 2 arguments of a pattern of shards, and DATA is one. Put it into quotes, "
            "'x-0{...}.tar' or 'x-0*.tar'.",
        ),
        (["train", "/nowhere", "--set", "epoch=3"], 2, "Did you mean 'epochs'"),
        (["train", "/nowhere", "--set", "lr=-1"], 2, "optim.lr = -1.0 is out of range"),
        (["train", "/nowhere", "--set", "mixup"], 2, "is not key=value"),
        (["train", "/nowhere", "--set", "distill.tau=2"], 2, "a teacher is for `deitctl distill`"),
        (["train", "/nowhere", "--unlabelled", "x"], 2, "an option of `deitctl distill`"),
        (["train", "/nowhere", "--feature-loss", "mse"], 2, "an option of `deitctl distill`"),
        (["train", "/nowhere", "--lr", "nan"], 2, "expected a finite number"),
        (["train", "/nowhere", "--lr=-1"], 2, "--lr = -1.0 is out of range"),
        (["train", "/nowhere", "--batch-size", "1"], 2, "--batch-size = 1 is out of range"),
        (["train", "/nowhere", "--device", "gpu"], 2, "There are: auto, cpu, mps, cuda, cuda:N"),
        (["train", "/nowhere", "--epochs", "few"], 2, "--epochs: not a whole number. See"),
        (["train", "/nowhere", "--mixup", "1"], 2, "Use --set augment.mixup=VALUE"),
        (["trian"], 2, "No such command 'trian'. Did you mean 'train'? See `deitctl --help`"),
        (["train", "--resume", "/nowhere"], 1, "is not a run"),
        (["train", "--replay", "/nowhere", "--set", "epochs=3"], 2, "leave --set out"),
        (["train", "--replay", "/nowhere", "--lr", "1"], 2, "leave --lr out"),
        (["train", "--resume", "/nowhere", "--dry-run"], 1, "Leave --dry-run or --resume out"),
        (["train", "--replay", "/nowhere", "--dry-run"], 2, "leave --dry-run out"),
        (["train", "--device", "cuda:99"], 1, "CUDA"),
        (["distill", "--mode", "harder"], 2, "There are: hard, soft, features, features+hard"),
        (["distill", "--mode", "hard", "--feature-loss", "mse"], 1, "--feature-loss is for modes"),
        (["distill", "--teacher", "regnety_16"], 1, "regnety_160"),
        (["export", "deit_tiny", "--to", "onnxx"], 2, "There are: onnx, torch, timm"),
        (
            ["export", "deit_tiny", "--to", "onnx", "--quantize", "int4"],
            2,
            "There are: fp16, int8, int8-static",
        ),
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
        (
            ["export", "deit_tiny", "--to", "timm", "--dynamic-size"],
            1,
            "--dynamic-size is for --to onnx",
        ),
        (["eval", "--model", "gone.onnx"], 1, "There is no ONNX file 'gone.onnx'"),
        (["push", "/nowhere", "me/mine", "--dry-run"], 1, "There is nothing at /nowhere"),
        (
            ["push", "/nowhere", "mine", "--dry-run"],
            1,
            "'mine' is no name of a hub repository: they are OWNER/NAME",
        ),
        (
            ["push", "/nowhere", "me/mine"],
            1,
            "There is nothing at /nowhere",
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
    assert sum(line.startswith("error:") for line in captured.err.splitlines()) == 1


def test_a_dry_run_of_what_would_resume_or_begin_prints_the_plan() -> None:
    arguments = ["train", "--resume", "auto", "--dry-run", "--format", "json", "--epochs", "2"]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, json.loads(result.stdout)["epochs"]) == (0, 2)


def test_the_table_of_a_plan_has_what_applies_in_words() -> None:
    arguments = ["distill", "--mode", "features", "--dry-run", "--format", "table"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    (disks,) = [line for line in result.stdout.splitlines() if line.startswith("│ disks ")]
    assert re.search(r": [\d,]+ MiB of [\d,]+ MiB free", disks)
    assert "teacher feature loss" in result.stdout
    assert "effective weight" not in result.stdout  # of labels, which nobody learns
    assert "{" not in disks


@pytest.mark.parametrize(
    ("option", "what"),
    [("--views=3", "views"), ("--teacher=x", "teacher"), ("--no-dist-token", "dist token")],
)
def test_a_configuration_is_not_contradicted_in_silence(
    option: str, what: str, tmp_path: Path
) -> None:
    """An option that did nothing would be worse than one that is refused."""
    (tmp_path / "run.toml").write_text("")
    result = CliRunner().invoke(app, ["distill", "--config", str(tmp_path / "run.toml"), option])
    assert f"has its own {what}" in str(result.exception)

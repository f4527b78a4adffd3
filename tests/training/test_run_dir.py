"""A run is a folder with a configuration and a log without gaps or duplicates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from deitctl.config import TrainConfig
from deitctl.errors import ConfigError, DeitctlError
from deitctl.recipes import RECIPES
from deitctl.training.configure import build_distill_config
from deitctl.training.launch import name_run
from deitctl.training.run_dir import Run, create_run_folder

CONFIG = TrainConfig(
    model="deit_tiny", data="digits", recipe=RECIPES["digits"], output_dir="somewhere"
)


def test_a_run_opens_with_the_configuration_it_was_made_with(tmp_path):
    Run.create(tmp_path / "run", CONFIG)
    run, config = Run.open(tmp_path / "run")
    assert config == CONFIG
    assert run.root == tmp_path / "run"
    assert not run.has_model
    assert run.result() is None


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    run = Run.create(tmp_path / "run", CONFIG)
    # nothing was done in it yet: a refused teacher leaves it so
    Run.create(tmp_path / "run", CONFIG)
    run.checkpoint.mkdir()
    with pytest.raises(DeitctlError, match=r"already holds a run.*--resume"):
        Run.create(tmp_path / "run", CONFIG)


def test_a_model_folder_is_not_overwritten(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(DeitctlError, match="already holds a run"):
        Run.create(tmp_path, CONFIG)


def test_invalid_lines_of_the_log_are_skipped(tmp_path):
    run = Run.create(tmp_path / "run", CONFIG)
    run.log({"kind": "step", "step": 1})
    with run.metrics_file.open("a") as file:
        file.write('{"kind": "st\n[1]\n7\n{"step": 3}\n' + "[" * 5000 + "\n")
    run.log({"kind": "step", "step": 2})
    assert [record["step"] for record in run.records("step")] == [1, 2]


def test_a_folder_without_run_toml_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a run: it has no run\.toml"):
        Run.open(tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeitctlError, match="Cannot write"):
        Run.create(tmp_path / "file" / "run", CONFIG)


def test_log_keeps_records_by_kind(tmp_path):
    run = Run.create(tmp_path / "run", CONFIG)
    assert list(run.records("step")) == []
    assert run.measure_log() == 0
    for number in range(3):
        run.log({"kind": "step", "step": number})
    run.log({"kind": "epoch", "epoch": 1, "step": 3, "top1": 50.0, "text": "größer"})
    assert [r["step"] for r in run.records("step")] == [0, 1, 2]
    assert [r["text"] for r in run.records("epoch")] == ["größer"]


def test_cutting_the_log_drops_what_came_after_the_checkpoint(tmp_path):
    run = Run.create(tmp_path / "run", CONFIG)
    run.log({"kind": "step", "step": 0})
    size = run.measure_log()
    run.log({"kind": "step", "step": 1})
    with run.metrics_file.open("a") as file:
        file.write('{"kind": "st')  # killed in the middle of a line
    run.cut_log(size)
    run.log({"kind": "step", "step": 1})
    assert [r["step"] for r in run.records("step")] == [0, 1]


def test_cutting_a_log_that_is_shorter_adds_nothing(tmp_path):
    run = Run.create(tmp_path / "run", CONFIG)
    run.cut_log(100)
    run.log({"kind": "step", "step": 0})
    run.cut_log(1000)
    assert [r["step"] for r in run.records("step")] == [0]


def test_a_line_that_is_cut_does_not_swallow_the_next_one(tmp_path):
    """A power failure, or a state.json of another run, cuts anywhere."""
    run = Run.create(tmp_path / "run", CONFIG)
    run.log({"kind": "step", "step": 0})
    run.log({"kind": "step", "step": 1})
    run.cut_log(run.measure_log() - 3)
    run.log({"kind": "step", "step": 1})
    assert [r["step"] for r in run.records("step")] == [0, 1]


@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "figures", "incidents", "checkpoint"])
def test_links_among_the_names_that_a_run_writes_into_are_refused(name, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")  # this one is the user's
    run = Run.create(tmp_path / "run", CONFIG)
    run.require_own_names()
    (run.root / name).symlink_to("/etc")
    with pytest.raises(DeitctlError, match=rf"run/{name} is a symbolic link"):
        run.require_own_names()


@pytest.mark.parametrize("data", [None, b"\xff", b"x" * 5000])
def test_a_launch_id_of_nobody_is_none(data, tmp_path):
    run = Run.create(tmp_path / "run", CONFIG)
    if data is None:
        os.mkfifo(run.launch_id_file)
    else:
        run.launch_id_file.write_bytes(data)
    assert run.read_launch_id() == ""


@pytest.mark.parametrize(
    ("result", "top1"),
    [
        ({"teacher": {"top1": 91.5}}, 91.5),
        ({"teacher": None}, None),
        ({"teacher": [1]}, None),
        ({"teacher": {"top1": "91"}}, None),
        ({"teacher": {"top1": 1e999}}, None),
        ({"teacher": {"top1": 10**400}}, None),
        ([], None),
    ],
)
def test_the_teachers_accuracy_is_a_percentage_or_none(result, top1, tmp_path):
    run = Run.create(tmp_path / "run", CONFIG)
    run.result_file.write_text(json.dumps(result))
    assert run.teacher_top1() == top1


def test_new_folders_have_new_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(create_run_folder("deit_tiny-digits")) == "runs/deit_tiny-digits"
    assert str(create_run_folder("deit_tiny-digits")) == "runs/deit_tiny-digits-2"
    assert str(create_run_folder("deit_tiny-digits")) == "runs/deit_tiny-digits-3"


@pytest.mark.parametrize("stem", ["a/b c", "../up", "x:y", "...", ""])
def test_odd_names_stay_inside_runs(stem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = create_run_folder(stem)
    assert folder.parent.name == "runs"
    assert folder.name


MAKE_FOLDER = """
import sys, time
from deitctl.training.run_dir import create_run_folder
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    print(create_run_folder("deit_tiny-flowers"))
"""


def test_processes_that_start_at_once_get_folders_of_their_own(tmp_path):
    """Three real processes, held until all are ready; each makes twenty folders of one name."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", MAKE_FOLDER]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, stdin=pipe, stdout=pipe, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    folders = [line for p in processes for line in p.communicate()[0].splitlines()]
    assert len(set(folders)) == len(folders) == 60
    assert {str(p.relative_to(tmp_path)) for p in (tmp_path / "runs").iterdir()} == set(folders)


def test_runs_that_cannot_be_made_are_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    with pytest.raises(DeitctlError, match="Cannot write runs/deit_tiny-digits"):
        create_run_folder("deit_tiny-digits")


def test_of_long_names_each_part_is_cut_by_its_bytes_and_the_seed_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = create_run_folder("x" * 1000, "from", "ä" * 1000, "花" * 1000, "s3")
    assert folder.is_dir()
    # 60 bytes are 30 or 20 of these characters
    assert folder.name == "-".join(["x" * 60, "from", "ä" * 30, "花" * 20, "s3"])
    assert create_run_folder("x" * 1000, "s3").name != create_run_folder("x" * 1000, "s4").name


def test_a_run_is_named_by_model_teacher_data_and_a_seed_that_is_not_the_default():
    assert name_run(CONFIG) == ["deit_tiny", "digits"]
    flowers = replace(CONFIG, data="/photos/flowers")
    assert name_run(flowers) == ["deit_tiny", "flowers"]
    assert name_run(replace(flowers, seed=1)) == ["deit_tiny", "flowers", "s1"]
    distill = build_distill_config({"distill.teacher": "/t/regnet"}, False, CONFIG.recipe)
    taught = replace(flowers, seed=2, distill=distill)
    assert name_run(taught) == ["deit_tiny", "from", "regnet", "flowers", "s2"]


def test_a_folder_of_a_run_leads_to_the_run(tmp_path):
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    (tmp_path / "run" / "run.toml").write_text("")
    with pytest.raises(ConfigError, match=r"is not a run: it has no run.toml.") as error:
        Run.open(tmp_path / "run" / "checkpoint")
    assert error.value.hint == f"Did you mean '{tmp_path}/run'?"

"""The sbatch file: its syntax, and its body as each task of the array runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deitctl.errors import ConfigError
from deitctl.sweeps.slurm import write_sbatch

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="Windows has no bash")
PYTHON = """#!/bin/bash
echo "$@" >> {record}
trap 'echo saved >> {record}; exit 143' TERM
{body}
"""


@pytest.fixture
def script(tmp_path: Path, make_sweep, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sbatch file of a sweep of four runs, whose Python is `tmp_path/python`."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my python"))
    path = tmp_path / "sweep.sbatch"
    make_sweep("smoothing=0.2,0.3").write_slurm(path, command="deitctl sweep", num_jobs=1)
    return path


def run_task(script: Path, task: str, body: str, **environ: str) -> subprocess.CompletedProcess:
    record, python = script.with_name("record"), script.with_name("my python")
    python.write_text(PYTHON.format(record=record, body=body))
    python.chmod(0o755)
    requeue = script.with_name("scontrol")
    requeue.write_text(f'#!/bin/bash\necho scontrol "$@" >> {record}\n')
    requeue.chmod(0o755)
    path = f"{script.parent}:{os.environ['PATH']}"
    env = {"PATH": path, "SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_JOB_ID": "7", **environ}
    return subprocess.run(
        ["bash", script], capture_output=True, text=True, env=env, check=False, timeout=60
    )


def test_its_syntax_is_right_and_it_has_a_task_for_each_run(script: Path, tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n")
    assert "#SBATCH --array=0-3\n" in text
    assert f"#SBATCH --output={tmp_path}/out/logs/slurm-%A_%a.log\n" in text
    directives = [n for n, line in enumerate(text.splitlines()) if line.startswith("#SBATCH")]
    first = next(
        n for n, line in enumerate(text.splitlines()) if line.strip() and not line.startswith("#")
    )
    assert max(directives) < first  # Slurm reads none behind the first command


def test_it_has_the_runs_that_are_not_finished_and_replaces_no_edited_file(
    script: Path, tmp_path: Path, make_sweep, write_result, reporter
) -> None:
    def write(num_seeds: int = 2):
        sweep = make_sweep("smoothing=0.2,0.3", num_seeds=num_seeds, reporter=reporter)
        sweep.write_slurm(script, command="deitctl sweep", num_jobs=1)
        return sweep.summarize()

    write_result(tmp_path / "out" / "smoothing=0.2_seed=1", 90.0)
    result = write()
    assert "--array=0-2\n" in script.read_text()
    assert "smoothing=0.2_seed=1" not in script.read_text()
    assert (result.sbatch, result.start_command) == (script, f"sbatch {script}")
    mine = script.read_text().replace("--mem=32G", "--mem=64G")
    script.write_text(mine)
    with pytest.raises(ConfigError, match=r"has been edited.*submitted as it is"):
        write(num_seeds=3)
    assert script.read_text() == mine
    assert not (tmp_path / "out" / "smoothing=0.2_seed=2").exists()
    for root in (tmp_path / "out").glob("smoothing*"):
        write_result(root, 90.0)
    script.unlink()
    assert write().start_command is None
    assert "All 4 runs are finished: no file is written." in reporter.notes


def test_each_task_trains_its_run_and_leaves_a_finished_one(
    script: Path, tmp_path: Path, write_result
) -> None:
    done = run_task(script, "2", "exit 3")
    root = tmp_path / "out" / "smoothing=0.2_seed=1"
    assert (root / "run.toml").is_file()
    assert done.returncode == 3
    assert (
        tmp_path / "record"
    ).read_text() == f"-P -m deitctl train --resume {root} --format json\n"
    write_result(root, 90.0)
    assert run_task(script, "2", "exit 1").returncode == 0
    beyond = run_task(script, "4", "exit 0")
    assert (beyond.returncode, beyond.stderr) == (1, "error: there is no run 4, only 0 to 3\n")


def test_before_the_time_limit_a_task_saves_and_is_queued_again(
    script: Path, tmp_path: Path
) -> None:
    warn = "kill -USR1 $PPID; for n in $(seq 600); do sleep 0.1; done"
    assert run_task(script, "0", warn).returncode == 143
    lines = (tmp_path / "record").read_text().splitlines()
    assert lines[1:] == ["saved", "scontrol requeue 7_0"]


def test_paths_that_a_directive_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without spaces and signs"):
        write_sbatch(
            tmp_path / "x", [tmp_path], logs=tmp_path / "a b" / "logs", command="", num_jobs=1
        )


def test_optuna_has_no_array(make_sweep, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Use a grid, or --random N"):
        make_sweep("smoothing=0..0.3", optuna=2).write_slurm(tmp_path / "x", command="", num_jobs=1)

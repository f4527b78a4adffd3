"""What launchers start as several tasks is refused without torchrun, with the commands to use."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from deitctl.cli.app import app
from deitctl.errors import ConfigError, UsageError
from deitctl.launchers import count_local_processes, read_rank, require_torchrun, suggest_torchrun

STEP = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}
BATCH = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"}


@pytest.mark.parametrize(
    ("environ", "launcher"),
    [
        ({**STEP, "SLURM_PROCID": "0"}, "srun"),
        ({**STEP, "SLURM_PROCID": "7", "ENVIRONMENT": "BATCH"}, "srun"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, "srun"),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, "mpirun"),
        ({"PMI_SIZE": "8"}, "mpirun"),
    ],
)
def test_tasks_that_would_work_alone_are_refused_with_the_command_of_torchrun(
    environ: dict[str, str], launcher: str
) -> None:
    with pytest.raises(UsageError) as error:
        require_torchrun(["train", "my photos"], is_distributed=True, environ=environ)
    assert f"{launcher} started 8 tasks" in error.value.message
    command = "torchrun --nproc-per-node 8 -m deitctl train 'my photos'"
    assert command in error.value.hint


def test_tasks_on_several_machines_are_shown_one_torchrun_each() -> None:
    environ = {**STEP, "SLURM_PROCID": "3", "SLURM_NNODES": "2"}
    with pytest.raises(UsageError) as error:
        require_torchrun(["train"], is_distributed=True, environ=environ)
    assert (
        "srun --ntasks-per-node 1 torchrun --nnodes 2 --rdzv-backend c10d "
        "--rdzv-endpoint HOST:29400 --nproc-per-node 4 -m deitctl train"
    ) in error.value.hint


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {**STEP, "SLURM_PROCID": "3", "WORLD_SIZE": "8"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"},
        {**STEP, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"},
        BATCH,
        {**BATCH, "SLURM_STEP_ID": "4294967291"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "two"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
    ],
    ids=["none", "torchrun", "salloc", "pty", "one-task", "batch", "batch-step", "odd", "one-rank"],
)
def test_one_process_and_those_of_torchrun_are_not_refused(environ: dict[str, str]) -> None:
    require_torchrun(["train"], is_distributed=True, environ=environ)


def test_idle_gpus_name_the_command_that_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = suggest_torchrun(["train", "x"], "auto", 8)
    assert idle.startswith("8 GPUs are here, and one of them trains.")
    assert idle.endswith("torchrun --nproc-per-node 8 -m deitctl train x")
    assert suggest_torchrun(["train"], "auto", 1) == suggest_torchrun(["train"], "auto", 0) == ""
    assert suggest_torchrun(["train"], "cuda:1", 8) == suggest_torchrun(["train"], "cpu", 8) == ""
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert suggest_torchrun(["train"], "auto", 8) == ""


@pytest.mark.parametrize(
    ("environ", "escape"),
    [
        ({**STEP, "SLURM_PROCID": "3"}, "srun bash -c 'env -u SLURM_PROCID deitctl sweep ...'"),
        (
            {**STEP, "SLURM_PROCID": "3", "PMI_SIZE": "8"},
            "srun bash -c 'env -u SLURM_PROCID -u PMI_SIZE deitctl sweep ...'",
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "8"},
            "mpirun bash -c 'env -u OMPI_COMM_WORLD_SIZE deitctl sweep ...', where "
            "$OMPI_COMM_WORLD_RANK is another number in each",
        ),
    ],
    ids=["srun", "both", "mpirun"],
)
def test_the_refusal_names_how_each_task_works_for_itself(
    environ: dict[str, str], escape: str
) -> None:
    with pytest.raises(UsageError) as error:
        require_torchrun(["sweep", "x"], is_distributed=False, environ=environ)
    assert "For one run: deitctl sweep x." in error.value.hint
    assert escape in error.value.hint
    apart = {k: v for k, v in environ.items() if f"-u {k}" not in error.value.hint}
    require_torchrun(["sweep"], is_distributed=False, environ=apart)


@pytest.mark.parametrize("command", ["train", "distill", "cache-teacher", "sweep", "eval"])
def test_every_command_of_several_processes_refuses_tasks_of_srun(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**STEP, "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    result = CliRunner().invoke(app, [command, "nowhere"])
    assert "srun started 8 tasks" in str(result.exception)
    monkeypatch.setattr(sys, "argv", ["deitctl", command, "--help"])
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RANK", "x"),
        ("RANK", "-1"),
        ("WORLD_SIZE", "0"),
        ("LOCAL_RANK", ""),
        ("WORLD_SIZE", "9" * 99),
    ],
)
def test_a_number_of_processes_that_is_none_is_refused_by_its_name(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"\${name} is "):
        read_rank(name, {name: text})


def test_without_torchrun_a_process_is_the_first_of_one() -> None:
    assert [read_rank(name, {}) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == [0, 0, 1]
    assert read_rank("RANK", {"RANK": "3"}) == 3


@pytest.mark.parametrize(
    ("environ", "processes"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "8"}, 8),
        ({"LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "32"}, 8),
        ({"WORLD_SIZE": "32"}, 1),
        ({"WORLD_SIZE": "32", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 4),
        ({"WORLD_SIZE": "11", "SLURM_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": "1"}, 4),
        ({"WORLD_SIZE": "11", "SLURM_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": "2"}, 3),
        ({"WORLD_SIZE": "11", "SLURM_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": "3"}, 1),
        (
            {
                "WORLD_SIZE": "2",
                "SLURM_TASKS_PER_NODE": "64",
                "SLURM_STEP_TASKS_PER_NODE": "2",
                "SLURM_NODEID": "0",
            },
            2,
        ),
        ({"SLURM_TASKS_PER_NODE": "4", "SLURM_NODEID": "0"}, 1),  # runs of their own
        ({"WORLD_SIZE": "2", "SLURM_TASKS_PER_NODE": "many(x", "SLURM_NODEID": "0"}, 1),
    ],
)
def test_the_launchers_say_how_many_processes_a_host_has(
    environ: dict[str, str], processes: int
) -> None:
    assert count_local_processes(environ) == processes

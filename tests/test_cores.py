"""The count is of the cores that this process may use, of those of its host that a run's processes divide."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from deitctl.cores import count_cores

TORCHRUN, SELF = 7, 9


@pytest.mark.skipif(sys.platform != "linux", reason="processes are bound to cores there")
def test_a_process_bound_to_one_core_has_one():
    mine = os.sched_getaffinity(0)
    before = count_cores()
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert count_cores() == 1
    finally:
        os.sched_setaffinity(0, mine)
    assert count_cores() == before <= len(mine)


def make_host(root: Path, own: str, launchers: str, files: dict[str, str] | None = None) -> Path:
    """A /proc in which this process is a child of torchrun's, each allowed to use a list of cores."""
    torchrun = f"Name: torchrun\nPPid: 1\nCpus_allowed_list:\t{launchers}\n"
    files = {
        "proc/self/status": f"Name: python\nPPid: {TORCHRUN}\nCpus_allowed_list:\t{own}\n",
        f"proc/{TORCHRUN}/status": torchrun,
        f"proc/{TORCHRUN}/environ": "HOME=/root\0PATH=/bin\0",
        "proc/self/cgroup": "0::/job/step\n",
    } | (files or {})
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("own", "launchers", "processes", "cores"),
    [
        ("0-15", "0-15", "1", 16),
        ("0-15", "0-15", "8", 2),
        ("0-15", "0-15", "32", 1),
        ("0-15", "0-15", "", 16),
        ("0-3", "0-15", "2", 4),  # bound to cores of its own
        ("8", "0-15", "4", 1),
        ("0-3,32-35", "0-3,32-35", "4", 2),  # a container's, of a host of 64
    ],
)
def test_processes_of_torchrun_divide_the_cores_that_it_may_use(
    own: str, launchers: str, processes: str, cores: int, tmp_path: Path
) -> None:
    root = make_host(tmp_path, own, launchers)
    assert count_cores({"LOCAL_WORLD_SIZE": processes}, root) == cores


def test_a_script_between_torchrun_and_a_process_may_bind_it(tmp_path: Path) -> None:
    script = {
        "proc/8/status": f"PPid: {TORCHRUN}\nCpus_allowed_list:\t4-7\n",
        "proc/8/environ": "HOME=/root\0LOCAL_WORLD_SIZE=4\0",
        "proc/self/status": "PPid: 8\nCpus_allowed_list:\t4-7\n",
    }
    root = make_host(tmp_path, "4-7", "0-15", script)
    assert count_cores({"LOCAL_WORLD_SIZE": "4"}, root) == 4


@pytest.mark.parametrize(("quota", "processes", "cores"), [("max", "2", 8), ("600000", "2", 3)])
def test_a_container_of_a_share_of_the_time_has_so_many_cores(
    quota: str, processes: str, cores: int, tmp_path: Path
) -> None:
    limits = {
        "sys/fs/cgroup/job/cpu.max": f"{quota} 100000\n",
        "sys/fs/cgroup/job/step/cpu.max": "max 100000\n",
    }
    root = make_host(tmp_path, "0-15", "0-15", limits)
    assert count_cores({"LOCAL_WORLD_SIZE": processes}, root) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 16), ("50000", 1), ("250000", 3)])
def test_a_container_of_the_first_version_of_groups_has_a_quota_too(
    quota: str, cores: int, tmp_path: Path
) -> None:
    limits = {
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    assert count_cores({}, make_host(tmp_path, "0-15", "0-15", limits)) == cores


def test_tasks_of_srun_divide_the_cores_that_the_job_has_on_their_host(tmp_path: Path) -> None:
    environ = {
        "WORLD_SIZE": "8",
        "SLURM_NODEID": "1",
        "SLURM_TASKS_PER_NODE": "4(x2)",
        "SLURM_CPUS_ON_NODE": "16",
    }
    shared = make_host(tmp_path / "shared", "0-15", "0-63")
    assert count_cores(environ, shared) == 4
    bound = make_host(tmp_path / "bound", "0-2", "0-63")
    assert count_cores(environ, bound) == 3


def test_without_proc_the_cores_of_the_machine_are_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert count_cores({}, tmp_path) == 8
    assert count_cores({"LOCAL_WORLD_SIZE": "2"}, tmp_path) == 4

"""The count is of the cores that this process may use."""

import os
import sys

import pytest

from deitctl.cores import count_cores


@pytest.mark.skipif(sys.platform != "linux", reason="processes are bound to cores there")
def test_a_process_bound_to_one_core_has_one():
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert count_cores() == 1
    finally:
        os.sched_setaffinity(0, mine)
    assert count_cores() == len(mine)


@pytest.mark.parametrize(
    ("bound_to", "processes", "cores"),
    [(8, "1", 8), (8, "2", 4), (8, "16", 1), (4, "2", 4), (8, "", 8)],
)
def test_processes_of_torchrun_divide_the_cores_unless_they_are_bound(
    bound_to: int, processes: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound_to)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert count_cores() == cores

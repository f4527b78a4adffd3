"""Free memory is what the system and its control groups leave."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deitctl.device import choose_device
from deitctl.free_memory import read_free_memory

CPU = choose_device("cpu", "fp32")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemAvailable:   8000 kB\n"}


def test_available_memory_is_free(tmp_path):
    assert read_free_memory(CPU, system(tmp_path, MEMINFO)) == 8000 * 1024


def test_free_memory_is_none_where_the_system_does_not_say(tmp_path):
    assert read_free_memory(CPU, tmp_path) is None


def test_a_cgroup_limit_counts_and_its_page_cache_is_free(tmp_path):
    files = {
        "proc/self/cgroup": "0::/job/step\n",
        "sys/fs/cgroup/job/memory.max": "5000000",
        "sys/fs/cgroup/job/memory.current": "4000000",
        "sys/fs/cgroup/job/memory.stat": "anon 3000000\ninactive_file 250000\n",
        "sys/fs/cgroup/job/step/memory.max": "max",
        "sys/fs/cgroup/job/step/memory.current": "4000000",
    }
    assert read_free_memory(CPU, system(tmp_path, MEMINFO | files)) == 1_250_000


def test_a_cgroup_limit_above_the_available_memory_changes_nothing(tmp_path):
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "1" + 12 * "0",
        "sys/fs/cgroup/memory.current": "0",
    }
    assert read_free_memory(CPU, system(tmp_path, MEMINFO | files)) == 8000 * 1024


@linux
def test_this_machine_reports_free_memory():
    assert read_free_memory(CPU) > 2**20

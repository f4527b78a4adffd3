"""Free memory is the least of what the system and its control groups say; growth is the peak above the start."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from deitctl.device import choose_device
from deitctl.profiling.memory import MemoryMeter, free_bytes

CPU = choose_device("cpu", "fp32")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemAvailable:   8000 kB\n"}


def test_available_memory_is_free(tmp_path):
    assert free_bytes(CPU, system(tmp_path, MEMINFO)) == 8000 * 1024


def test_a_system_that_does_not_say_is_unknown(tmp_path):
    assert free_bytes(CPU, tmp_path) is None


def test_a_containers_limit_counts_and_its_cached_files_are_free(tmp_path):
    files = {
        "proc/self/cgroup": "0::/job/step\n",
        "sys/fs/cgroup/job/memory.max": "5000000",
        "sys/fs/cgroup/job/memory.current": "4000000",
        "sys/fs/cgroup/job/memory.stat": "anon 3000000\ninactive_file 250000\n",
        "sys/fs/cgroup/job/step/memory.max": "max",
        "sys/fs/cgroup/job/step/memory.current": "4000000",
    }
    assert free_bytes(CPU, system(tmp_path, MEMINFO | files)) == 1_250_000


def test_a_limit_above_what_the_machine_has_changes_nothing(tmp_path):
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "1" + 12 * "0",
        "sys/fs/cgroup/memory.current": "0",
    }
    assert free_bytes(CPU, system(tmp_path, MEMINFO | files)) == 8000 * 1024


@linux
def test_this_machine_says():
    assert free_bytes(CPU) > 2**20


@linux
def test_growth_is_what_was_taken_at_the_worst_moment_though_it_is_given_back():
    meter = MemoryMeter(CPU)
    meter.start()
    large = np.ones(2**26, np.uint8)
    del large
    assert abs(meter.growth() - 2**26) < 2**23  # the kernel counts roughly
    meter.start()
    assert meter.growth() < 2**24

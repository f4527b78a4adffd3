"""benchmarks/gpu.py runs without a GPU, in small, and a part that fails, dies or hangs loses no other."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

WORKER = """
import json, os, sys, time
names = sys.argv[sys.argv.index("--work") + 2 :]
log = sys.argv[sys.argv.index("--work") + 1]
for name in names:
    with open(log, "a") as file:
        print(json.dumps({"begin": name, "limit": 0.5}), file=file)
    if name == "dies":
        os._exit(9)
    if name == "hangs":
        time.sleep(60)
    with open(log, "a") as file:
        print(json.dumps({"end": name, "figures": {"images_per_second": 1.0}}), file=file)
"""


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


def test_no_part_loses_another(gpu, tmp_path):
    names = ["first", "dies", "second", "hangs", "third"]
    records = gpu.measure(names, [sys.executable, "-c", WORKER], 30, tmp_path)
    assert [name for name in names if "figures" in records[name]] == ["first", "second", "third"]
    assert records["dies"]["error"] == "its process ended with status 9"
    assert records["hangs"]["error"] == "took longer than 0.5 s"
    assert json.loads((tmp_path / "gpu.json").read_text()) == records
    assert "- dies: failed" in (tmp_path / "gpu.md").read_text()


def test_all_parts_together_keep_to_their_time(gpu, tmp_path):
    start = time.monotonic()
    records = gpu.measure(["first", "hangs", "x"], [sys.executable, "-c", WORKER], 0.3, tmp_path)
    assert time.monotonic() - start < 10
    assert "no time was left" in records["x"]["error"]


def test_a_short_rehearsal_measures_what_it_is_to_measure(tmp_path):
    only = ["resume", "deit_tiny, eager, timm"]
    program = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearse", "--only", *only]
    subprocess.run([*program, "--output", str(tmp_path)], check=True, timeout=300)
    records = json.loads((tmp_path / "gpu.json").read_text())
    assert {"machine", "material", *only} == set(records)
    assert not {name: record["error"] for name, record in records.items() if "error" in record}
    assert records["resume"]["figures"]["bit_equal"]
    assert records["deit_tiny, eager, timm"]["figures"]["images_per_second"] > 0

"""An evaluation on an accelerator waits for nothing between batches, and ends with the CPU's results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "pretend" / "evaluations.py"
TIMES = {"images_per_second"}


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    """A process of its own: torch's Python backend stays registered for good."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_results_are_those_of_the_cpu_to_the_bit(run: dict[str, Any]) -> None:
    assert [set(names) for names in run["differences"]] == [TIMES, TIMES]
    assert set(run["several"]) == TIMES


def test_nothing_waits_and_nothing_is_copied_from_pageable_memory(run: dict[str, Any]) -> None:
    assert (run["wait"], run["unpinned"]) == (0, 0), run["lines"]


def test_the_host_is_a_few_batches_ahead_and_no_more(run: dict[str, Any]) -> None:
    """Six batches, of a device that is done with nothing before somebody waits for it."""
    assert run["ahead"] == 4
    assert [count > 0 for count in run["waits before"]] == [False] * 5 + [True]


def test_where_memory_runs_out_no_image_is_lost_or_counted_twice(run: dict[str, Any]) -> None:
    assert [set(names) for names in run["halved"]] == [TIMES, TIMES]
    assert run["sizes"] == [4, *[2] * 11, 1]  # halved once, for good


def test_logits_that_are_not_finite_are_read_late_and_named_alike(run: dict[str, Any]) -> None:
    assert "drawn:6 " in run["message"]
    assert run["late message"] == run["message"]

"""The pretended accelerator records what a real one would wait for or refuse, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "pretend" / "findings.py"
Findings = dict[str, list[list[str]]]


@pytest.fixture(scope="module")
def findings() -> Findings:
    """A process of its own: torch's Python backend stays registered for good."""
    run = subprocess.run(
        [sys.executable, str(PROGRAM)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("item", "wait"),
        ("nonzero", "wait"),
        ("mask", "wait"),
        ("host indices", "wait"),
        ("download", "wait"),
        ("upload", "wait"),
        ("copy_ up", "wait"),
        ("copy_ down", "wait"),
        ("async into unpinned", "wait"),
        ("async from unpinned", "unpinned copy"),
        ("two devices", "device mismatch"),
        ("float64", "float64"),
    ],
)
def test_each_kind_is_recorded_with_its_line(findings: Findings, case: str, kind: str) -> None:
    assert [finding[0] for finding in findings[case]] == [kind]
    file, _, number = findings[case][0][2].rpartition(":")
    assert Path(file).name == PROGRAM.name
    assert f'"{case}"' in PROGRAM.read_text().splitlines()[int(number) - 1]


def test_a_line_of_deitctl_is_named_rather_than_its_caller(findings: Findings) -> None:
    [(kind, _, line)] = findings["line of deitctl"]
    assert kind == "unpinned copy"
    assert line.startswith("device.py:")
    assert line.endswith(" to_device")


@pytest.mark.parametrize(
    "case",
    [
        "arithmetic",
        "device indices",
        "where",
        "number",
        "async from pinned",
        "part of pinned",
        "async into pinned",
        "factory",
    ],
)
def test_what_makes_nobody_wait_is_not_recorded(findings: Findings, case: str) -> None:
    assert findings[case] == []

"""The large trial of docs/security.md in small: its rules hold for forty inputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import deitctl

HARNESS = Path(deitctl.__file__).parents[1] / "benchmarks" / "hostile_inputs.py"


def test_forty_hostile_inputs_break_no_rule():
    done = subprocess.run(
        [sys.executable, str(HARNESS), "--count", "40"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "BROKEN" not in done.stdout

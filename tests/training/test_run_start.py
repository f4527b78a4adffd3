"""What an interrupted run says of what it has saved."""

from __future__ import annotations

from pathlib import Path

from deitctl.errors import Interrupted, Signalled
from deitctl.training.run_dir import NOTHING_SAVED, Run
from deitctl.training.run_start import _describe_saved


def test_what_a_run_has_saved_is_said_also_of_its_teacher(tmp_path: Path) -> None:
    """A teacher in training is a run of its own, whose checkpoint is in the cache."""
    run, whole = Run(tmp_path), "The last checkpoint, of step 3 (epochs done: 1), is whole."
    assert _describe_saved(run, Signalled(15)) == NOTHING_SAVED
    assert _describe_saved(run, Interrupted(15, saved=NOTHING_SAVED)) == NOTHING_SAVED
    assert "its teacher goes on" in _describe_saved(run, Interrupted(15, saved=whole))
    assert _describe_saved(Run(tmp_path, writes=False), Signalled(15)) == ""

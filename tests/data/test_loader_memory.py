"""Loader processes are as many as memory has room for, of all processes of a host."""

from __future__ import annotations

from pathlib import Path

import pytest

from deitctl.data.loader import TeacherView, ViewPlan
from deitctl.data.loader_memory import LOADER_BYTES, count_batch_bytes, fit_loaders

GIB = 2**30


def make_host(root: Path, free: int) -> Path:
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemAvailable: {free // 1024} kB\n")
    return root


def test_a_batch_has_the_views_of_the_student_and_of_each_teacher() -> None:
    assert count_batch_bytes(4, 32, ViewPlan(0)) == 4 * 32 * 32 * 3
    teachers = (TeacherView(16), TeacherView((8, 4), 1))
    plan = ViewPlan(0, teacher_views=teachers, in_chans=1)
    assert count_batch_bytes(2, (32, 16), plan) == 2 * (32 * 16 + 16 * 16 * 3 + 8 * 4)


@pytest.mark.parametrize(
    ("free", "processes", "loaders"),
    [(64 * GIB, "1", 8), (64 * GIB, "8", 8), (8 * GIB, "1", 8), (8 * GIB, "4", 2), (GIB, "8", 1)],
)
def test_loaders_take_half_of_the_memory_that_their_process_has(
    free: int, processes: str, loaders: int, tmp_path: Path
) -> None:
    notes: list[str] = []
    batch_bytes = 64 * 2**20  # five of them in each
    root = make_host(tmp_path, free)
    assert (
        fit_loaders(8, batch_bytes, notes.append, {"LOCAL_WORLD_SIZE": processes}, root) == loaders
    )
    assert len(notes) == (loaders < 8)
    assert all(f"{loaders} loader processes instead of 8" in note for note in notes)


def test_no_loaders_stay_none_and_unknown_memory_changes_nothing(tmp_path: Path) -> None:
    notes: list[str] = []
    assert fit_loaders(0, 1, notes.append, {}, make_host(tmp_path / "small", LOADER_BYTES)) == 0
    assert fit_loaders(8, 1, notes.append, {}, tmp_path) == 8
    assert notes == []

"""A state is saved when it is due, by another thread, as it was when the save began; a full disk loses nothing."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from deitctl.errors import ConfigError, DeitctlError
from deitctl.training.checkpointer import AsyncCheckpointer, parse_interval
from deitctl.training.state import Progress, Snapshot, TrainState


def state_of(value: float = 0.0) -> TrainState:
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, value)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(model, torch.optim.AdamW(model.parameters()), scaler, None, Progress())


def saver_in(root: Path, every: str = "5m") -> AsyncCheckpointer:
    root.mkdir(exist_ok=True)
    return AsyncCheckpointer(root / "state", root / "metrics.jsonl", every)


def loaded(root: Path) -> TrainState:
    state = state_of(-1.0)
    state.load(root / "state")
    return state


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500", (500, 0.0)),
        ("1", (1, 0.0)),
        ("90s", (0, 90.0)),
        ("10m", (0, 600.0)),
        ("1h", (0, 3600.0)),
        ("0.5h", (0, 1800.0)),
        (" 10 m ", (0, 600.0)),
        ("3.0", (3, 0.0)),
    ],
)
def test_intervals_are_steps_or_seconds(text: str, expected: tuple[int, float]) -> None:
    assert parse_interval(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "-5", "1.5", "5d", "m", "1h30m", "often", "inf", "1e3"]
)
def test_what_is_no_interval_is_said(text: str) -> None:
    with pytest.raises(ConfigError, match="is no interval"):
        parse_interval(text)


def test_steps_are_due_by_their_number(tmp_path: Path) -> None:
    saver = saver_in(tmp_path, "3")
    assert [step for step in range(1, 10) if saver.due(step)] == [3, 6, 9]


def test_time_is_due_when_it_has_passed(tmp_path: Path) -> None:
    saver = saver_in(tmp_path, "60s")
    assert not saver.due(1)
    saver.last -= 59
    assert not saver.due(1)
    saver.last -= 2
    assert saver.due(1)


def test_saving_by_the_clock_takes_one_hundredth_of_the_time_at_most(tmp_path: Path) -> None:
    saver = saver_in(tmp_path, "60s")
    saver.cost = 2.0
    saver.last -= 199
    assert not saver.due(1)
    saver.last -= 2
    assert saver.due(1)


def test_what_is_saved_is_what_was_when_the_save_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training goes on while the thread writes: the write waits here until it has."""
    go, write = threading.Event(), Snapshot.write

    def slow(snapshot: Snapshot, folder: Path) -> None:
        assert go.wait(20)
        write(snapshot, folder)

    monkeypatch.setattr(Snapshot, "write", slow)
    saver, state = saver_in(tmp_path), state_of(1.0)
    state.progress.step = 4
    saver.copy(state)
    saver.write_copy()
    assert saver.saved_step == -1
    with torch.no_grad():
        state.model.weight.fill_(9.0)
    state.progress.step = 5
    go.set()
    saver.finish()
    assert saver.saved_step == 4
    found = loaded(tmp_path)
    assert found.progress.step == 4
    assert torch.equal(found.model.weight, torch.ones(2, 3))


def test_while_a_state_is_written_the_next_is_not_due_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or every save by the clock would be made twice, the second waiting for the first."""
    go, write = threading.Event(), Snapshot.write

    def slow(snapshot: Snapshot, folder: Path) -> None:
        assert go.wait(20)
        write(snapshot, folder)

    monkeypatch.setattr(Snapshot, "write", slow)
    saver = saver_in(tmp_path, "60s")
    saver.last -= 61
    assert saver.due(1)
    saver.copy(state_of())
    saver.write_copy()
    due = saver.due(2)
    go.set()
    saver.finish()
    assert not due
    assert not saver.due(3)


def test_waiting_for_a_save_finds_it_on_the_disk(tmp_path: Path) -> None:
    saver, state = saver_in(tmp_path), state_of()
    state.progress.step = 7
    saver.save(state)
    assert loaded(tmp_path).progress.step == 7
    assert 0 < saver.cost < 20
    saver.finish()  # again, and before any save, it is nothing
    saver_in(tmp_path / "other").finish()


def test_a_new_save_waits_for_the_one_before(tmp_path: Path) -> None:
    saver, state = saver_in(tmp_path), state_of()
    for step in range(5):
        state.progress.step = step
        saver.copy(state)
        saver.write_copy()
    saver.finish()
    assert loaded(tmp_path).progress.step == 4
    assert os.listdir(tmp_path) == ["state"]


def test_a_copy_is_written_when_the_step_after_it_went_well_and_never_if_it_did_not(
    tmp_path: Path,
) -> None:
    saver, state = saver_in(tmp_path), state_of(1.0)
    saver.write_copy()  # there is none
    assert not (tmp_path / "state").exists()
    state.progress.step = 1
    saver.copy(state)
    saver.finish()
    assert not (
        tmp_path / "state"
    ).exists()  # a step that went wrong now would find nothing on the disk
    with torch.no_grad():
        state.model.weight.fill_(float("nan"))
    state.progress.step = 2
    saver.write_copy()
    saver.finish()
    assert loaded(tmp_path).progress.step == 1
    assert torch.equal(loaded(tmp_path).model.weight, torch.ones(2, 3))


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("with_log", [True, False], ids=["log", "no-log"])
@pytest.mark.parametrize("before", [True, False], ids=["saved-before", "first"])
def test_a_full_disk_keeps_the_last_state_names_the_way_on_and_leaves_room(
    with_log: bool, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, state = saver_in(tmp_path), state_of(3.0)
    if with_log:
        saver.log.write_text("{}\n")
    state.progress.step = 1
    if before:
        saver.save(state)
    state.progress.step = 2
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        saver.copy(state)
        saver.write_copy()
        with pytest.raises(DeitctlError, match="No space left on device") as error:
            saver.finish()
    assert f"deitctl train --resume {tmp_path}" in error.value.hint
    said = "The last good state is untouched" if before else "Nothing was saved before"
    assert said in error.value.message
    kept = {"metrics.jsonl"} if with_log else set()
    assert set(os.listdir(tmp_path)) == kept | ({"state"} if before else set())
    if before:
        assert loaded(tmp_path).progress.step == 1
    assert saver.saved_step == (1 if before else -1)
    state.progress.step = 3
    saver.save(state)  # there is room again
    assert loaded(tmp_path).progress.step == 3


def test_a_save_that_failed_is_told_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, state = saver_in(tmp_path), state_of()
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        saver.copy(state)
        saver.write_copy()
        with pytest.raises(DeitctlError, match="No space left on device"):
            saver.save(state)
    saver.finish()  # told once

"""A state is saved when it is due, by another thread, as it was when the save began; a full disk loses nothing."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from deitctl.errors import ConfigError, DeitctlError, Signalled
from deitctl.training.checkpointer import AsyncCheckpointer, SaveOrStop, parse_interval
from deitctl.training.run_dir import Run
from deitctl.training.signals import StopRequest
from deitctl.training.state import Progress, Snapshot, TrainState


def state_of(value: float = 0.0) -> TrainState:
    model = nn.Linear(3, 2)
    nn.init.constant_(model.weight, value)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(model, torch.optim.AdamW(model.parameters()), scaler, None, Progress())


def checkpointer_in(root: Path, every: str = "5m") -> AsyncCheckpointer:
    root.mkdir(exist_ok=True)
    return AsyncCheckpointer(Run(root), every)


def loaded(root: Path) -> TrainState:
    state = state_of(-1.0)
    state.load(root / "checkpoint")
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
def test_another_text_is_no_interval(text: str) -> None:
    with pytest.raises(ConfigError, match="is no interval"):
        parse_interval(text)


def test_steps_are_due_by_their_number(tmp_path: Path) -> None:
    checkpointer = checkpointer_in(tmp_path, "3")
    assert [step for step in range(1, 10) if checkpointer.should_save(step)] == [3, 6, 9]


def test_time_is_due_when_it_has_passed(tmp_path: Path) -> None:
    checkpointer = checkpointer_in(tmp_path, "60s")
    assert not checkpointer.should_save(1)
    checkpointer.last_time -= 59
    assert not checkpointer.should_save(1)
    checkpointer.last_time -= 2
    assert checkpointer.should_save(1)


def test_saving_by_the_clock_takes_one_hundredth_of_the_time_at_most(tmp_path: Path) -> None:
    checkpointer = checkpointer_in(tmp_path, "60s")
    checkpointer.cost_s = 2.0
    checkpointer.last_time -= 199
    assert not checkpointer.should_save(1)
    checkpointer.last_time -= 2
    assert checkpointer.should_save(1)


def test_what_is_saved_is_what_was_when_the_save_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training goes on while the thread writes: the write waits here until it has."""
    go, write = threading.Event(), Snapshot.write

    def slow(snapshot: Snapshot, folder: Path) -> None:
        assert go.wait(20)
        write(snapshot, folder)

    monkeypatch.setattr(Snapshot, "write", slow)
    checkpointer, state = checkpointer_in(tmp_path), state_of(1.0)
    state.progress.step = 4
    checkpointer.stage(state)
    checkpointer.write()
    assert checkpointer.saved_step == -1
    with torch.no_grad():
        state.model.weight.fill_(9.0)
    state.progress.step = 5
    go.set()
    checkpointer.finish()
    assert checkpointer.saved_step == 4
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
    checkpointer = checkpointer_in(tmp_path, "60s")
    checkpointer.last_time -= 61
    assert checkpointer.should_save(1)
    checkpointer.stage(state_of())
    checkpointer.write()
    due = checkpointer.should_save(2)
    go.set()
    checkpointer.finish()
    assert not due
    assert not checkpointer.should_save(3)


def test_waiting_for_a_save_finds_it_on_the_disk(tmp_path: Path) -> None:
    checkpointer, state = checkpointer_in(tmp_path), state_of()
    state.progress.step = 7
    checkpointer.save(state)
    assert loaded(tmp_path).progress.step == 7
    assert 0 < checkpointer.cost_s < 20
    checkpointer.finish()  # again, and before any save, it is nothing
    checkpointer_in(tmp_path / "other").finish()


def test_a_new_save_waits_for_the_one_before(tmp_path: Path) -> None:
    checkpointer, state = checkpointer_in(tmp_path), state_of()
    for step in range(5):
        state.progress.step = step
        checkpointer.stage(state)
        checkpointer.write()
    checkpointer.finish()
    assert loaded(tmp_path).progress.step == 4
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_staged_state_is_written_after_a_good_step_and_never_after_a_bad_one(
    tmp_path: Path,
) -> None:
    checkpointer, state = checkpointer_in(tmp_path), state_of(1.0)
    checkpointer.write()  # there is none
    assert not (tmp_path / "checkpoint").exists()
    state.progress.step = 1
    checkpointer.stage(state)
    checkpointer.finish()
    assert not (
        tmp_path / "checkpoint"
    ).exists()  # a step that went wrong now would find nothing on the disk
    with torch.no_grad():
        state.model.weight.fill_(float("nan"))
    state.progress.step = 2
    checkpointer.write()
    checkpointer.finish()
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
    checkpointer, state = checkpointer_in(tmp_path), state_of(3.0)
    if with_log:
        checkpointer.run.metrics_file.write_text("{}\n")
    state.progress.step = 1
    if before:
        checkpointer.save(state)
    state.progress.step = 2
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        checkpointer.stage(state)
        checkpointer.write()
        with pytest.raises(DeitctlError, match="No space left on device") as error:
            checkpointer.finish()
    assert f"deitctl train --resume {tmp_path}" in error.value.hint
    said = "The last checkpoint, of step 1 (epochs done: 0)" if before else "Nothing was saved."
    assert said in error.value.message
    kept = {"metrics.jsonl"} if with_log else set()
    assert set(os.listdir(tmp_path)) == kept | ({"checkpoint"} if before else set())
    if before:
        assert loaded(tmp_path).progress.step == 1
    assert checkpointer.saved_step == (1 if before else -1)
    state.progress.step = 3
    checkpointer.save(state)  # there is room again
    assert loaded(tmp_path).progress.step == 3


def test_a_save_that_failed_is_raised_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer, state = checkpointer_in(tmp_path), state_of()
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        checkpointer.stage(state)
        checkpointer.write()
        with pytest.raises(DeitctlError, match="No space left on device"):
            checkpointer.save(state)
    checkpointer.finish()  # told once


def test_a_state_that_is_due_waits_until_all_losses_are_read(tmp_path: Path) -> None:
    """And the staged state before it is written only then as well."""
    checkpointer, state = checkpointer_in(tmp_path, "2"), state_of()
    for step, verified, saved in ((1, True, -1), (2, True, -1), (3, False, -1), (4, False, -1),
                                  (5, True, 2), (6, True, 5)):  # fmt: skip
        state.progress.step = step
        checkpointer.maybe_save(state, lambda is_good=verified: is_good)
        checkpointer.finish()
        assert checkpointer.saved_step == saved, step


def test_a_requested_state_is_saved_whatever_the_interval(tmp_path: Path) -> None:
    checkpointer, state = checkpointer_in(tmp_path, "1h"), state_of()
    checkpointer.requested = True
    for _ in range(3):
        state.progress.step += 1
        checkpointer.maybe_save(state, lambda: True)
    checkpointer.finish()
    assert loaded(tmp_path).progress.step == 1  # once


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    checkpointer = AsyncCheckpointer(Run(tmp_path, writes=False), "1")
    checkpointer.maybe_save(state_of(), lambda: True)
    checkpointer.save(state_of())
    assert os.listdir(tmp_path) == []


def test_between_two_batches_signals_save_and_stop(tmp_path: Path) -> None:
    signals, checkpointer, state = StopRequest(), checkpointer_in(tmp_path), state_of()
    is_good = True
    save_or_stop = SaveOrStop(signals, checkpointer, state, lambda: is_good)
    save_or_stop.raise_if_set()
    assert os.listdir(tmp_path) == []
    signals.save_requested = True
    save_or_stop.raise_if_set()
    assert loaded(tmp_path).progress.step == 0
    assert not signals.save_requested
    state.progress.step, is_good = 1, False
    signals.save_requested = True
    save_or_stop.raise_if_set()
    assert loaded(tmp_path).progress.step == 0  # what diverged is not saved over it
    signals.signum = signal.SIGTERM
    with pytest.raises(Signalled):
        save_or_stop.raise_if_set()


def test_a_step_that_ends_an_epoch_is_staged_once(tmp_path: Path) -> None:
    checkpointer, state = checkpointer_in(tmp_path, "5"), state_of()
    state.progress.step = 5
    checkpointer.maybe_save(state, lambda: True)
    assert not checkpointer.should_save(5)
    assert checkpointer.should_save(10)

"""An incident is written down whole, with a state of its own; what is no record is said in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from deitctl.config import TrainConfig
from deitctl.data.samplers import SampleKey
from deitctl.errors import ConfigError
from deitctl.training import incident as module
from deitctl.training.incident import read_incident, suggest_remedies, write_incident
from deitctl.training.monitor import Incident
from deitctl.training.run_dir import Run
from deitctl.training.state import Progress, TrainState

KEYS = [SampleKey(1, 5, 0), SampleKey(1, 2, 1)]
MACHINE = {
    "precision": "bf16",
    "device": "cpu",
    "num_processes": 1,
    "micro_batch_size": 0,
    "checkpoint_step": 4,
}
RECENT = [
    {"step": 4, "loss": 2.0, "grad_norm": 1.0},
    {"step": 5, "loss": float("nan"), "grad_norm": float("inf")},
]
NAN = Incident(
    kind="non_finite",
    step=5,
    lr=0.1,
    loss=float("nan"),
    grad_norm=float("inf"),
    recent_mean=2.0,
    keys=KEYS[:1],
    recent=RECENT,
)


def state_of(step: int) -> TrainState:
    torch.manual_seed(step)
    model = nn.Linear(3, 2)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(
        model, torch.optim.AdamW(model.parameters()), scaler, None, Progress(step=step)
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.root.mkdir()
    state_of(4).save(run.checkpoint)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_record_says_what_happened_to_which_images_and_on_what(run: Run) -> None:
    path = write_incident(run, NAN, KEYS, ["b.jpg", "a.jpg"], MACHINE)
    assert path == run.root / "incidents" / "step-0000005" / "record.json"
    record = json.loads(path.read_text())
    assert (record["step"], record["kind"], record["lr"], record["recent_mean"]) == (
        5,
        "non_finite",
        0.1,
        2.0,
    )
    assert record["keys"] == [[1, 5, 0], [1, 2, 1]]  # of all processes
    assert record["images"] == ["b.jpg", "a.jpg"]
    assert record["run"] == str(run.root.resolve())
    assert {name: record[name] for name in MACHINE} == MACHINE
    assert [r["grad_norm"] for r in record["recent"]] == [1.0, None]
    assert record["loss"] is None  # JSON has no NaN
    assert record["message"].startswith("The loss is nan and the gradient norm inf at step 5")
    for form in (path, path.parent):
        assert read_incident(form)["step"] == 5


@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
def test_its_state_is_not_touched_by_later_saves(
    links: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def no_link(*_: object) -> None:
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(module.os, "link", no_link)
    copy = write_incident(run, NAN, KEYS, [], MACHINE).parent / "checkpoint"
    expected = contents(run.checkpoint)
    assert contents(copy) == expected
    assert (
        os.path.samefile(copy / "model.safetensors", run.checkpoint / "model.safetensors") == links
    )
    for step in (6, 7):
        state_of(step).save(run.checkpoint)
    assert contents(copy) == expected
    assert contents(run.checkpoint) != expected


def test_without_a_state_there_is_only_the_record(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    path = write_incident(run, NAN, KEYS, [], MACHINE)
    assert os.listdir(path.parent) == ["record.json"]


def test_the_same_step_going_wrong_again_is_written_anew(run: Run) -> None:
    write_incident(run, NAN, KEYS, ["old"], MACHINE)
    state_of(9).save(run.checkpoint)
    path = write_incident(run, NAN, KEYS, ["new"], MACHINE)
    assert read_incident(path)["images"] == ["new"]
    assert contents(path.parent / "checkpoint") == contents(run.checkpoint)


RUBBISH = [
    "",
    "{",
    "[]",
    "null",
    "3",
    '"text"',
    "{}",
    '{"schema_version": 1}',
    '{"schema_version": 1, "run": "r"}',
    '{"schema_version": 1, "run": "r", "step": 1}',
    '{"schema_version": 2, "run": "r", "step": 1, "kind": "loss_spike"}',
    '{"schema_version": 1, "run": 5, "step": 1, "kind": "loss_spike"}',
    '{"schema_version": 1, "run": "r", "step": "1", "kind": "loss_spike"}',
    '{"schema_version": 1, "run": "r", "step": 1, "kind": null}',
    '{"schema_version": 1, "run": "r", "step": 1, "kind": 3}',
]


@pytest.mark.parametrize("text", RUBBISH)
def test_what_is_no_record_is_reported(text: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(text)
    for path in (tmp_path, tmp_path / "record.json"):
        with pytest.raises(ConfigError, match="is no record of an incident"):
            read_incident(path)


def test_a_record_that_is_not_there_or_no_text_is_reported(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("absent", "absent/record.json", "binary", ""):
        with pytest.raises(ConfigError, match="is no record of an incident"):
            read_incident(tmp_path / name)


def test_the_remedy_repeats_the_run_by_its_own_command(
    run: Run, little_config: Callable[..., TrainConfig], distilled: Callable[..., TrainConfig]
) -> None:
    for command, config in (("train", little_config("x")), ("distill", distilled("x"))):
        remedies = suggest_remedies(NAN, run, "fp32", config)
        assert f"`deitctl {command} --config {run.config_file} --output NEW --lr" in remedies

"""A training that breaks says at which step, keeps what it takes to see it again, and shows it again."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.samplers import EpochOrder
from deitctl.errors import ConfigError, DeitctlError
from deitctl.training import monitor as health
from deitctl.training.launch import resume, run_training
from deitctl.training.replay import replay

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
STEPS = 90
"""Of an epoch of the built-in digits."""


def breaking(config: TrainConfig, rate: float) -> TrainConfig:
    """Steps 0 to 3 warm up gently, the rate of step 4 is about `rate`, and a state is saved after step 1 and 3."""
    share = 0.5 - 0.5 * math.cos(
        math.pi * 4 / STEPS / config.recipe.epochs
    )  # of `min_lr` at step 4
    optim = replace(
        config.recipe.optim, lr=8e-3, warmup_epochs=3.5 / STEPS, min_lr=rate / share, clip_grad=0.0
    )
    return replace(config, save_every="2", recipe=replace(config.recipe, optim=optim))


Broken = tuple[Path, DeitctlError]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Broken]:
    """The broken run of this module, once it has been made."""
    return {}


@pytest.fixture
def broken(
    kept: dict[str, Broken],
    little_config: Make,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Broken:
    """A copy of a run on the built-in digits whose step 5 had a loss that is no number, and the error."""
    if not kept:
        root = tmp_path_factory.mktemp("broken") / "run"
        with pytest.raises(DeitctlError) as error:
            run_training(replace(breaking(little_config("x"), 1e25), output_dir=str(root)))
        kept["it"] = root, error.value
    root, said = kept["it"]
    shutil.copytree(root, tmp_path / "run")
    return tmp_path / "run", said


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_the_error_names_the_step_the_state_and_the_ways_on(
    broken: Broken, kept: dict[str, Broken]
) -> None:
    root, error = kept["it"]
    assert error.message.startswith(
        "The loss is nan and the gradient's norm nan at step 5, counted from 0"
    )
    assert "The run is as it was after 4 steps." in error.message
    assert f"deitctl train --replay {root}/incidents/step-0000005/record.json" in error.message
    assert f"deitctl train --config {root}/run.toml --output NEW --lr 0.0027" in error.hint
    assert "--precision fp32" not in error.hint  # it is that already


def test_the_record_has_the_step_its_images_and_the_steps_before_it(
    broken: Broken, digit_datasets: Pair
) -> None:
    run, _ = broken
    record = json.loads((run / "incidents" / "step-0000005" / "record.json").read_text())
    assert (record["step"], record["kind"], record["state_step"]) == (5, "not a number", 4)
    assert (record["precision"], record["device"], record["processes"]) == ("fp32", "cpu", 1)
    order = EpochOrder(len(digit_datasets[0].labels), seed=0, epoch=0, repeats=2)
    expected = order[5 * 16 : 6 * 16]
    assert record["keys"] == [list(key) for key in expected]
    assert record["images"] == [digit_datasets[0].name(key.index) for key in expected]
    assert [r["step"] for r in record["recent"]] == list(range(6))
    assert all(math.isfinite(r["norm"]) and 0 < r["loss"] < 10 for r in record["recent"][:5])
    assert record["recent"][5]["norm"] == "nan"


def test_the_run_and_the_record_have_the_last_good_state(broken: Broken) -> None:
    run, _ = broken
    good = contents(run / "incidents" / "step-0000005" / "state")
    assert good == contents(run / "state")
    assert json.loads(good["state.json"])["step"] == 4


def test_a_replay_goes_wrong_at_the_same_step_with_the_same_losses_and_leaves_the_run_alone(
    broken: Broken,
) -> None:
    run, _ = broken
    before = contents(run)
    record = json.loads(before["incidents/step-0000005/record.json"])
    found = replay(run / "incidents" / "step-0000005")
    assert contents(run) == before
    assert found.again
    assert (found.step, found.kind, found.precision) == (5, "not a number", "fp32")
    assert [s["step"] for s in found.steps] == [4, 5]
    assert (found.steps[0]["loss"], found.steps[0]["norm"]) == (
        record["recent"][4]["loss"],
        record["recent"][4]["norm"],
    )
    assert math.isnan(found.steps[1]["loss"])
    assert found.steps[1]["rate"] == record["rate"]
    assert math.isnan(found.gradients[0][1])  # first what is no number
    assert {name for name, _ in found.num_images} <= set(record["images"])
    assert len(found.num_images) == 8  # pairs
    assert len(json.loads(json.dumps(found.to_dict()))["images"]) == 8


def test_a_run_that_was_moved_is_replayed_where_it_is_now(
    broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = broken
    record = run / "incidents" / "step-0000005" / "record.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "run": "/nonexistent/run"}))
    monkeypatch.chdir(record.parent)
    assert replay(Path("record.json")).again


def test_a_resume_breaks_at_the_same_step_and_the_record_keeps_its_state(broken: Broken) -> None:
    run, _ = broken
    state = run / "incidents" / "step-0000005" / "state"
    good = contents(state)
    with pytest.raises(DeitctlError, match=r"at step 5, .* The run is as it was after 4 steps\."):
        resume(run)
    assert contents(state) == good


@pytest.mark.parametrize(
    ("step", "what"), [(3, "of step 4"), (-1, "of step 4"), (3 * STEPS, "270 steps")]
)
def test_a_step_that_the_run_does_not_have_is_said(step: int, what: str, broken: Broken) -> None:
    run, _ = broken
    folder = run / "incidents" / "step-0000005"
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**record, "step": step}))
    with pytest.raises(ConfigError, match=f"Step {step} cannot be taken again: .*{what}"):
        replay(folder)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"run": "/nonexistent"}, "is no record of an incident|is not a run"),
        ({"kind": None}, "is no record"),
        ({"precision": "fp7"}, "no precision 'fp7'"),
        ({"micro_batch": "many"}, "micro_batch"),
        ({"format": 9}, "is no record of an incident that this deitctl reads"),
    ],
)
def test_a_rubbish_record_is_one_line(
    changes: dict[str, object], what: str, broken: Broken, tmp_path: Path
) -> None:
    run, _ = broken
    source = run / "incidents" / "step-0000005" / "record.json"
    where = tmp_path / "elsewhere" / "record.json" if "run" in changes else source
    where.parent.mkdir(exist_ok=True)
    where.write_text(json.dumps({**json.loads(source.read_text()), **changes}))
    with pytest.raises(ConfigError, match=what) as error:
        replay(where)
    assert "\n" not in str(error.value)


def test_a_loss_that_jumps_is_found_and_jumps_again(
    little_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "SETTLED", 3)
    with pytest.raises(DeitctlError, match=r"The loss jumped from about 2\.\d+ to \d+ at step 5"):
        run_training(breaking(little_config("run"), 5.0))
    folder = tmp_path / "run" / "incidents" / "step-0000005"
    assert os.listdir(folder.parent) == [folder.name]
    record = json.loads((folder / "record.json").read_text())
    found = replay(folder)
    assert found.again
    assert found.kind == "jump"
    assert (found.steps[-1]["loss"], found.steps[-1]["norm"]) == (record["loss"], record["norm"])
    losses = [loss for _, loss in found.num_images]
    assert len(losses) == 8
    assert losses == sorted(losses, reverse=True)
    assert sum(losses) / len(losses) == pytest.approx(
        record["loss"], rel=1e-4
    )  # equal parts of the batch
    norms = [norm for _, norm in found.gradients]
    assert norms == sorted(norms, reverse=True)
    assert math.sqrt(sum(n * n for n in norms)) == pytest.approx(record["norm"], rel=1e-4)


def test_without_a_state_a_replay_begins_at_the_beginning(
    little_config: Make, tmp_path: Path
) -> None:
    config = replace(breaking(little_config("run"), 1e25), save_every="1h")
    with pytest.raises(DeitctlError, match=r"at step 5, .*No state was saved before it"):
        run_training(config)
    found = replay(tmp_path / "run" / "incidents" / "step-0000005")
    assert found.again
    assert [s["step"] for s in found.steps] == list(range(6))


def test_a_replay_is_for_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="for one process"):
        replay(tmp_path)

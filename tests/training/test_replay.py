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
from deitctl.data.epoch_steps import batch_start
from deitctl.data.samplers import EpochOrder
from deitctl.errors import ConfigError, DeitctlError
from deitctl.models.checkpoint_io import save_tensors
from deitctl.models.vit import VisionTransformer
from deitctl.records import to_object
from deitctl.training import monitor
from deitctl.training.launch import resume, run_training
from deitctl.training.replay import replay

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
STEPS = 91
"""Of an epoch of the built-in digits."""


def breaking(config: TrainConfig, rate: float) -> TrainConfig:
    """Steps 0 to 3 warm up gently, the rate of step 4 is about `rate`, and a state is saved after step 1 and 3."""
    # of `min_lr` at step 4
    share = 0.5 - 0.5 * math.cos(math.pi * 4 / STEPS / config.recipe.epochs)
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


def test_the_error_names_the_step_the_checkpoint_and_the_remedies(
    broken: Broken, kept: dict[str, Broken]
) -> None:
    root, error = kept["it"]
    assert error.message.startswith(
        "The loss is nan and the gradient norm nan at step 5, counted from 0"
    )
    assert "The checkpoint is of step 4." in error.message
    assert f"deitctl train --replay {root}/incidents/step-0000005/record.json" in error.message
    assert f"deitctl train --config {root}/run.toml --output NEW --lr 0.0027" in error.hint
    assert "--precision fp32" not in error.hint  # it is that already


def test_the_record_has_the_step_its_images_and_the_steps_before_it(
    broken: Broken, digit_datasets: Pair
) -> None:
    run, _ = broken
    record = json.loads((run / "incidents" / "step-0000005" / "record.json").read_text())
    assert (record["step"], record["kind"], record["checkpoint_step"]) == (5, "non_finite", 4)
    assert (record["precision"], record["device"], record["num_processes"]) == ("fp32", "cpu", 1)
    count = len(digit_datasets[0].labels)
    order = EpochOrder(count, seed=0, epoch=0, repeats=2)
    expected = order[batch_start(count, 16, 5) : batch_start(count, 16, 6)]
    assert record["keys"] == [list(key) for key in expected]
    assert record["images"] == [digit_datasets[0].name(key.index) for key in expected]
    assert [r["step"] for r in record["recent"]] == list(range(6))
    assert all(math.isfinite(r["grad_norm"]) and 0 < r["loss"] < 10 for r in record["recent"][:5])
    assert record["recent"][5]["grad_norm"] is None


def test_the_run_and_the_record_have_the_last_good_checkpoint(broken: Broken) -> None:
    run, _ = broken
    good = contents(run / "incidents" / "step-0000005" / "checkpoint")
    assert good == contents(run / "checkpoint")
    assert json.loads(good["state.json"])["step"] == 4


def test_a_replay_diverges_at_the_same_step_with_the_same_losses_and_leaves_the_run_alone(
    broken: Broken,
) -> None:
    run, _ = broken
    before = contents(run)
    record = json.loads(before["incidents/step-0000005/record.json"])
    result = replay(run / "incidents" / "step-0000005")
    assert contents(run) == before
    assert result.reproduced
    assert (result.step, result.kind, result.precision) == (5, "non_finite", "fp32")
    assert [s["step"] for s in result.steps] == [4, 5]
    assert (result.steps[0]["loss"], result.steps[0]["grad_norm"]) == (
        record["recent"][4]["loss"],
        record["recent"][4]["grad_norm"],
    )
    assert math.isnan(result.steps[1]["loss"])
    assert result.steps[1]["lr"] == record["lr"]
    assert math.isnan(next(iter(result.grad_norms.values())))  # NaN first
    assert {pair.image for pair in result.images} <= set(record["images"])
    assert len(result.images) == 8  # pairs
    assert len(json.loads(json.dumps(to_object(result)))["images"]) == 8


def test_a_run_that_was_moved_is_replayed_where_it_is_now(
    broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = broken
    record = run / "incidents" / "step-0000005" / "record.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "run": "/nonexistent/run"}))
    monkeypatch.chdir(record.parent)
    assert replay(Path("record.json")).reproduced


def test_a_resume_diverges_at_the_same_step_and_the_record_keeps_its_checkpoint(
    broken: Broken,
) -> None:
    run, _ = broken
    state = run / "incidents" / "step-0000005" / "checkpoint"
    good = contents(state)
    with pytest.raises(DeitctlError, match=r"at step 5, .* The checkpoint is of step 4\."):
        resume(run)
    assert contents(state) == good


@pytest.mark.parametrize(
    ("step", "what"), [(3, "of step 4"), (-1, "of step 4"), (3 * STEPS, "273 steps")]
)
def test_a_step_that_the_run_does_not_have_is_an_error(
    step: int, what: str, broken: Broken
) -> None:
    run, _ = broken
    folder = run / "incidents" / "step-0000005"
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**record, "step": step}))
    with pytest.raises(ConfigError, match=f"Step {step} cannot be replayed: .*{what}"):
        replay(folder)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"run": "/nonexistent"}, "is no record of an incident|is not a run"),
        ({"kind": None}, "is no record"),
        ({"precision": "fp7"}, "no precision 'fp7'"),
        ({"micro_batch_size": "many"}, "micro_batch_size"),
        ({"schema_version": 9}, "is no record of an incident that this deitctl reads"),
    ],
)
def test_an_invalid_record_is_an_error_of_one_line(
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


def test_a_loss_spike_is_found_and_reproduced(
    little_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "MIN_STEPS", 3)
    with pytest.raises(DeitctlError, match=r"The loss rose from about 2\.\d+ to \d+ at step 5"):
        run_training(breaking(little_config("run", model_args={}), 5.0))
    folder = tmp_path / "run" / "incidents" / "step-0000005"
    assert os.listdir(folder.parent) == [folder.name]
    record = json.loads((folder / "record.json").read_text())
    result = replay(folder)
    assert result.reproduced
    assert result.kind == "loss_spike"
    assert (result.steps[-1]["loss"], result.steps[-1]["grad_norm"]) == (
        record["loss"],
        record["grad_norm"],
    )
    losses = [pair.loss for pair in result.images]
    assert len(losses) == 8
    assert losses == sorted(losses, reverse=True)
    # equal parts of the batch
    assert sum(losses) / len(losses) == pytest.approx(record["loss"], rel=1e-4)
    norms = list(result.grad_norms.values())
    assert norms == sorted(norms, reverse=True)
    assert math.sqrt(sum(n * n for n in norms)) == pytest.approx(record["grad_norm"], rel=1e-4)


def test_without_a_checkpoint_a_replay_starts_at_the_first_step(
    little_config: Make, tmp_path: Path
) -> None:
    config = replace(breaking(little_config("run"), 1e25), save_every="1h")
    with pytest.raises(DeitctlError, match=r"at step 5, .*No checkpoint was saved before it"):
        run_training(config)
    result = replay(tmp_path / "run" / "incidents" / "step-0000005")
    assert result.reproduced
    assert [s["step"] for s in result.steps] == list(range(6))


def test_a_replay_before_the_first_checkpoint_fits_the_new_head_as_the_run_did(
    little_config: Make, tmp_path: Path, deit: Callable[..., VisionTransformer]
) -> None:
    weights = tmp_path / "five.safetensors"
    save_tensors(weights, deit(classes=5).state_dict())
    config = replace(
        breaking(little_config("run", model_args={}), 1e25), save_every="1h", weights=str(weights)
    )
    config = replace(config, recipe=replace(config.recipe, head_init="ridge"))
    with pytest.raises(DeitctlError, match="at step 5"):
        run_training(config)
    result = replay(tmp_path / "run" / "incidents" / "step-0000005")
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert {name: first[name] for name in result.steps[0]} == result.steps[0]


def test_a_replay_is_for_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="for one process"):
        replay(tmp_path)

"""Runs whose weights are divided among processes end as those of one, and go on in any number of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import deitctl
from deitctl.config import TrainConfig
from deitctl.errors import ConfigError, ModelError
from deitctl.training.configure import check
from deitctl.training.launch import resume, run_training
from deitctl.training.saved_state import EMA, MODEL, OPTIMIZER, read_file
from deitctl.training.sharded_checkpoint import read_shards
from tests.training import sharded_runs

Tensors = dict[str, torch.Tensor]


def launch(out: Path, case: str, num_processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = Path(__file__).with_name("sharded_runs.py")
    done = subprocess.run(
        [*command, f"--nproc-per-node={num_processes}", str(program), str(out), case],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,  # a busy machine takes minutes
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process trained `alone` and two `whole`, `parted` and more."""
    out = tmp_path_factory.mktemp("sharded")
    run_training(sharded_runs.make_config(out / "alone"), datasets=sharded_runs.load_data())
    launch(out, "two", 2)
    return out


def read_state(run: Path) -> Tensors:
    """Return the tensors of a run's checkpoint, of whichever kind."""
    checkpoint = run / "checkpoint"
    record = json.loads((checkpoint / "state.json").read_text())
    if record.get("is_sharded"):
        files = read_shards(checkpoint, record["checksums"])
    else:
        files = {name: read_file(checkpoint, name, None) for name in (MODEL, EMA, OPTIMIZER)}
    return {f"{file} {name}": v for file, own in files.items() for name, v in own.items()}


def measure(run: Path, other: Path) -> float:
    """Return the largest difference of two runs' weights, averages and moments."""
    one, two = read_state(run), read_state(other)
    assert one.keys() == two.keys()
    return max(float((one[k].double() - two[k].double()).abs().max()) for k in one)


def test_two_processes_train_what_one_trains_to_rounding(folder: Path) -> None:
    assert measure(folder / "whole", folder / "alone") < 1e-4
    losses = []
    for run in ("whole", "alone"):
        records = map(json.loads, (folder / run / "metrics.jsonl").read_text().splitlines())
        losses.append([record["loss"] for record in records if "loss" in record])
    assert len(losses[0]) > 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_run_that_was_stopped_ends_bit_equal(folder: Path) -> None:
    assert measure(folder / "parted", folder / "whole") == 0


def test_three_go_on_with_what_two_saved_and_with_smaller_micro_batches(folder: Path) -> None:
    launch(folder, "three", 3)
    assert measure(folder / "by three", folder / "whole") < 1e-4
    record = json.loads((folder / "by three" / "checkpoint" / "state.json").read_text())
    assert record["micro_batch_size"] == 2


def test_a_state_of_one_process_is_divided_and_put_together_again(folder: Path) -> None:
    assert measure(folder / "moved", folder / "alone") == 0
    again = shutil.copytree(folder / "moved", folder / "again")
    resume(again, settings={"strategy": "ddp"}, datasets=sharded_runs.load_data())
    assert (again / "checkpoint" / MODEL).exists()
    assert measure(again, folder / "alone") == 0


def test_its_weights_are_a_model_like_any(folder: Path) -> None:
    model = deitctl.load(folder / "whole")
    result = json.loads((folder / "whole" / "result.json").read_text())
    assert model is not None
    assert result["best"]["weights"] in ("model", "ema")


def test_memory_that_runs_out_within_a_pass_is_one_error_in_every_process(folder: Path) -> None:
    errors = [(folder / f"error {rank}").read_text() for rank in (0, 1)]
    own, other = (error.partition("more processes.")[0] for error in errors)
    assert own == other
    assert "process 1 with micro-batches of 4 images" in errors[0]
    assert "--micro-batch-size 2" in errors[0]


def test_a_damaged_part_is_refused(folder: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(folder / "whole" / "checkpoint", tmp_path / "checkpoint")
    record = json.loads((checkpoint / "state.json").read_text())
    part = max(checkpoint.glob("shard-*"))
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(ModelError, match="is missing or damaged"):
        read_shards(checkpoint, record["checksums"])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"compile": "on"}, "--compile on"),
        ({"cuda_graphs": True, "compile": "on"}, "--compile on"),
    ],
)
def test_what_does_not_go_with_it_is_refused(settings: dict[str, object], reason: str) -> None:
    config = sharded_runs.make_config(Path("run"), strategy="fsdp", **settings)
    with pytest.raises(ConfigError, match=f"fsdp does not go with {reason}"):
        check(config)


def change_recipe(**changes: object) -> TrainConfig:
    config = sharded_runs.make_config(Path("run"), strategy="fsdp")
    return replace(config, recipe=replace(config.recipe, **changes))


def test_other_optimizers_clips_and_frozen_weights_are_refused() -> None:
    optim = sharded_runs.make_config(Path("run")).recipe.optim
    for config, reason in (
        (change_recipe(optim=replace(optim, opt="lamb")), "the optimizer lamb"),
        (change_recipe(optim=replace(optim, clip_mode="agc")), "clip_mode=agc"),
        (change_recipe(freeze_blocks=1), "frozen weights"),
    ):
        with pytest.raises(ConfigError, match=f"fsdp does not go with {reason}"):
            check(config)


def test_one_process_is_refused(tmp_path: Path) -> None:
    config = sharded_runs.make_config(tmp_path / "run", strategy="fsdp")
    with pytest.raises(ConfigError, match="divides the weights among processes, and there is one"):
        run_training(config, datasets=sharded_runs.load_data())
    assert not (tmp_path / "run").exists()

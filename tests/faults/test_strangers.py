"""A run folder from somebody else: nothing outside of it is written, and nothing in it blocks or exhausts memory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from deitctl.errors import DeitctlError
from deitctl.events import SilentReporter
from deitctl.training.launch import resume, run_training

OWN_NAMES = (
    "lock", "metrics.jsonl", "launch_id", "result.json", "config.json", "split.csv", "model.safetensors",
    "checkpoint.new", "checkpoint.old", "figures/curves.png",
)  # fmt: skip
READ_NAMES = (
    "run.toml", "metrics.jsonl", "lock", "result.json", "launch_id", "split.csv", "checkpoint/state.json",
    "checkpoint/model.safetensors", "checkpoint/optimizer.safetensors",
)  # fmt: skip


@pytest.fixture(scope="module")
def run_of_a_stranger(tmp_path_factory, little) -> Path:
    """A run that has an epoch to go."""
    from dataclasses import replace

    from deitctl.config import TrainConfig
    from deitctl.recipes import DIGITS

    root = tmp_path_factory.mktemp("stranger") / "run"
    recipe = replace(DIGITS, img_size=16, epochs=1, batch_size=30)
    config = TrainConfig(
        model="test_vit",
        data="digits",
        recipe=recipe,
        precision="fp32",
        workers=0,
        output_dir=str(root),
    )
    run_training(config, datasets=little, reporter=SilentReporter())
    return root


@pytest.fixture
def stranger(run_of_a_stranger, tmp_path) -> Path:
    return Path(shutil.copytree(run_of_a_stranger, tmp_path / "run"))


@pytest.fixture
def precious(tmp_path) -> Path:
    file = tmp_path / "precious"
    file.write_text("precious\n" * 99)
    return file


def resume_or_refuse(run: Path, datasets) -> str:
    """Resume, and return the error if it is one line of ours."""
    try:
        resume(run, datasets=datasets, reporter=SilentReporter())
    except DeitctlError as error:
        assert "\n" not in error.message
        return error.message
    return ""


@pytest.mark.parametrize("name", OWN_NAMES)
def test_a_link_among_its_names_destroys_nothing(name, stranger, precious, little):
    path = stranger / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(precious)
    resume_or_refuse(stranger, little)
    assert precious.read_text() == "precious\n" * 99


@pytest.mark.parametrize(
    "name", ["checkpoint.new", "checkpoint.old", "checkpoint", "figures", "incidents"]
)
def test_a_folder_that_is_a_link_is_not_written_into(name, stranger, tmp_path, little):
    yours = tmp_path / "yours"
    yours.mkdir()
    (yours / "model.safetensors").write_text("mine")
    shutil.rmtree(stranger / name, ignore_errors=True)
    (stranger / name).symlink_to(yours)
    resume_or_refuse(stranger, little)
    assert [p.name for p in yours.iterdir()] == ["model.safetensors"]
    assert (yours / "model.safetensors").read_text() == "mine"


@pytest.mark.parametrize("name", READ_NAMES)
def test_a_pipe_among_its_names_does_not_block(name, stranger, little):
    (stranger / name).unlink(missing_ok=True)
    os.mkfifo(stranger / name)
    resume_or_refuse(stranger, little)


@pytest.mark.parametrize(
    "name", ["run.toml", "lock", "launch_id", "result.json", "split.csv", "checkpoint/state.json"]
)
def test_an_endless_record_is_not_read_whole(name, stranger, little):
    with (stranger / name).open("wb") as file:
        file.truncate(1 << 40)
    resume_or_refuse(stranger, little)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_one_bit_of_a_checkpoint_is_noticed(name, stranger, little):
    shutil.rmtree(stranger / "result.json", ignore_errors=True)
    (stranger / "result.json").unlink(missing_ok=True)
    path = stranger / "checkpoint" / name
    data = bytearray(path.read_bytes())
    at = data.index(b'"images_seen"') + 16 if name == "state.json" else len(data) - 7
    data[at] ^= 1
    path.write_bytes(data)
    message = resume_or_refuse(stranger, little)
    assert "checksum" in message
    assert "checkpoint" in message


def test_the_unchanged_run_is_finished(stranger, little):
    (stranger / "result.json").unlink()
    assert resume_or_refuse(stranger, little) == ""
    assert json.loads((stranger / "result.json").read_text())["epochs"] == 1

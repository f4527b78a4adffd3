"""No part of a saved state is used before all of it is known to be whole, of one save, and of this model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deitctl.errors import ModelError
from deitctl.models.checkpoint_io import load_tensors, save_tensors
from deitctl.models.introspect import freeze_backbone
from deitctl.training.saved_state import FILES, MODEL, OPTIMIZER, RECORD_CHECKSUM, read_record
from deitctl.training.state import TrainState
from tests.training.test_state import everything, new_state, step

Tensors = dict[str, torch.Tensor]
MOMENT = "blocks.0.attn.qkv.weight.exp_avg"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the state of this module is kept, once it has been made."""
    return tmp_path_factory.mktemp("kept") / "checkpoint"


@pytest.fixture
def saved(kept: Path, tmp_path: Path, deit: Callable[..., nn.Module]) -> Path:
    """The state after one step, as an older deitctl or a forger writes it: without checksums."""
    if not kept.exists():
        state = new_state(deit(seed=1))
        step(state, 0)
        state.progress.images_seen = state.progress.images_in_epoch = 4
        state.loss_sums = {"loss": torch.tensor(9.0)}
        state.save(kept)
        forge(kept, {})
    return shutil.copytree(kept, tmp_path / "run" / "checkpoint")


def forge(folder: Path, changes: dict[str, Any]) -> None:
    """Change state.json, and leave its checksums out."""
    file = folder / "state.json"
    record = json.loads(file.read_text())
    for name in (RECORD_CHECKSUM, "checksums", "without_moments"):
        record.pop(name, None)
    file.write_text(json.dumps(record | changes))


def change(folder: Path, name: str, change: Callable[[Tensors], object]) -> None:
    """Change the tensors of a file, and give them a checksum that is right."""
    tensors = {key: value.clone() for key, value in load_tensors(folder / name).items()}
    change(tensors)
    save_tensors(folder / name, tensors)


def refuse(folder: Path, state: TrainState, text: str) -> None:
    """The state is refused in a line, and what it was to be loaded into is as it was."""
    before = [value.clone() for value in everything(state)]
    progress = dict(vars(state.progress))
    with pytest.raises(ModelError, match=text) as error:
        state.load(folder)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600
    assert len(state.optimizer.state) == 0
    assert vars(state.progress) == progress
    assert all(torch.equal(a, b) for a, b in zip(everything(state), before, strict=True))


def test_a_state_of_an_older_deitctl_has_no_checksums_and_is_read(saved, deit):
    state = new_state(deit(seed=2))
    state.load(saved)
    assert state.progress.step == 1
    assert len(state.optimizer.state) == sum(1 for _ in state.model.parameters())


BAD_MOMENTS = {
    "shorter ones, behind which a fused optimizer writes": lambda t: t.update(
        {n: v[..., :1].contiguous() for n, v in t.items() if v.ndim > 1}
    ),
    "another shape of as many numbers": lambda t: t.update({MOMENT: t[MOMENT].mT.contiguous()}),
    "another type": lambda t: t.update({MOMENT: t[MOMENT].half()}),
    "integers": lambda t: t.update({MOMENT: t[MOMENT].view(torch.int32)}),
    "one missing": lambda t: t.pop(MOMENT),
    "one of nobody": lambda t: t.update({"cls_token.foo.exp_avg": t[MOMENT].clone()}),
    "one without an owner": lambda t: t.update({"nonsense": t[MOMENT].clone()}),
    "another moment": lambda t: t.update(
        {"cls_token.max_exp_avg_sq": t["cls_token.exp_avg"].clone()}
    ),
    "NaN": lambda t: t[MOMENT][0, 0].fill_(float("nan")),
    "infinity": lambda t: t[MOMENT][0, 0].fill_(float("inf")),
    "a negative mean square": lambda t: t[f"{MOMENT}_sq"][0, 0].fill_(-1.0),
    "more steps than were done": lambda t: t["cls_token.step"].fill_(7),
    "less than no step": lambda t: t["cls_token.step"].fill_(-1),
    "half a step": lambda t: t["cls_token.step"].fill_(0.5),
    "steps of each number": lambda t: t.update({"cls_token.step": torch.ones(192)}),
}


@pytest.mark.parametrize("kind", BAD_MOMENTS)
def test_moments_that_are_not_of_this_model_are_refused_by_name(kind, saved, deit):
    change(saved, OPTIMIZER, BAD_MOMENTS[kind])
    name = r"(blocks\.0|cls_token|nonsense)"
    refuse(saved, new_state(deit(seed=2)), rf"checkpoint/{OPTIMIZER} .*'{name}")


def test_moments_of_one_parameter_that_are_all_missing_are_refused(saved, deit):
    """An older deitctl did not say whose are missing; this one does."""
    state = new_state(deit(seed=1))
    state.load(saved)
    state.save(saved)

    def remove(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("blocks.0.attn.proj.weight.")]:
            del tensors[name]

    change(saved, OPTIMIZER, remove)
    record = json.loads((saved / "state.json").read_text())
    forge(saved, {"without_moments": record["without_moments"]})
    refuse(saved, new_state(deit(seed=2)), r"it lacks 'blocks\.0\.attn\.proj\.weight\.step'")


def test_moments_of_a_frozen_parameter_are_refused(saved, deit):
    model = deit(seed=2)
    freeze_backbone(model)
    refuse(saved, new_state(model), "has the unknown 'blocks")


@pytest.mark.parametrize("name", [MODEL, "ema.safetensors"])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (lambda t: t.pop("head.weight"), r"it lacks 'head\.weight'"),
        (lambda t: t.update(more=torch.ones(1)), "has the unknown 'more'"),
        (lambda t: t.update({"head.bias": t["head.bias"][:1]}), r"'head\.bias' is float32 \[1\]"),
        (lambda t: t.update({"head.bias": t["head.bias"].double()}), "'head.bias' is float64"),
        (
            lambda t: t["head.bias"].fill_(float("nan")),
            r"unusable: 'head\.bias' has infinite or NaN",
        ),
    ],
)
def test_weights_that_are_not_of_this_model_are_refused_by_name(name, kind, text, saved, deit):
    change(saved, name, kind)
    refuse(saved, new_state(deit(seed=2)), rf"checkpoint/{name} .*{text}")


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": -5},
        {"step": 10**30},
        {"step": -1},
        {"step": True},
        {"epoch": 2},
        {"log_bytes": -1},
        {"log_bytes": 1e999},
        {"images_in_epoch": 0},
        {"images_in_epoch": 5},
        {"loss_sums": {}},
        {"loss_sums": {"task_loss": 1.0}},
        {"loss_sums": {"loss": float("nan")}},
        {"loss_sums": {"loss": 1e308}},
        {"loss_sums": {"loss": 10**400}},
        {"loss_sums": 3},
        {"micro_batch_size": -4},
        {"micro_batch_size": 3},
        {"seconds": float("inf")},
        {"seconds": -1},
        {"recent_loss": float("nan")},
        {"best_score": 101},
        {"best_score": float("nan")},
        {"best_epoch": -1},
        {"improved_epoch": 3},
        {"best_weights": "other"},
        {"best_weights": "x" * 10_000},
        {"unreadable": []},
        {"scaler": 5},
        {"scaler": []},
        {"scaler": {"scale": "a"}},
        {"scaler": {"scale": 1.0}},
        {"checksums": 5},
        {"without_moments": 5},
    ],
)
def test_a_number_that_no_training_has_is_refused_in_a_line(changes, saved, deit):
    forge(saved, changes)
    (name,) = changes
    refuse(saved, new_state(deit(seed=2)), rf"no readable training state: state\.json: .*{name}")


SCALER = torch.amp.GradScaler("cpu").state_dict()


@pytest.mark.parametrize(
    ("changes", "is_valid"),
    [
        ({}, True),
        ({"scale": 2.0**24, "_growth_tracker": 7}, True),
        ({"scale": 0.0}, False),
        ({"scale": -1.0}, False),
        ({"scale": float("inf")}, False),
        ({"scale": float("nan")}, False),
        ({"growth_factor": 0.5}, False),
        ({"backoff_factor": 2.0}, False),
        ({"growth_interval": 0}, False),
        ({"growth_interval": 1.5}, False),
        ({"_growth_tracker": -1}, False),
        ({"more": 1}, False),
    ],
)
def test_a_loss_scale_is_one_that_a_scaler_has(changes, is_valid, saved, deit):
    forge(saved, {"scaler": SCALER | changes})
    state = new_state(deit(seed=2))
    state.scaler = torch.amp.GradScaler("cpu", enabled=True)
    if is_valid:
        state.load(saved)
        assert state.scaler.get_scale() == (SCALER | changes)["scale"]
    else:
        refuse(saved, state, "scaler is")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_file_is_damage(name, tmp_path, deit):
    """In the tensors, and in a digit of state.json, which stays valid JSON."""
    state, folder = new_state(deit(seed=1), projector=True), tmp_path / "checkpoint"
    step(state, 0)
    state.save(folder)
    data = bytearray((folder / name).read_bytes())
    at = data.index(b'"seconds": 0') + 11 if name == "state.json" else len(data) - 5
    data[at] ^= 1
    (folder / name).write_bytes(data)
    refuse(
        folder,
        new_state(deit(seed=2), projector=True),
        rf"checkpoint/{name} is damaged: its checksum does not",
    )


@pytest.mark.parametrize("name", FILES)
def test_a_mixture_of_two_saves_is_refused(name, tmp_path, deit):
    """As rsync leaves it of a folder that is being written: each file is whole."""
    state, early, late = (
        new_state(deit(seed=1), projector=True),
        tmp_path / "checkpoint",
        tmp_path / "late",
    )
    step(state, 0)
    state.save(early)
    step(state, 1)
    assert state.projector is not None
    state.projector[0].weight.data.add_(1)
    state.save(late)
    shutil.copy(late / name, early / name)
    refuse(
        early,
        new_state(deit(seed=2), projector=True),
        r"is of another save than state\.json, as in a copy of",
    )
    if name != "state.json":  # nor without any checksum of its own
        tensors = load_tensors(late / name)
        save_file(tensors, early / name)
        refuse(
            early, new_state(deit(seed=2), projector=True), r"is of another save than state\.json"
        )


def test_the_way_on_is_named(tmp_path, deit):
    folder = tmp_path / "run" / "checkpoint"
    new_state(deit()).save(folder)
    (folder / MODEL).write_bytes(b"")

    def hint() -> str:
        with pytest.raises(ModelError) as error:
            new_state(deit()).load(folder)
        return error.value.hint

    assert hint() == f"Restore it from a copy, or delete {folder} to start again."
    save_tensors(tmp_path / "run" / MODEL, {"x": torch.ones(1)})
    assert hint().endswith(f"start a new run from the best weights, {tmp_path / 'run'}.")
    new_state(deit()).save(tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / "run" / "checkpoint.old")
    assert hint().startswith(f"Delete {folder} to go on from the checkpoint before it, ")
    shutil.rmtree(folder)
    new_state(deit()).load(folder)


def test_a_record_that_is_no_object_is_refused(tmp_path):
    for text in ('""', "5", "null", "[]", "{", "1" * 5000, "\xff"):
        (tmp_path / "state.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ModelError, match="holds no readable training state") as error:
            read_record(tmp_path)
        assert len(str(error.value).splitlines()) == 1

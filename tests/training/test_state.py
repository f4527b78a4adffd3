"""A state comes back bit by bit, and a kill at any moment leaves one of two whole."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import timm
import torch
from torch import nn

from deitctl.device import choose_device
from deitctl.errors import DeitctlError, ModelError
from deitctl.models.introspect import freeze_backbone
from deitctl.recipes import RECIPES
from deitctl.training.ema import ExponentialMovingAverage
from deitctl.training.optim import build_optimizer, set_learning_rate
from deitctl.training.state import Progress, TrainState, rename_best

OPTIM = RECIPES["small"].optim


def new_state(model: nn.Module, *, ema: bool = True, projector: bool = False) -> TrainState:
    return TrainState(
        model,
        build_optimizer(model, OPTIM),
        torch.amp.GradScaler("cpu", enabled=False),
        ExponentialMovingAverage(model, decay=0.9) if ema else None,
        Progress(),
        projector=nn.ModuleList([nn.Linear(2, 3)]) if projector else None,
    )


def step(state: TrainState, number: int, size: int = 32) -> None:
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(number))
    out = state.model.train()(images)
    (out if isinstance(out, torch.Tensor) else out.cls).square().mean().backward()
    set_learning_rate(state.optimizer, 1e-3)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update(state.model, number, total_steps=100)
    state.progress.step += 1


def everything(state: TrainState) -> list[torch.Tensor]:
    moments = [
        state.optimizer.state[p][key]
        for p in state.model.parameters()
        if p in state.optimizer.state
        for key in sorted(state.optimizer.state[p])
    ]
    averages = list(state.ema.values.values()) if state.ema is not None else []
    return [*state.model.state_dict().values(), *moments, *averages]


def build(kind: str, deit, seed: int) -> nn.Module:
    if kind == "deit":
        return deit(seed=seed)
    torch.manual_seed(seed)
    # channels-last
    return choose_device("cpu", "fp32").to_device(timm.create_model("regnety_002", num_classes=3))


@pytest.mark.parametrize("kind", ["deit", "convnet"])
@pytest.mark.parametrize("ema", [True, False])
def test_a_resumed_run_continues_bit_by_bit(kind, ema, tmp_path, deit):
    whole = new_state(build(kind, deit, 1), ema=ema)
    for number in range(4):
        step(whole, number)
        if number == 1:
            whole.save(tmp_path / "state")
    resumed = new_state(build(kind, deit, 2), ema=ema)
    resumed.load(tmp_path / "state")
    assert resumed.progress.step == 2
    for number in range(2, 4):
        step(resumed, number)
    for ours, expected in zip(everything(resumed), everything(whole), strict=True):
        assert torch.equal(ours, expected)


def test_moments_keep_the_memory_format_of_their_parameters(tmp_path, deit):
    state = new_state(build("convnet", deit, 1))
    step(state, 0)
    state.save(tmp_path / "state")
    fresh = new_state(build("convnet", deit, 2))
    fresh.load(tmp_path / "state")
    for parameter in fresh.model.parameters():
        moment, last = fresh.optimizer.state[parameter]["exp_avg"], torch.channels_last
        if parameter.ndim == 4 and not parameter.is_contiguous():
            assert moment.is_contiguous(memory_format=last)
            assert parameter.is_contiguous(memory_format=last)
        else:
            assert moment.is_contiguous()


def test_the_best_top1_of_an_older_state_is_a_score_by_a_metric_that_has_a_name():
    record = {"best_top1": 88.5, "best_epoch": 2, "step": 7}
    renamed = {"best_score": 88.5, "best_select": "top1", "best_epoch": 2, "step": 7}
    assert rename_best(record) == renamed
    assert rename_best(renamed) == renamed
    assert rename_best({"best_top1": -1.0, "best_epoch": 0})["best_select"] == ""


def test_progress_survives(tmp_path, deit):
    state = new_state(deit())
    state.progress = Progress(
        step=7,
        epoch=2,
        images_seen=99,
        seconds=1.5,
        best_score=88.5,
        best_select="top1",
        best_epoch=1,
        best_weights="ema",
        log_bytes=12,
    )
    state.progress.unreadable["a/b.jpg"] = "a/b.jpg is empty."
    state.save(tmp_path / "state")
    fresh = new_state(deit())
    fresh.load(tmp_path / "state")
    assert fresh.progress == state.progress


def test_a_state_with_a_frozen_backbone_comes_back_bit_by_bit(tmp_path, deit):
    """Only the head has moments: what never learns must not be looked for."""

    def probe(seed: int) -> TrainState:
        model = deit(seed=seed)
        freeze_backbone(model)
        return new_state(model)

    whole, resumed = probe(1), probe(2)
    step(whole, 0)
    whole.save(tmp_path / "state")
    resumed.load(tmp_path / "state")
    for state in (whole, resumed):
        step(state, 1)
    assert len(whole.optimizer.state) == 2  # weight and bias
    for ours, expected in zip(everything(resumed), everything(whole), strict=True):
        assert torch.equal(ours, expected)


def test_saving_leaves_one_folder(tmp_path, deit):
    state = new_state(deit())
    for _ in range(2):
        state.save(tmp_path / "state")
    assert os.listdir(tmp_path) == ["state"]
    names = sorted(os.listdir(tmp_path / "state"))
    assert names == ["ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]


def test_a_kill_between_the_two_renames_is_survived(tmp_path, deit, monkeypatch):
    state = new_state(deit())
    step(state, 0)
    state.save(tmp_path / "state")
    kept = [v.clone() for v in everything(state)]
    step(state, 1)
    rename, calls = os.rename, []

    def killed(source: object, target: object) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        state.save(tmp_path / "state")
    monkeypatch.setattr(os, "rename", rename)
    assert not (tmp_path / "state").exists()
    fresh = new_state(deit(seed=3))
    fresh.load(tmp_path / "state")
    assert fresh.progress.step == 1
    assert all(torch.equal(a, b) for a, b in zip(everything(fresh), kept, strict=True))
    step(fresh, 1)
    fresh.save(tmp_path / "state")  # and saving goes on from there
    fresh.save(tmp_path / "state")
    assert os.listdir(tmp_path) == ["state"]


def test_a_kill_after_a_survived_kill_is_survived(tmp_path, deit, monkeypatch):
    """`state` is gone, `state.old` is the only whole one: the next save must not remove it before it is replaced."""
    state = new_state(deit())
    state.save(tmp_path / "state")
    (tmp_path / "state").rename(tmp_path / "state.old")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        state.save(tmp_path / "state")
    new_state(deit()).load(tmp_path / "state")


def test_a_state_left_half_written_is_ignored(tmp_path, deit):
    state = new_state(deit())
    state.save(tmp_path / "state")
    (tmp_path / "state.new").mkdir()
    (tmp_path / "state.new" / "model.safetensors").write_bytes(b"half")
    state.save(tmp_path / "state")
    assert os.listdir(tmp_path) == ["state"]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        '{"scaler": {}, "unknown": 1}',
        '{"scaler": {}, "step": "7"}',
        '{"scaler": {}, "epoch": 1.5}',
        '{"scaler": {}, "loss_sums": {"loss": "x"}}',
        '{"scaler": {}, "unreadable": {"a": 1}}',
        '{"scaler": {}, "best_score": null}',
        '{"scaler": {}, "loss_sums": [1]}',
        "[" * 1000,
    ],
)
def test_an_unreadable_state_is_an_error(text, tmp_path, deit):
    new_state(deit()).save(tmp_path / "state")
    (tmp_path / "state" / "state.json").unlink()
    if text is not None:
        (tmp_path / "state" / "state.json").write_text(text)
    with pytest.raises(ModelError, match="holds no readable training state"):
        new_state(deit()).load(tmp_path / "state")


def test_another_version_is_an_error(tmp_path, deit):
    new_state(deit()).save(tmp_path / "state")
    file = tmp_path / "state" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 99}))
    with pytest.raises(ModelError, match="another version"):
        new_state(deit()).load(tmp_path / "state")


def test_another_model_is_an_error(tmp_path, deit):
    new_state(deit()).save(tmp_path / "state")
    with pytest.raises(ModelError, match="does not fit the run's model"):
        new_state(deit(classes=9)).load(tmp_path / "state")


def test_missing_files_are_reported(tmp_path, deit):
    state = new_state(deit())
    for name in ("model", "ema", "optimizer"):
        state.save(tmp_path / "state")
        (tmp_path / "state" / f"{name}.safetensors").unlink()
        with pytest.raises(ModelError, match=name):
            new_state(deit()).load(tmp_path / "state")
        shutil.rmtree(tmp_path / "state")


def test_a_run_can_go_on_in_another_precision(tmp_path, deit):
    """Saved without a loss scale (bf16, fp32), taken up with one (fp16), and the other way round."""
    plain = new_state(deit())
    plain.save(tmp_path / "state")
    scaled = new_state(deit())
    scaled.scaler = torch.amp.GradScaler("cpu", enabled=True)
    scaled.load(tmp_path / "state")
    assert scaled.scaler.is_enabled()
    scaled.scaler.load_state_dict({**scaled.scaler.state_dict(), "scale": 128.0})
    scaled.save(tmp_path / "state")
    plain.load(tmp_path / "state")
    scaled.scaler = torch.amp.GradScaler("cpu", enabled=True)
    scaled.load(tmp_path / "state")
    assert scaled.scaler.get_scale() == 128.0


def test_weights_are_those_of_the_model_or_their_ema(deit):
    averaged, plain = new_state(deit()), new_state(deit(), ema=False)
    step(averaged, 0)
    assert averaged.weights("ema") is averaged.ema.values
    for state, kind in ((averaged, "model"), (plain, "model"), (plain, "ema")):
        expected = state.model.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in state.weights(kind).items())
    model, ema = averaged.weights("model"), averaged.weights("ema")
    assert not torch.equal(model["head.weight"], ema["head.weight"])


@pytest.mark.parametrize("kind", ["deit", "convnet"])
def test_the_model_has_its_ema_weights_for_a_block_only(kind, deit):
    """Buffers too: a convnet's average has batch statistics of its own."""
    state = new_state(build(kind, deit, 1))
    for number in range(2):
        step(state, number)
    own = {k: v.clone() for k, v in state.model.state_dict().items()}
    ema = {k: v.clone() for k, v in state.ema.values.items()}
    with state.swap_weights(state.ema.values):
        assert all(torch.equal(v, ema[k]) for k, v in state.model.state_dict().items())
    assert all(torch.equal(v, own[k]) for k, v in state.model.state_dict().items())
    assert all(torch.equal(v, ema[k]) for k, v in state.ema.values.items())
    step(state, 2)  # and the optimizer still moves the model's own
    head = "head.weight" if kind == "deit" else "head.fc.weight"
    assert not torch.equal(state.model.state_dict()[head], own[head])


def test_the_models_weights_come_back_if_the_block_fails(deit):
    state = new_state(deit())
    step(state, 0)
    own = {k: v.clone() for k, v in state.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), state.swap_weights(state.ema.values):
        raise KeyboardInterrupt
    assert all(torch.equal(v, own[k]) for k, v in state.model.state_dict().items())


def test_a_full_disk_keeps_the_old_state(tmp_path, deit, monkeypatch):
    state = new_state(deit())
    state.save(tmp_path / "state")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    state.progress.step = 5
    with pytest.raises(DeitctlError, match="No space left"):
        state.save(tmp_path / "state")
    fresh = new_state(deit())
    fresh.load(tmp_path / "state")
    assert fresh.progress.step == 0


def test_a_snapshot_is_of_its_moment(tmp_path, deit):
    """Weights, average, moments and numbers stay as they were while the model trains on."""
    state = new_state(deit())
    step(state, 0)
    state.progress.unreadable["a"] = "empty"
    kept = [v.clone() for v in everything(state)]
    snapshot = state.snapshot()
    step(state, 1)
    state.progress.unreadable["b"] = "empty"
    assert not any(
        torch.equal(a, b) for a, b in zip(everything(state), kept, strict=True) if a.ndim > 1
    )
    snapshot.write(tmp_path / "state")
    fresh = new_state(deit(seed=3))
    fresh.load(tmp_path / "state")
    assert all(torch.equal(a, b) for a, b in zip(everything(fresh), kept, strict=True))
    assert (fresh.progress.step, fresh.progress.unreadable) == (1, {"a": "empty"})


def test_loss_sums_micro_batch_and_recent_loss_survive(tmp_path, deit):
    state = new_state(deit())
    state.progress = Progress(
        step=40, images_seen=320, images_in_epoch=320, micro_batch_size=6, recent_loss=2.5
    )
    state.loss_sums = {"loss": torch.tensor(3.5), "task_loss": torch.tensor(0.1)}
    state.save(tmp_path / "state")
    fresh = new_state(deit())
    progress = fresh.progress
    fresh.load(tmp_path / "state")
    assert fresh.loss_sums == state.loss_sums  # exactly: the epoch's mean goes on from there
    assert fresh.progress is progress  # the monitor holds it
    assert progress == state.progress

"""Checkpoints of other trainers hold the same network as the file that they were made from, or are refused."""

from __future__ import annotations

import importlib.util
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch

import deitctl
from deitctl.errors import ModelError
from deitctl.models.checkpoint_io import read_checkpoint
from deitctl.models.factory import find_architecture, load_model
from deitctl.models.heads import forward_heads, fuse_heads

SOURCE = Path(deitctl.__file__).parents[1] / "benchmarks" / "foreign_checkpoints.py"
spec = importlib.util.spec_from_file_location("foreign_checkpoints", SOURCE)
foreign = importlib.util.module_from_spec(spec)
spec.loader.exec_module(foreign)

SAID = {
    "deit, --model-ema": "averaged weights (model_ema)",
    "timm, --model-ema": "averaged weights (state_dict_ema)",
    "Lightning": "without criterion",
    "Lightning, student and teacher": "the weights under 'student.model.', without teacher",
    "Lightning, transformers' network": "transformers' names",
}
HEADLESS = {
    "DINO": "the teacher's weights, without head",
    "DINOv2": "without dino_head, ibot_head, mask_token",
    "MAE": "without decoder_blocks, decoder_embed, decoder_norm, decoder_pos_embed, decoder_pred, mask_token",
    "MoCo v3": "the weights under 'base_encoder.', without head, momentum_encoder, predictor",
}


@pytest.fixture(scope="module")
def net(deit):
    return deit()


@pytest.fixture
def write(net, tmp_path):
    def make(layout):
        name, checkpoint = foreign.LAYOUTS[layout]
        torch.save(checkpoint(net.state_dict()), tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("layout", sorted(foreign.LAYOUTS.keys() - HEADLESS.keys()))
def test_a_checkpoint_of_another_trainer_has_timms_logits(layout, net, write, images, reporter):
    path = write(layout)
    theirs = timm.create_model("deit_tiny_patch16_224", num_classes=5, img_size=32).eval()
    theirs.load_state_dict(net.state_dict())
    loaded = load_model(str(path), reporter=reporter)
    with torch.inference_mode():
        logits = fuse_heads(forward_heads(loaded.model, images), loaded.model_config.head)
        difference = (logits - theirs(images)).abs().max()
    assert difference < 1e-5
    assert not reporter.warnings
    assert reporter.notes == [
        f"{path}: deit_tiny, ImageNet mean and std{', ' + SAID[layout] if layout in SAID else ''}."
    ]


@pytest.mark.parametrize("layout", sorted(HEADLESS))
def test_a_self_supervised_backbone_is_read_and_cannot_classify(layout, net, write, reporter):
    path, backbone = write(layout), foreign._without_head(net.state_dict())
    state = read_checkpoint(path).state
    assert state.keys() == backbone.keys()
    assert all(torch.equal(value, backbone[name]) for name, value in state.items())
    assert find_architecture(str(path), reporter).alias == "deit_tiny"
    with pytest.raises(ModelError, match="has no classifier head") as error:
        load_model(str(path), reporter=reporter)
    assert HEADLESS[layout] in error.value.message
    assert "deitctl train DATA --model deit_tiny --weights FILE" in error.value.hint


@pytest.mark.parametrize(
    "prefix",
    [
        "module.model.",
        "model.module._orig_mod.",
        "net.backbone.",
        "timm_model.",
        "student.encoder.",
    ],
)
def test_prefixes_are_removed_in_any_nesting(prefix, net, tmp_path, noise):
    state = foreign._prefix(prefix, net.state_dict()) | {"loss.scale": noise(1)}
    torch.save({"model_state_dict": state}, tmp_path / "x")
    assert read_checkpoint(tmp_path / "x").state.keys() == net.state_dict().keys()


@pytest.mark.parametrize(
    ("stored", "taken", "entry"),
    [
        ({"ema": 1, "state_dict": 0}, 1, "ema"),
        ({"ema_state_dict": 1, "state_dict": 0}, 1, "ema_state_dict"),
        ({"model_ema": {}, "model": 0}, 0, "model"),
        ({"model": {"teacher": 1, "student": 0}}, 1, "model.teacher"),
        ({"best": 1, "optimizer": {"state": {}, "param_groups": []}}, 1, "best"),
        ({"net": {"module": 1}}, 1, "net.module"),
        ({"model_state": 0, "ema_weights": 1}, 1, "ema_weights"),
        ({"swa_state_dict": {"module": 1}, "state_dict": 0}, 1, "swa_state_dict.module"),
        ({"schema": 0}, 0, "schema"),
    ],
)
def test_the_entry_is_chosen_and_named(stored, taken, entry, tmp_path, noise):
    states = [{"a": noise(2, seed=0)}, {"a": noise(2, seed=1)}]

    def fill(value):
        if isinstance(value, dict):
            return {k: v if k == "optimizer" else fill(v) for k, v in value.items()}
        return states[value]

    torch.save(fill(stored), tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert torch.equal(checkpoint.state["a"], states[taken]["a"])
    assert checkpoint.entry == entry


def test_a_teacher_of_another_size_is_no_average(net, deit, tmp_path):
    other = deit("deit_small").state_dict()
    torch.save({"teacher": other, "student": net.state_dict()}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert (checkpoint.entry, checkpoint.notes) == ("student", ("the student's weights",))


def test_an_average_of_some_parameters_is_not_taken(net, tmp_path):
    part = {"head.weight": net.state_dict()["head.weight"]}
    torch.save({"model": net.state_dict(), "model_ema": part}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert (checkpoint.entry, checkpoint.notes) == ("model", ())


@pytest.mark.parametrize("prefix", ["ema_model.", "model_ema.module.", "averaged_model.module."])
def test_an_average_beside_the_network_in_one_dictionary_is_taken(prefix, net, tmp_path):
    noise = foreign._prefix("model.", foreign._noise(net.state_dict()))
    state = noise | foreign._prefix(prefix, net.state_dict()) | {"n_averaged": torch.tensor(3)}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    taken = read_checkpoint(tmp_path / "x.ckpt").state
    assert taken.keys() == net.state_dict().keys()
    assert torch.equal(taken["norm.weight"], net.state_dict()["norm.weight"])


def test_an_averaged_model_of_torch_has_a_counter(net, tmp_path):
    torch.save(torch.optim.swa_utils.AveragedModel(net).state_dict(), tmp_path / "x")
    assert read_checkpoint(tmp_path / "x").state.keys() == net.state_dict().keys()


def test_of_two_models_none_is_guessed(net, tmp_path, reporter):
    state = net.state_dict()
    torch.save({"generator": state, "critic": state}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="holds several models: 'generator', 'critic'"):
        load_model(str(tmp_path / "x.pth"), reporter=reporter)
    both = foreign._prefix("left.", state) | foreign._prefix("right.", state)
    torch.save(both, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=r"holds several networks: 'left\.', 'right\.'"):
        load_model(str(tmp_path / "x.pth"), reporter=reporter)


def test_mocos_small_vit_is_refused_because_it_has_other_heads(deit, tmp_path):
    state = foreign._prefix("module.base_encoder.", deit("deit_small").state_dict())
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match="12 attention heads where deit_small has 6"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ({"state": {}, "param_groups": []}, "holds the state of an optimizer, and no model"),
        ({}, "is not a dictionary of tensors: it is empty"),
        ({"epoch": 3, "loss": 0.1}, "its entries are 'epoch', 'loss'"),
        ([1, 2], "it is a list"),
        (torch.ones(3), r"it is one tensor of shape \(3,\)"),
        ({"a": torch.ones(2), "cfg": {"lr": 1}}, "it has 'cfg' too"),
        ({"model": {"a": torch.ones(2).numpy()}}, "holds NumPy arrays \\('a'\\)"),
        (
            {"a.weight": torch.ones(2, dtype=torch.int8)},
            "holds quantized weights: 'a.weight' is int8",
        ),
    ],
)
def test_what_holds_no_weights_is_refused_with_what_was_found(stored, reason, tmp_path):
    torch.save(stored, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=reason) as error:
        read_checkpoint(tmp_path / "x.pth")
    assert len(str(error.value).splitlines()) == 1


def test_a_dictionary_that_holds_itself_a_hundred_thousand_times_is_refused_at_once(tmp_path):
    inner: dict[str, object] = {}
    inner |= dict.fromkeys(("model", "state_dict", "teacher", "student", "net", "ema"), inner)
    inner |= {str(number): inner for number in range(100_000)}
    torch.save(inner, tmp_path / "x.pth")
    begun = time.process_time()
    with pytest.raises(ModelError, match="is not a dictionary of tensors"):
        read_checkpoint(tmp_path / "x.pth")
    assert time.process_time() - begun < 5


def test_an_attribute_that_hides_a_method_of_a_dictionary_is_no_traceback(tmp_path, noise):
    state = OrderedDict(a=noise(2))
    state.items = torch.Size  # stored beside the entries, and set by torch's unpickler
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ModelError) as error:
        read_checkpoint(tmp_path / "x.pth")
    assert len(str(error.value).splitlines()) == 1


def test_a_vit_of_timm_with_another_mean_is_warned_of(net, tmp_path, reporter):
    stored = {"arch": "vit_tiny_patch16_224", "state_dict": net.state_dict()}
    torch.save(stored, tmp_path / "x.pth.tar")
    load_model(str(tmp_path / "x.pth.tar"), reporter=reporter)
    assert any("--model vit_tiny_patch16_224 --weights" in message for message in reporter.warnings)

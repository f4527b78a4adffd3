"""Checkpoints of other trainers hold the same network as the file that they were made from, or are refused."""

from __future__ import annotations

import argparse
import importlib.util
import re
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
        ({"model": 0, "model_ema_state_dict": 1}, 1, "model_ema_state_dict"),
        ({"model_state": 0, "model_ema_state": 1}, 1, "model_ema_state"),
        ({"model": 0, "ema_state": {"module": 1}}, 1, "ema_state.module"),
        ({"model": 0, "shadow": 1}, 1, "shadow"),
        ({"model": 0, "ema": {"shadow": 1}}, 1, "ema.shadow"),
        ({"model": 0, "EMA": 1}, 1, "EMA"),
        ({"model": 0, "averaged_model": 1}, 1, "averaged_model"),
        ({"net": 0, "polyak-weights": 1}, 1, "polyak-weights"),
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
    said = "without 'model_ema', which is no average of all of it"
    assert (checkpoint.entry, checkpoint.notes) == ("model", (said,))


@pytest.mark.parametrize("name", ["best_state", "model_best", "net"])
def test_a_network_that_is_not_taken_is_said_to_be_there(name, net, tmp_path):
    state = net.state_dict()
    torch.save(
        {"model": state, name: state, "dino_loss": {"center": state["pos_embed"]}}, tmp_path / "x"
    )
    checkpoint = read_checkpoint(tmp_path / "x")
    assert (checkpoint.entry, checkpoint.notes) == ("model", (f"also there: {name!r}",))


def test_beside_an_average_the_best_weights_are_said_and_its_network_is_not(net, tmp_path):
    state = net.state_dict()
    torch.save({"model": state, "model_ema": state, "best_state": state}, tmp_path / "x")
    said = ("averaged weights (model_ema)", "also there: 'best_state'")
    assert read_checkpoint(tmp_path / "x").notes == said


def test_an_average_without_names_is_said_not_to_be_used(net, tmp_path):
    state = net.state_dict()
    ema = {"decay": 0.99, "shadow_params": list(state.values()), "collected_params": None}
    torch.save(
        {"model": state, "ema": ema, "ema_decay": 0.99, "avg_loss": torch.ones(3)}, tmp_path / "x"
    )
    assert read_checkpoint(tmp_path / "x").notes == (
        "without 'ema', which is no average of all of it",
    )


@pytest.mark.parametrize(
    ("callback", "key", "count", "is_taken"),
    [
        ("EMACallback", "ema_state_dict", {}, True),
        ("StochasticWeightAveraging", "average_model_state", {"n_averaged": 2}, True),
        (
            "StochasticWeightAveraging",
            "average_model_state",
            {"n_averaged": torch.tensor(0)},
            False,
        ),
    ],
)
def test_the_average_of_a_callback_of_lightning_is_taken_once_it_has_begun(
    callback, key, count, is_taken, net, tmp_path
):
    states = [
        foreign._prefix("model.", s) for s in (foreign._noise(net.state_dict()), net.state_dict())
    ]
    callbacks = {"ModelCheckpoint{'monitor': None}": {}, callback: {key: states[1], **count}}
    torch.save({"state_dict": states[0], "callbacks": callbacks}, tmp_path / "x.ckpt")
    checkpoint = read_checkpoint(tmp_path / "x.ckpt")
    expected = states[is_taken]["model.norm.weight"]
    assert torch.equal(checkpoint.state["norm.weight"], expected)
    name = f"callbacks.{callback}.{key}"
    assert checkpoint.notes == ((f"averaged weights ({name})",) if is_taken else ())


def test_an_average_that_has_not_begun_is_not_taken(net, tmp_path):
    average = torch.optim.swa_utils.AveragedModel(net).state_dict()
    torch.save({"model": net.state_dict(), "swa": average}, tmp_path / "x")
    assert read_checkpoint(tmp_path / "x").entry == "model"


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


def test_a_vit_whose_trainer_states_mean_and_crop_is_prepared_as_stated(net, tmp_path, reporter):
    args = argparse.Namespace(mean=(0.5,), std=[0.5] * 3, crop_pct=1.0, interpolation="bilinear")
    stored = {"arch": "vit_tiny_patch16_224", "state_dict": net.state_dict(), "args": args}
    torch.save(stored, tmp_path / "x")
    pre = load_model(str(tmp_path / "x"), reporter=reporter).model_config.preprocessing
    assert (pre.mean, pre.std, pre.crop_pct) == ((0.5,) * 3, (0.5,) * 3, 1)
    assert (pre.interpolation, pre.img_size) == ("bilinear", 32)
    assert not reporter.warnings
    assert "mean 0.5 and std 0.5, crop 1 bilinear as it was trained" in reporter.notes[0]


@pytest.mark.parametrize("scale", [1, 255], ids=["of 0..1", "of 0..255"])
@pytest.mark.parametrize("inner", ["0.mean 0.std 1.", "norm.pixel_mean norm.pixel_std net."])
def test_a_network_that_normalizes_its_own_images_gives_its_mean_and_std(
    scale, inner, net, tmp_path, reporter
):
    mean, std, prefix = inner.split()
    values = {mean: torch.full((1, 3, 1, 1), 0.4), std: torch.full((3,), 0.25)}
    state = foreign._prefix(prefix, net.state_dict())
    state |= {name: value * scale for name, value in values.items()}
    torch.save({"state_dict": state}, tmp_path / "x")
    pre = load_model(str(tmp_path / "x"), reporter=reporter).model_config.preprocessing
    assert pre.mean == pytest.approx((0.4,) * 3)
    assert pre.std == pytest.approx((0.25,) * 3)
    assert "mean 0.4 and std 0.25" in reporter.notes[0]


def test_a_teachers_normalization_is_not_its_students(net, tmp_path):
    state = net.state_dict()
    both = foreign._prefix("student.", state) | foreign._prefix("teacher.1.", state)
    both |= {"teacher.0.mean": torch.full((3,), 0.5), "teacher.0.std": torch.full((3,), 0.5)}
    torch.save(both, tmp_path / "x")
    assert read_checkpoint(tmp_path / "x").preprocessing == {}


def test_two_normalizations_are_refused(net, tmp_path):
    state = foreign._prefix("1.", net.state_dict())
    state |= {"0.mean": torch.full((3,), 0.5), "0.std": torch.full((3,), 0.5)}
    args = argparse.Namespace(mean=[0.4] * 3, std=[0.5] * 3)
    torch.save({"state_dict": state, "args": args}, tmp_path / "x")
    with pytest.raises(ModelError, match="normalizes twice"):
        read_checkpoint(tmp_path / "x")
    torch.save(state | {"0.std": torch.zeros(3)}, tmp_path / "x")
    with pytest.raises(ModelError, match="normalizes images inside the network"):
        read_checkpoint(tmp_path / "x")


def mark(state, value):
    """Return a state dict whose norm.bias tells it from another of the same network."""
    return {**state, "norm.bias": torch.full_like(state["norm.bias"], value)}


TEACHERS = {
    "of the same network": lambda state: mark(state, 2),
    "of features": lambda state: foreign._without_head(mark(state, 2)),
    "transformers'": lambda state: foreign.to_transformers(mark(state, 2)),
    "Swin": lambda _: {
        "patch_embed.proj.weight": torch.zeros(96, 3, 4, 4),
        "layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(169, 3),
        "head.fc.weight": torch.zeros(10, 768),
    },
    "ResNet": lambda _: timm.create_model("resnet18", num_classes=3).state_dict(),
    "of fewer layers": lambda state: {
        k: v for k, v in mark(foreign._without_head(state), 2).items() if "blocks.1" not in k
    },
}


@pytest.mark.parametrize("level", ["entries", "prefixes"])
@pytest.mark.parametrize("kind", TEACHERS)
def test_of_a_student_that_classifies_and_its_teacher_the_student_is_taken(
    kind, level, net, tmp_path
):
    student, teacher = mark(net.state_dict(), 1), TEACHERS[kind](net.state_dict())
    stored = {"student": student, "teacher": teacher}
    if level == "prefixes":
        stored = foreign._prefix("student.", student) | foreign._prefix("teacher.", teacher)
    torch.save(stored, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert checkpoint.state["norm.bias"].unique().tolist() == [1]
    assert "student" in " ".join(checkpoint.notes)


@pytest.mark.parametrize("level", ["entries", "prefixes"])
def test_a_teacher_without_classes_of_a_student_without_is_its_average(level, net, tmp_path):
    student, teacher = (foreign._without_head(mark(net.state_dict(), n)) for n in (1, 2))
    stored = {"student": student, "teacher": teacher}
    if level == "prefixes":
        stored = foreign._prefix("student.", student) | foreign._prefix("teacher.", teacher)
    torch.save(stored, tmp_path / "x")
    assert read_checkpoint(tmp_path / "x").state["norm.bias"].unique().tolist() == [2]


def test_a_student_of_another_kind_is_not_replaced_by_its_teacher(net, tmp_path):
    student = timm.create_model("resnet18", num_classes=5).state_dict()
    both = foreign._prefix("student.", student) | foreign._prefix("teacher.", net.state_dict())
    torch.save({"state_dict": both}, tmp_path / "x")
    assert read_checkpoint(tmp_path / "x").state.keys() == student.keys()


def test_a_name_that_holds_the_letters_of_an_average_is_none(net, tmp_path):
    state = net.state_dict()
    both = foreign._prefix("image_net.", state)
    both |= foreign._prefix("semantic_net.", foreign._without_head(state))
    torch.save(both, tmp_path / "x")
    with pytest.raises(ModelError, match="holds several networks: 'image_net.', 'semantic_net.'"):
        read_checkpoint(tmp_path / "x")


@pytest.mark.parametrize(
    ("beside", "keeper"),
    [
        (lambda state: {"ema_state_dict": {"steps": torch.tensor(5)} | state}, "MMEngine"),
        (lambda state: {"current_model_state": state, "averaging_state": {}}, "Lightning"),
    ],
)
def test_of_an_average_that_was_swapped_in_the_network_itself_is_left(
    beside, keeper, net, tmp_path
):
    raw = foreign._prefix("module.", mark(net.state_dict(), 2))
    torch.save({"state_dict": mark(net.state_dict(), 1)} | beside(raw), tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert checkpoint.state["norm.bias"].unique().tolist() == [1]
    assert f"averaged weights (state_dict: {keeper}" in checkpoint.notes[0]


@pytest.mark.parametrize(
    "extra",
    [
        {"num_updates": torch.tensor(3)},
        {"val_acc.correct": torch.tensor(3), "val_acc.confusion": torch.zeros(5, 5).long()},
        {"train_loss.mean_value": torch.tensor(0.3), "train_loss.weight": torch.tensor(2.0)},
        {"criterion.weight": torch.ones(5)},
    ],
    ids=str,
)
def test_counters_and_metrics_are_left_out_and_named(extra, net, tmp_path):
    torch.save(net.state_dict() | extra, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert checkpoint.state.keys() == net.state_dict().keys()
    assert checkpoint.notes == (f"without {next(iter(extra)).partition('.')[0]}",)


def test_wrappers_inside_the_network_are_removed(net, tmp_path):
    for part in ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"):
        state = {re.sub(r"(blocks\.\d+)", rf"\1.{part}", k): v for k, v in net.state_dict().items()}
        torch.save(state, tmp_path / "x")
        assert read_checkpoint(tmp_path / "x").state.keys() == net.state_dict().keys()


def test_a_metric_beside_the_only_state_dict_does_not_hide_it(net, tmp_path):
    torch.save({"vit": net.state_dict(), "best_acc": torch.tensor(0.9)}, tmp_path / "x")
    assert read_checkpoint(tmp_path / "x").state.keys() == net.state_dict().keys()


def test_a_convnet_in_lightning_loses_its_criterion_and_keeps_its_counters(tmp_path):
    state = timm.create_model("resnet18", num_classes=3).state_dict()
    stored = foreign._prefix("model.", state) | {"criterion.weight": torch.ones(3)}
    torch.save({"state_dict": stored}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert checkpoint.state.keys() == state.keys()
    assert checkpoint.notes == ("without criterion",)


def test_positions_that_are_sines_are_mocos_and_those_of_a_training_are_not(deit, tmp_path):
    state = deit("deit_small").state_dict()
    torch.save({"state_dict": foreign._prefix("module.", state)}, tmp_path / "x")
    assert read_checkpoint(tmp_path / "x").state.keys() == state.keys()
    fixed = state["pos_embed"].clone()
    fixed[:, 0] = 0
    for stored in (
        {"state_dict": foreign._prefix("module.", state | {"pos_embed": fixed})},
        {"arch": "vit_small", "state_dict": state},
    ):
        torch.save(stored, tmp_path / "x")
        with pytest.raises(ModelError, match="12 attention heads where deit_small has 6"):
            read_checkpoint(tmp_path / "x")


def test_what_is_computed_from_a_pooler_or_from_logits_is_refused(net, tmp_path):
    theirs = foreign.to_transformers(net.state_dict())
    pooled = theirs | {"vit.pooler.dense.weight": torch.ones(4, 4)}
    twice = foreign._prefix("net.", net.state_dict()) | {"classifier.weight": torch.ones(3, 5)}
    for state, reason in ((pooled, "pooler"), (twice, "two classifiers: .*'classifier.weight'")):
        torch.save(state, tmp_path / "x")
        with pytest.raises(ModelError, match=reason):
            read_checkpoint(tmp_path / "x")


@pytest.mark.parametrize("place", [0, 1])
def test_a_linear_layer_behind_dropout_is_the_head_and_is_said(place, net, tmp_path, reporter):
    state = {k.replace("head.", f"head.{place}."): v for k, v in net.state_dict().items()}
    torch.save(foreign._prefix("model.", state), tmp_path / "x")
    loaded = load_model(str(tmp_path / "x"), reporter=reporter)
    assert torch.equal(loaded.model.head.weight, net.head.weight)
    assert f"head.{place} taken as the head of the class token" in reporter.notes[0]


def test_a_head_of_several_layers_is_not_taken_for_one(net, tmp_path, noise):
    state = foreign._without_head(net.state_dict())
    state |= {"head.1.weight": noise(5, 192), "head.1.bias": noise(5), "head.0.weight": noise(192)}
    torch.save(state, tmp_path / "x")
    assert "head.weight" not in read_checkpoint(tmp_path / "x").state


@pytest.mark.parametrize("layer", ["classifier", "fc", "1"])
def test_a_classifier_beside_a_network_is_named_and_not_guessed_at(
    layer, net, tmp_path, noise, reporter
):
    prefix = "0." if layer == "1" else "vit."
    state = foreign._prefix(prefix, foreign._without_head(net.state_dict()))
    state |= {f"{layer}.weight": noise(5, 192), f"{layer}.bias": noise(5)}
    torch.save({"state_dict": state}, tmp_path / "x")
    with pytest.raises(ModelError, match=rf"but {layer}.weight \[5, 192\] beside it") as error:
        load_model(str(tmp_path / "x"), reporter=reporter)
    assert "If it reads the class token after the norm" in error.value.hint

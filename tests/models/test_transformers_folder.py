"""Folders and names of transformers mean what transformers computes, or are refused for what they are."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from deitctl.data.eval_transform import eval_transform, get_crop_offset
from deitctl.errors import ModelError
from deitctl.exporters.hub_folders import (
    convert_weights,
    to_processor_config,
    to_transformers_config,
)
from deitctl.models.catalog import load_imagenet_classes
from deitctl.models.checkpoint_io import load_model_config, save_tensors
from deitctl.models.factory import load_model
from deitctl.models.heads import forward_heads, fuse_heads
from deitctl.models.model_config import ModelConfig, Preprocessing, ValueRange
from deitctl.models.transformers_folder import from_transformers_config
from deitctl.models.transformers_names import rename_transformers
from deitctl.models.transformers_processor import read_processor
from deitctl.paths import write_json
from tests.models.test_state_dicts import foreign

CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"


@pytest.fixture
def folder(tmp_path, deit):
    """Write a folder as save_pretrained does; `changes` go into config.json, None removes a key."""

    def make(alias="deit_tiny", processor=(), **changes):
        net, root = deit(alias), tmp_path / "hf"
        foreign.write_transformers_folder(root, net.state_dict(), heads=3, classes=5)
        for name, changed in ((CONFIG, changes), (PROCESSOR, dict(processor))):
            stored = json.loads((root / name).read_text()) | changed
            stored = {k: v for k, v in stored.items() if v is not None}
            (root / name).write_text(json.dumps(stored))
        return root, net

    return make


@pytest.mark.parametrize("alias", ["deit_tiny", "deit_tiny_distilled"])
@pytest.mark.parametrize("on_disk", [True, False], ids=["on disk", "in memory"])
def test_names_become_timms_again(alias, on_disk, deit):
    state = deit(alias).state_dict()
    theirs = foreign.to_transformers(state, on_disk=on_disk)
    body = "deit." if "dist_token" in state else "vit."
    again = rename_transformers({k.removeprefix(body): v for k, v in theirs.items()}, "f")
    assert again.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in again.items())
    if on_disk:  # what the exporter writes, by a table of its own
        assert convert_weights(deit(alias)).keys() == theirs.keys()


@pytest.mark.parametrize("alias", ["deit_tiny", "deit_tiny_distilled"])
def test_a_folder_is_the_model_that_it_was_made_from(alias, folder, reporter):
    root, net = folder(alias)
    loaded = load_model(str(root), reporter=reporter)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs, ours = forward_heads(net, images), forward_heads(loaded.model, images)
    assert torch.equal(
        fuse_heads(ours, loaded.model_config.head), fuse_heads(theirs, loaded.model_config.head)
    )
    assert loaded.model_config.class_names == tuple(f"kind {i}" for i in range(5))
    assert loaded.model_config.head == ("avg-logits" if "distilled" in alias else "cls")
    pre = loaded.model_config.preprocessing
    assert (pre.crop_mode, pre.resize_to, pre.img_size) == ("squash", 36, 32)
    assert reporter.notes == [
        f"{root / WEIGHTS}: {alias}, ImageNet mean and std, transformers' names."
    ]
    assert not reporter.warnings


@pytest.mark.parametrize("name", ["pytorch_model.bin", WEIGHTS])
def test_the_weights_of_a_folder_stand_for_it(name, folder, reporter):
    root, _ = folder()
    if name != WEIGHTS:
        torch.save(load_file(root / WEIGHTS), root / name)
        (root / WEIGHTS).unlink()
    for model in (str(root / name), str(root)):
        loaded = load_model(model, reporter=reporter)
        assert loaded.model_config.class_names[4] == "kind 4"
    named = load_model("deit_tiny", weights=str(root / name), reporter=reporter)
    assert named.model_config.class_names[4] == "kind 4"


def test_a_bare_file_with_transformers_names_is_read(folder, tmp_path, reporter):
    root, net = folder()
    (root / WEIGHTS).rename(tmp_path / "vit.bin")
    loaded = load_model(str(tmp_path / "vit.bin"), reporter=reporter)
    assert loaded.model_config.class_names is None
    assert torch.equal(loaded.model.state_dict()["norm.weight"], net.state_dict()["norm.weight"])


def test_a_class_head_alone_classifies_as_in_transformers(folder, reporter):
    root, net = folder("deit_tiny_distilled", architectures=["DeiTForImageClassification"])
    state = load_file(root / WEIGHTS)
    state = {k.replace("cls_classifier", "classifier"): v for k, v in state.items()}
    state = {k: v for k, v in state.items() if not k.startswith("distillation_")}
    save_file(state, root / WEIGHTS)
    loaded = load_model(str(root), reporter=reporter)
    assert loaded.model_config.head == "cls"
    assert "without a distillation head: the class head classifies" in reporter.notes[0]
    assert torch.equal(loaded.model.head.weight, net.head.weight)


def test_a_backbone_is_read_and_has_no_head(folder, reporter):
    root, _ = folder(architectures=["ViTModel"])
    state = {k.removeprefix("vit."): v for k, v in load_file(root / WEIGHTS).items()}
    state = {k: v for k, v in state.items() if not k.startswith("classifier")}
    save_file(state | {"pooler.dense.weight": torch.ones(4, 4)}, root / WEIGHTS)
    with pytest.raises(ModelError, match="has no classifier head .*without pooler"):
        load_model(str(root), reporter=reporter)


PROCESSORS = {
    "DeiT's, of 2021": ({"size": 36, "crop_size": 32}, ("squash", 36)),
    "ViT's": (
        {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": 32, "width": 32},
            "do_center_crop": None,
            "crop_size": None,
        },
        ("squash", 32),
    ),
    "the short side": ({"size": {"shortest_edge": 37}}, ("center", 37)),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_says_what_eval_transform_does(name, folder, make_image):
    changes, (crop_mode, side) = PROCESSORS[name]
    root, _ = folder(
        processor=changes | {"resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    )
    pre = load_model_config(root).preprocessing
    assert (pre.crop_mode, pre.resize_to, pre.interpolation) == (crop_mode, side, "bilinear")
    assert pre.mean == pre.std == (0.5, 0.5, 0.5)
    assert eval_transform(make_image(90, 60), pre).shape == (3, 32, 32)


@pytest.mark.parametrize(
    "changes",
    [
        {"do_resize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"size": {"shortest_edge": 36}, "do_center_crop": False},
        {"crop_size": {"height": 48, "width": 48}},
        {"crop_size": {"height": 16, "width": 16}},
        {"crop_size": {"height": 32, "width": 16}},
        {"size": "x"},
        {"image_mean": [0.5]},
        {"resample": 9},
    ],
    ids=str,
)
def test_a_preprocessing_that_cannot_be_said_is_refused(changes, folder, reporter):
    root, _ = folder(processor=changes)
    with pytest.raises(ModelError) as error:
        load_model(str(root), reporter=reporter)
    assert len(str(error.value).splitlines()) == 1


def test_the_named_file_of_a_folder_is_the_one_that_is_read(folder, reporter):
    root, _ = folder()
    state = load_file(root / WEIGHTS)
    torch.save({k: torch.zeros_like(v) for k, v in state.items()}, root / "pytorch_model.bin")
    for name, is_other in (("pytorch_model.bin", True), (WEIGHTS, False)):
        for ref, weights in ((str(root / name), ""), ("deit_tiny", str(root / name))):
            loaded = load_model(ref, weights=weights, reporter=reporter)
            assert (not loaded.model.head.weight.any()) == is_other
            assert loaded.model_config.class_names[0] == "kind 0"


# What transformers 5.24 does where the file does not say: models/*/image_processing_*.py.
SILENT = {
    "ViT": ({}, 224, (224, "squash", "bilinear", 0.5)),
    "DeiT": ({}, 224, (256, "squash", "bicubic", 0.5)),
    "CLIP": ({}, 224, (224, "center", "bicubic", 0.48145466)),
    "CLIP, a number": (
        {"size": 256, "crop_size": 224},
        224,
        (256, "center", "bicubic", 0.48145466),
    ),
    "ViT, nulls": ({"image_mean": None, "crop_size": None}, 224, (224, "squash", "bilinear", 0.5)),
    "ViT, a pair": ({"size": [96, 96]}, 96, (96, "squash", "bilinear", 0.5)),
    "ViT, one mean": ({"image_mean": 0.25, "size": 64}, 64, (64, "squash", "bilinear", 0.25)),
    "ViT, not normalized": ({"do_normalize": False}, 224, (224, "squash", "bilinear", 0)),
}


@pytest.mark.parametrize("name", SILENT)
def test_what_a_processor_does_not_say_is_its_classes_default(name, tmp_path):
    stated, size, (resized, mode, interpolation, mean) = SILENT[name]
    kind = name.partition(",")[0]
    for named in ("ImageProcessor", "ImageProcessorFast", "FeatureExtractor"):
        key = "image_processor_type" if "Image" in named else "feature_extractor_type"
        pre = read_processor(stated | {key: kind + named}, "vit", "f")
        assert (pre.img_size, pre.resize_to, pre.crop_mode) == (size, resized, mode)
        assert (pre.interpolation, pre.mean[0]) == (interpolation, mean)
    if kind in ("ViT", "DeiT"):
        assert read_processor(stated, kind.lower(), "f").resize_to == resized


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rescale_offset": True}, "another range than 0..1"),
        ({"do_flip_channel_order": True}, "it has do_flip_channel_order"),
        ({"do_pad": True}, "it has do_pad"),
        ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.9}, "ConvNextImageProc"),
        ({"size": {"shortest_edge": 36, "longest_edge": 48}}, "longest_edge"),
        ({"image_mean": "x"}, "three channels"),
        ({"resample": 9}, "resample = 9"),
    ],
    ids=str,
)
def test_an_error_of_a_processor_names_its_file(changes, reason, folder, reporter):
    root, _ = folder(processor=changes)
    with pytest.raises(ModelError, match=reason) as error:
        load_model(str(root), reporter=reporter)
    assert error.value.message.startswith(str(root / PROCESSOR))


def test_a_thousand_labels_that_are_no_names_are_said_to_be_imagenets(deit, tmp_path, reporter):
    state = deit(classes=1000).state_dict()
    foreign.write_transformers_folder(tmp_path / "hf", state, heads=3, classes=1000)
    config = json.loads((tmp_path / "hf" / CONFIG).read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(1000)}
    (tmp_path / "hf" / CONFIG).write_text(json.dumps(config))
    loaded = load_model(str(tmp_path / "hf"), reporter=reporter)
    assert loaded.model_config.class_names[0] == "n01440764"
    assert "1000 classes taken as ImageNet-1k" in reporter.notes[0]


def test_a_folder_without_a_processor_is_warned_of(folder, reporter):
    root, _ = folder()
    (root / PROCESSOR).unlink()
    load_model(str(root), reporter=reporter)
    assert "has no preprocessor_config.json: ImageNet's mean and std" in reporter.warnings[0]


@pytest.mark.parametrize(("side", "is_beside"), [(35, True), (37, False), (36, False)])
@pytest.mark.parametrize("squash", [True, False])
def test_a_crop_one_pixel_beside_transformers_is_warned_of(
    side, is_beside, squash, folder, reporter
):
    size = {"height": side, "width": side} if squash else {"shortest_edge": side}
    root, _ = folder(processor={"size": size, "do_center_crop": True, "crop_size": 32})
    load_model(str(root), reporter=reporter)
    said = [
        f"crops 32 of {side} pixels: the crop is one pixel beside" in w for w in reporter.warnings
    ]
    assert said == [True] * is_beside
    assert (get_crop_offset(side, 32) != (side - 32) // 2) == is_beside


def test_labels_are_names_in_canonical_form_each_once(folder):
    labels = {"0": "cafe\u0301", "1": " tea ", "2": "tea", "3": "milk", "4": "water"}
    names = load_model_config(folder(id2label=labels)[0]).class_names
    assert names == ("café", "tea (1)", "tea (2)", "milk", "water")


def test_numbers_for_labels_are_no_names(folder):
    root, _ = folder(id2label={str(i): f"LABEL_{i}" for i in range(5)})
    assert load_model_config(root).class_names is None


def test_imagenets_labels_are_its_wordnet_ids(folder, tmp_path):
    ids, descriptions = load_imagenet_classes()
    labels = {str(i): text for i, text in enumerate(descriptions)}
    model_config = load_model_config(folder(id2label=labels)[0])
    assert model_config.class_names == ids
    assert model_config.descriptions == descriptions
    turned = dict(zip(labels, reversed(descriptions), strict=True))  # no longer ImageNet's order
    config = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "id2label": turned,
    }
    names = from_transformers_config(config, tmp_path).class_names
    assert names[0] == descriptions[-1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "swin", "architectures": ["SwinForImageClassification"]}, "SwinForImage"),
        ({"model_type": "dinov2"}, "no ViT or DeiT classifier"),
        ({"hidden_act": "quick_gelu"}, "its activation is quick_gelu"),
        ({"qkv_bias": False}, "no biases of query"),
        ({"layer_norm_eps": 1e-5}, "LayerNorm has an epsilon of 1e-05"),
        ({"num_channels": 1}, "its images have 1 channels"),
        ({"intermediate_size": 100}, "its layers are 100 wide inside"),
        ({"problem_type": "regression"}, "numbers, not classes"),
        ({"quantization_config": {"bits": 4}}, "its weights are quantized"),
        ({"num_attention_heads": 12}, "12 heads"),
        ({"num_hidden_layers": 7}, "7 layers"),
        ({"hidden_size": "x"}, "is not a model's config.json"),
        ({"id2label": {"0": "a", "7": "b"}}, "is not a model's config.json"),
        ({"id2label": {"0": 3}}, "is not a model's config.json"),
        ({"image_size": 10**6}, "refused|contradicts itself"),
    ],
    ids=str,
)
def test_a_network_that_no_deit_is_is_refused_for_the_difference(changes, reason, folder, reporter):
    root, _ = folder(**changes)
    with pytest.raises(ModelError, match=reason) as error:
        load_model(str(root), reporter=reporter)
    assert len(str(error.value).splitlines()) == 1
    assert not re.search(r"Error\(.*Error\(", str(error.value))


@pytest.mark.parametrize(
    "name", ["model.safetensors.index.json", "tf_model.h5", "flax_model.msgpack"]
)
def test_weights_that_are_not_read_are_named(name, folder, reporter):
    root, _ = folder()
    (root / WEIGHTS).unlink()
    content = {
        "model": b'{"weight_map": {"a": "1"}}',
        "tf_mo": b"\x89HDF\r\n\x1a\n",
        "flax_": b"\x81\xa6params\x81",
    }
    (root / name).write_bytes(content[name[:5]])
    with pytest.raises(ModelError, match=f"{name} is (the index|an HDF5|a MessagePack)"):
        load_model(str(root), reporter=reporter)


@pytest.mark.parametrize("alias", ["deit_tiny", "deit_tiny_distilled"])
def test_our_own_export_is_the_model_again(alias, deit, tmp_path, reporter):
    net, names = deit(alias), ("a", "b", "c", "d", "e")
    model_config = ModelConfig(
        architecture=net.arch.name,
        num_classes=5,
        class_names=names,
        descriptions=("ant", "bee", "cat", "dog", "eel"),
        preprocessing=Preprocessing(
            img_size=32,
            crop_pct=0.8,
            mean=(0.4, 0.5, 0.6),
            value_range=ValueRange(0, 4095, clips=net.arch.distilled),
        ),
        head="avg-probs" if net.arch.distilled else "cls",
        temperatures={"cls": 0.8},
    )
    save_tensors(tmp_path / WEIGHTS, convert_weights(net), {"format": "pt"})
    write_json(tmp_path / CONFIG, to_transformers_config(net, model_config))
    write_json(tmp_path / PROCESSOR, to_processor_config(model_config.preprocessing))
    loaded = load_model(str(tmp_path), reporter=reporter)
    for ref, weights in (
        (str(tmp_path / WEIGHTS), ""),
        (alias, str(tmp_path)),
        (alias, str(tmp_path / WEIGHTS)),
    ):
        in_another_way = load_model(ref, weights=weights, reporter=reporter)
        assert in_another_way.model_config == loaded.model_config
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    again = loaded.model_config
    assert again.preprocessing.resize_to == model_config.preprocessing.resize_to
    changed = {"preprocessing": again.preprocessing}
    assert replace(model_config, **changed) == again
    assert again.preprocessing.mean == (0.4, 0.5, 0.6)
    assert again.preprocessing.value_range == model_config.preprocessing.value_range
    assert not reporter.notes
    assert not reporter.warnings


def test_a_vit_that_no_deit_is_loads_as_timms(tmp_path, reporter):
    theirs = timm.create_model("vit_small_patch32_224", num_classes=3, img_size=64).eval()
    foreign.write_transformers_folder(tmp_path / "hf", theirs.state_dict(), heads=6, classes=3)
    loaded = load_model(str(tmp_path / "hf"), reporter=reporter)
    assert loaded.model_config.architecture == "vit_small_patch32_224"
    said = "vit_small_patch32_224, ImageNet mean and std, transformers' names"
    assert reporter.notes == [f"{tmp_path / 'hf' / WEIGHTS}: {said}."]
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded.model(images), theirs(images))

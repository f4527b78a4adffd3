"""timm loads its folder; the conversion for transformers, without it. What transformers loads: test_transformers.py."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file

from deitctl.data.batch_transforms import normalize
from deitctl.errors import ExportError
from deitctl.exporters.hub_folders import (
    HEAD,
    convert_weights,
    export_timm,
    export_transformers,
    get_unique_labels,
    to_processor_config,
    to_transformers_config,
)
from deitctl.models.catalog import find
from deitctl.models.heads import choose_head, forward_heads, fuse_heads
from deitctl.models.model_config import Preprocessing

IN_A_BLOCK = (
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
    "layernorm_before",
    "layernorm_after",
    "intermediate.dense",
    "output.dense",
)


@pytest.fixture(scope="module")
def plain(shallow):
    loaded = shallow("deit_tiny")
    return replace(
        loaded,
        model_config=replace(
            loaded.model_config, preprocessing=Preprocessing(img_size=32, crop_pct=1.0)
        ),
    )


@pytest.fixture(scope="module")
def distilled(shallow):
    return shallow("deit_tiny_distilled")


def test_a_plain_deit_gets_the_names_of_a_ViT(plain):
    layers = [
        "embeddings.patch_embeddings.projection",
        *(f"encoder.layer.0.{x}" for x in IN_A_BLOCK),
        "layernorm",
    ]
    wanted = {f"vit.{x}.{kind}" for x in layers for kind in ("weight", "bias")}
    wanted |= {
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
        "classifier.weight",
        "classifier.bias",
    }
    assert convert_weights(plain.model).keys() == wanted


def test_a_distilled_deit_gets_the_names_of_a_DeiT_with_a_second_token_and_head(distilled):
    got = convert_weights(distilled.model)
    assert {"deit.embeddings.distillation_token", "distillation_classifier.bias"} <= got.keys()
    assert {k.split(".")[0] for k in got} == {"deit", "cls_classifier", "distillation_classifier"}
    torch.testing.assert_close(
        got["cls_classifier.weight"], distilled.model.head.weight, rtol=0, atol=0
    )
    torch.testing.assert_close(
        got["distillation_classifier.bias"], distilled.model.head_dist.bias, rtol=0, atol=0
    )


def test_nothing_is_lost_or_doubled(distilled):
    ours, theirs = distilled.model.state_dict(), convert_weights(distilled.model)
    assert sum(v.numel() for v in theirs.values()) == sum(v.numel() for v in ours.values())
    assert sum(float(v.double().sum()) for v in theirs.values()) == pytest.approx(
        sum(float(v.double().sum()) for v in ours.values())
    )


def test_query_key_and_value_are_the_thirds_of_qkv_in_that_order(plain):
    got, qkv = convert_weights(plain.model), plain.model.blocks[0].attn.qkv
    for third, name in enumerate(("query", "key", "value")):
        rows = slice(192 * third, 192 * (third + 1))
        key = f"vit.encoder.layer.0.attention.attention.{name}"
        assert torch.equal(got[f"{key}.weight"], qkv.weight[rows])
        assert torch.equal(got[f"{key}.bias"], qkv.bias[rows])


def test_the_config_says_what_transformers_would_otherwise_guess_wrong(plain, distilled):
    config = to_transformers_config(plain.model, plain.model_config)
    assert (config["model_type"], config["architectures"]) == ("vit", ["ViTForImageClassification"])
    assert config["layer_norm_eps"] == 1e-6  # 1e-12 unless said
    assert (config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]) == (
        192,
        3,
        768,
    )
    assert (config["image_size"], config["patch_size"], config["num_hidden_layers"]) == (32, 16, 1)
    config = to_transformers_config(distilled.model, distilled.model_config)
    assert (config["model_type"], config["architectures"]) == (
        "deit",
        ["DeiTForImageClassificationWithTeacher"],
    )


def test_labels_are_the_descriptions_for_people_and_no_two_are_the_same():
    names = get_unique_labels(find("deit_tiny").to_model_config())
    assert names[0] == "tench, Tinca tinca"
    assert len(set(names)) == 1000
    assert [n for n in names if n.startswith("crane")] == ["crane (n02012849)", "crane (n03126707)"]


def test_labels_without_descriptions_are_the_names_and_without_names_the_numbers(plain):
    assert get_unique_labels(plain.model_config) == list("0123456789")
    assert get_unique_labels(replace(plain.model_config, class_names=None))[3] == "class 3"


def test_the_config_keeps_the_ids_of_the_classes_in_the_order_of_the_logits(plain):
    model_config = replace(
        plain.model_config,
        class_names=tuple(f"n{i}" for i in range(10)),
        descriptions=("a", *"abcdefghi"),
    )
    config = to_transformers_config(plain.model, model_config)
    assert config["id2label"]["0"] == "a (n0)"
    assert config["label2id"] == {name: int(i) for i, name in config["id2label"].items()}
    assert config["deitctl"]["class_names"][9] == "n9"


@pytest.mark.parametrize(
    ("pre", "size", "resample"),
    [
        (Preprocessing(img_size=224, crop_pct=0.9), {"shortest_edge": 248}, 3),
        (
            Preprocessing(img_size=384, crop_pct=1.0, interpolation="bilinear"),
            {"shortest_edge": 384},
            2,
        ),
        (
            Preprocessing(img_size=32, crop_pct=1.0, crop_mode="squash"),
            {"height": 32, "width": 32},
            3,
        ),
        (
            Preprocessing(img_size=96, crop_pct=0.5, crop_mode="squash"),
            {"height": 192, "width": 192},
            3,
        ),
    ],
)
def test_the_image_processor_resizes_crops_and_normalizes_as_the_model_config_says(
    pre, size, resample
):
    config = to_processor_config(replace(pre, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
    assert (config["size"], config["resample"]) == (size, resample)
    assert config["crop_size"] == {"height": pre.img_size, "width": pre.img_size}
    assert (config["image_mean"], config["image_std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert config["rescale_factor"] == 1 / 255


def test_a_crop_that_transformers_does_not_have_is_refused():
    with pytest.raises(ExportError, match=r"cannot crop as 'border' says.*Use --to timm"):
        to_processor_config(Preprocessing(crop_mode="border"))


def test_a_crop_that_is_never_that_of_transformers_is_refused():
    """35 - 32 = 3: half of it is 1.5, and transformers begins at 1, torchvision at 2."""
    with pytest.raises(ExportError, match="crops 32 pixels out of 35 one pixel beside"):
        to_processor_config(Preprocessing(img_size=32, crop_pct=0.9))


@pytest.mark.parametrize(
    ("ref", "img_size", "reason"),
    [("deit3_small", 32, "DeiT-III scales its layers"), ("test_byobnet", 64, "is no DeiT")],
)
def test_a_model_that_transformers_has_no_class_for_is_refused_before_anything_is_written(
    ref, img_size, reason, classifier, network, tmp_path
):
    loaded = classifier(ref, img_size=img_size)
    with pytest.raises(ExportError, match=rf"{reason}.*Use --to timm"):
        export_transformers(network(loaded, "cls"), loaded.model_config, {}, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_folder_has_weights_config_and_processor(plain, network, tmp_path):
    export_transformers(network(plain, "cls"), plain.model_config, {}, tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "config.json",
        "deitctl.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert (
        load_file(tmp_path / "m" / "model.safetensors").keys()
        == convert_weights(plain.model).keys()
    )
    assert json.loads(
        (tmp_path / "m" / "preprocessor_config.json").read_text()
    ) == to_processor_config(plain.model_config.preprocessing)


@pytest.mark.parametrize(
    ("ref", "img_size", "distilled"),
    [("deit_tiny", 32, False), ("deit_tiny", 48, True), ("test_byobnet", 64, None)],
)
def test_timm_loads_the_folder_with_the_same_logits(
    ref, img_size, distilled, classifier, network, sample, tmp_path
):
    loaded = classifier(ref, img_size=img_size, distilled=distilled)
    export_timm(network(loaded, "cls"), loaded.model_config, {}, tmp_path / "m")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    pixels = torch.from_numpy(sample(loaded, 5).pixels).permute(0, 3, 1, 2)
    images = normalize(pixels, loaded.model_config.preprocessing)
    with torch.no_grad():
        wanted = fuse_heads(
            forward_heads(loaded.model, images), choose_head(HEAD, "", loaded.model)
        )
        torch.testing.assert_close(theirs(images), wanted, atol=1e-5, rtol=0)
    assert theirs.pretrained_cfg["label_names"] == list("0123456789")
    assert tuple(theirs.pretrained_cfg["input_size"]) == (3, img_size, img_size)


def test_timm_can_give_the_folder_another_head(classifier, network, tmp_path):
    loaded = classifier("deit_tiny", distilled=True)
    export_timm(network(loaded, "cls"), loaded.model_config, {}, tmp_path / "m")
    model = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True, num_classes=3)
    assert (model.head.out_features, model.head_dist.out_features) == (3, 3)


def test_the_folder_keeps_our_head_rule(classifier, network, tmp_path):
    loaded = classifier("deit_tiny", distilled=True)
    export_timm(network(loaded, HEAD), loaded.model_config, {}, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["deitctl"] == {"head": loaded.model_config.head}

"""A model config is equal before and after a config.json, ours or timm's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.errors import ModelError
from deitctl.models.model_config import (
    HEADS,
    ModelConfig,
    Preprocessing,
    from_timm_config,
    to_timm_config,
)

LAYERS = {
    "classifier": ("head", "head_dist"),
    "first_conv": "patch_embed.proj",
    "fixed_input_size": True,
}


def there_and_back(model_config: ModelConfig) -> ModelConfig:
    return from_timm_config(
        json.loads(json.dumps(to_timm_config(model_config, **LAYERS))), "config.json"
    )


@pytest.mark.parametrize(
    ("size", "crop", "pixels"), [(224, 0.9, 248), (224, 0.875, 256), (384, 1.0, 384), (64, 0.9, 71)]
)
def test_resize_is_rounded_down_as_timm_does(size, crop, pixels):
    assert Preprocessing(img_size=size, crop_pct=crop).resize_to == pixels


@given(
    names=st.lists(st.text(min_size=1), unique=True, max_size=5),
    described=st.booleans(),
    head=st.sampled_from(HEADS),
    size=st.integers(16, 512),
    crop=st.floats(0.5, 1.2),
)
def test_model_configs_survive_config_json(names, described, head, size, crop):
    model_config = ModelConfig(
        architecture="deit_tiny_patch16_224",
        num_classes=len(names) or 3,
        class_names=tuple(names) or None,
        descriptions=tuple(f"a {n}" for n in names) if described and names else None,
        head=head,
        preprocessing=Preprocessing(
            img_size=size,
            crop_pct=crop,
            interpolation="bilinear",
            crop_mode="squash",
            mean=(0.5, 0.4, 0.3),
            std=(0.1, 0.2, 0.3),
        ),
        model_args={"img_size": [size, size]},
    )
    assert there_and_back(model_config) == model_config


def test_timms_own_config_is_read():
    """The layout of https://huggingface.co/timm/deit_tiny_patch16_224.fb_in1k/blob/main/config.json."""
    config = {
        "architecture": "deit_tiny_patch16_224",
        "num_classes": 1000,
        "num_features": 192,
        "global_pool": "token",
        "pretrained_cfg": {
            "tag": "fb_in1k",
            "custom_load": False,
            "input_size": [3, 224, 224],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": 1000,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    model_config = from_timm_config(config, "config.json")
    assert model_config.preprocessing == Preprocessing()
    assert (model_config.num_classes, model_config.class_names, model_config.head) == (
        1000,
        None,
        "auto",
    )


def test_one_number_of_a_mean_stands_for_three():
    pretrained = {"mean": 0.5, "std": [0.5, 0.25, 0.125]}
    pre = from_timm_config({"architecture": "x", "pretrained_cfg": pretrained}, "c").preprocessing
    assert (pre.mean, pre.std) == ((0.5, 0.5, 0.5), (0.5, 0.25, 0.125))


def test_missing_fields_get_timms_defaults():
    model_config = from_timm_config({"architecture": "x", "pretrained_cfg": None}, "c")
    assert model_config.preprocessing.crop_pct == 0.875
    assert model_config.num_classes == 1000


def test_descriptions_may_be_a_list_or_a_mapping():
    config = {"architecture": "x", "num_classes": 2, "label_names": ["a", "b"]}
    assert from_timm_config({**config, "label_descriptions": ["A", "B"]}, "c").descriptions == (
        "A",
        "B",
    )
    assert from_timm_config({**config, "label_descriptions": {"b": "B"}}, "c").descriptions == (
        "a",
        "B",
    )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architecture": "x", "num_classes": "many"},
        {"architecture": "x", "pretrained_cfg": {"mean": [1, 2]}},
        {"architecture": "x", "pretrained_cfg": {"input_size": []}},
        {"architecture": "x", "deitctl": "no"},
        {"architecture": "x", "pretrained_cfg": "no"},
        {"architecture": "x", "model_args": 3},
    ],
)
def test_an_invalid_config_is_refused(config):
    with pytest.raises(ModelError, match=r"dir/config\.json is not a model's"):
        from_timm_config(config, "dir/config.json")


def test_class_names_must_match_num_classes():
    with pytest.raises(ModelError, match="names 2 classes but num_classes is 3"):
        from_timm_config({"architecture": "x", "num_classes": 3, "label_names": ["a", "b"]}, "c")


def test_label_prefers_descriptions():
    model_config = ModelConfig(architecture="x", num_classes=2)
    assert model_config.label(1) == "class 1"
    assert ModelConfig(architecture="x", num_classes=2, class_names=("a", "b")).label(1) == "b"
    named = ModelConfig(
        architecture="x", num_classes=2, class_names=("n1", "n2"), descriptions=("cat", "dog")
    )
    assert named.label(1) == "dog"


def test_at_size_changes_only_the_size():
    model_config = ModelConfig(architecture="x", num_classes=2).at_size(64)
    assert model_config.preprocessing == Preprocessing(img_size=64)


def test_temperatures_travel_with_the_model_config():
    model_config = ModelConfig(
        architecture="deit_tiny_patch16_224", num_classes=2, temperatures={"cls": 1.25}
    )
    config = to_timm_config(
        model_config, classifier=("head",), first_conv="patch_embed.proj", fixed_input_size=True
    )
    assert from_timm_config(config, "here").temperatures == {"cls": 1.25}
    assert (model_config.temperature("cls"), model_config.temperature("dist")) == (1.25, 1.0)


@pytest.mark.parametrize(
    "temperatures", [{"cls": 0.0}, {"cls": float("nan")}, {"all": 1.0}, {"cls": 1e9}, [1], "x"]
)
def test_temperatures_that_no_model_has_are_refused(temperatures):
    model_config = ModelConfig(architecture="deit_tiny_patch16_224", num_classes=2)
    config = to_timm_config(
        model_config, classifier=("head",), first_conv="patch_embed.proj", fixed_input_size=True
    )
    config["deitctl"]["temperatures"] = temperatures
    with pytest.raises(ModelError):
        from_timm_config(config, "here")


def make_multilabel(**changes) -> ModelConfig:
    return ModelConfig(
        **{
            "architecture": "deit_tiny_patch16_224",
            "num_classes": 2,
            "task": "multilabel",
            "thresholds": {"cls": (0.25, 1.0), "dist": (0.5, 0.0)},
            **changes,
        }
    )


@pytest.mark.parametrize("thresholds", [{"cls": (0.25, 1.0), "dist": (0.5, 0.0)}, {}])
def test_task_and_thresholds_survive_config_json(thresholds):
    model_config = make_multilabel(thresholds=thresholds)
    assert there_and_back(model_config) == model_config
    assert model_config.is_multilabel


def test_a_classifier_of_one_class_an_image_states_no_task():
    config = to_timm_config(ModelConfig(architecture="x", num_classes=2), **LAYERS)
    assert config["deitctl"] == {"head": "cls"}


def test_each_head_rule_has_its_own_thresholds_and_without_them_one_half():
    model_config = make_multilabel()
    rules = {rule: model_config.list_thresholds(rule) for rule in ("cls", "dist", "avg-probs")}
    assert rules == {"cls": (0.25, 1.0), "dist": (0.5, 0.0), "avg-probs": (0.5, 0.5)}


def test_a_threshold_of_the_user_is_that_of_every_head_rule():
    model_config = make_multilabel().with_task(threshold=0.3)
    assert {model_config.list_thresholds(rule) for rule in HEADS} == {(0.3, 0.3)}


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"task": "detection"}, "task is 'detection'"),
        ({"task": "multilabel", "thresholds": {"cls": [0.5]}}, "1 thresholds are for 2 classes"),
        ({"task": "multilabel", "thresholds": {"cls": [0.5, 1.5]}}, "thresholds are"),
        ({"task": "multilabel", "thresholds": {"cls": [0.5, float("nan")]}}, "thresholds are"),
        ({"task": "multilabel", "thresholds": {"mean": [0.5, 0.5]}}, "thresholds are"),
        ({"task": "multilabel", "thresholds": {"cls": [0.5, True]}}, "not a list of numbers"),
        ({"task": "multilabel", "thresholds": {"cls": 0.5}}, "not a list of numbers"),
        ({"task": "multilabel", "thresholds": [0.5, 0.5]}, "for each head rule"),
        ({"thresholds": {"cls": [0.5, 0.5]}}, "one class an image"),
    ],
)
def test_a_task_or_thresholds_that_no_model_has_are_refused(own, reason):
    config = to_timm_config(make_multilabel(), **LAYERS)
    with pytest.raises(ModelError, match=reason):
        from_timm_config({**config, "deitctl": own}, "config.json")

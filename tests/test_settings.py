"""Settings convert, override and survive TOML; what does not fit is refused with the nearest name."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.config import MACHINE_SETTINGS, DistillConfig, Recipe, TrainConfig
from deitctl.errors import ConfigError
from deitctl.recipes import RECIPES
from deitctl.settings import (
    dotted_name,
    flatten,
    from_dict,
    list_differences,
    override,
    parse_overrides,
    read_toml,
    setting_names,
    to_dict,
    write_toml,
)

TEACHER = DistillConfig(
    teacher="regnety_160",
    mode="hard",
    alpha=0.5,
    tau=1.0,
    reduction="batchmean",
    dist_token=True,
    teacher_input="unmixed",
    views=8,
    logits_topk=100,
)
CONFIG = TrainConfig(model="deit_tiny", data="digits", recipe=RECIPES["paper"], distill=TEACHER)
FINITE = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda r: r.name)
@pytest.mark.parametrize("distill", [None, TEACHER], ids=["alone", "taught"])
def test_runs_survive_toml(recipe, distill):
    config = replace(CONFIG, recipe=recipe, distill=distill)
    assert from_dict(TrainConfig, tomllib.loads(write_toml(config)), "run.toml") == config


@given(
    name=st.text(max_size=20),
    lr=FINITE,
    scale=st.tuples(FINITE, FINITE),
    seed=st.integers(0, 2**62),
    flag=st.booleans(),
)
def test_any_values_survive_toml(name, lr, scale, seed, flag):
    changes = {
        "model": name,
        "recipe.optim.lr": lr,
        "recipe.augment.crop_scale": scale,
        "seed": seed,
        "distill.dist_token": flag,
    }
    config = override(CONFIG, changes)
    assert config.recipe.augment.crop_scale == scale
    assert from_dict(TrainConfig, tomllib.loads(write_toml(config)), "run.toml") == config


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("recipe.epochs", "12", 12),
        ("recipe.optim.lr", "1e-3", 1e-3),
        ("recipe.pretrained", "false", False),
        ("recipe.pretrained", "Yes", True),
        ("recipe.augment.crop_scale", "0.5,1", (0.5, 1.0)),
        ("recipe.augment.crop_scale", "(0.5, 1.0)", (0.5, 1.0)),
        ("recipe.augment.affine", "[1, 2, 3]", (1.0, 2.0, 3.0)),
        ("recipe.augment.rand_augment", "", ""),
        ("recipe.freeze", "backbone", "backbone"),
        ("recipe.augment.student_affine", "5,0.1,0.05", (5.0, 0.1, 0.05)),
        ("distill.mode", "soft", "soft"),
        ("distill.finetune_teacher", "full", "full"),
        ("distill.teacher_input", "mixed", "mixed"),
        ("distill.views", "0", 0),
        ("distill.teacher_cache", "off", "off"),
        ("distill.allow_weak_teacher", "true", True),
        ("recipe.epochs", 3.0, 3),
        ("recipe.optim.betas", "0.8,0.9", (0.8, 0.9)),
        ("recipe.optim.betas", "", ()),
        ("recipe.optim.betas", "()", ()),
        ("recipe.optim.opt_args", "", ()),
    ],
)
def test_texts_become_the_fields_type(key, text, value):
    config = override(CONFIG, {key: text})
    found = config
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recipe.epochs", "many"),
        ("recipe.epochs", 1.5),
        ("recipe.epochs", "1.5"),
        ("recipe.pretrained", "maybe"),
        ("recipe.augment.crop_scale", "0.5"),
        ("recipe.augment.crop_scale", "a,b"),
        ("recipe.optim.lr", "fast"),
        ("distill.mode", "medium"),
        ("recipe.augment.crop_scale", 3),
        ("recipe.optim.lr", None),
        ("recipe.freeze", "body"),
        ("recipe.augment.student_affine", "5"),
        ("distill.finetune_teacher", "some"),
        ("distill.teacher_input", "all"),
        ("distill.views", "few"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_their_key(key, value):
    with pytest.raises(ConfigError, match=f"^{key.removeprefix('recipe.')} = "):
        override(CONFIG, {key: value})


@pytest.mark.parametrize("key", ["recipe", "recipe.optim", "distill"])
@pytest.mark.parametrize("value", ["fast", "", 3])
def test_a_group_of_settings_is_no_value(key, value):
    with pytest.raises(ConfigError, match=f"^{key.removeprefix('recipe.')} = .* group of settings"):
        override(CONFIG, {key: value})


def test_misspelled_settings_are_suggested():
    with pytest.raises(ConfigError, match=r"no setting 'optim\.lrr'.*'optim\.lr'"):
        override(CONFIG, {"recipe.optim.lrr": 1})
    with pytest.raises(ConfigError, match="no setting 'outptu'.*'output'"):
        override(CONFIG, {dotted_name("outptu"): "x"})
    with pytest.raises(ConfigError, match="no setting 'epochz'.*'epochs'"):
        override(RECIPES["paper"], {"epochz": 1})


@pytest.mark.parametrize("key", ["", ".", "recipe.", "recipe..lr", "seed.x", "recipe.epochs.x"])
def test_keys_that_lead_nowhere_are_reported(key):
    with pytest.raises(ConfigError):
        override(CONFIG, {key: 1})


def test_settings_of_a_teacher_that_is_not_there_are_reported():
    with pytest.raises(
        ConfigError, match="'distill.alpha' cannot be set: a teacher is for `distill`"
    ):
        override(replace(CONFIG, distill=None), {"distill.alpha": 0.3})
    with pytest.raises(ConfigError, match="'seed.x' cannot be set: 'seed' is not a group"):
        override(CONFIG, {"seed.x": 0.3})


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("optim.lr", "recipe.optim.lr"),
        ("lr", "recipe.optim.lr"),
        ("views", "distill.views"),
        ("output", "output_dir"),
        ("workers", "workers"),
        ("epochz", "recipe.epochz"),
    ],
)
def test_settings_are_named_by_keyword_or_without_their_recipe(key, name):
    assert dotted_name(key) == name


@pytest.mark.parametrize("key", ["data", "output", "output_dir", "seed", "model"])
def test_set_does_not_replace_an_argument_of_the_command(key):
    with pytest.raises(ConfigError, match=f"--set {key} is not possible"):
        parse_overrides([f"{key}=1"])


def test_overriding_leaves_the_original_alone():
    changed = override(CONFIG, {"recipe.optim.lr": 1.0, "seed": 7})
    assert CONFIG.recipe == RECIPES["paper"]
    assert (changed.recipe.optim.lr, changed.seed) == (1.0, 7)
    assert override(CONFIG, {}) is CONFIG


def test_every_setting_has_a_dotted_name():
    names = setting_names(TrainConfig)
    some = {
        "seed",
        "recipe.epochs",
        "recipe.optim.layer_decay",
        "recipe.augment.mixup",
        "distill.alpha",
    }
    assert some <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"model": "m", "data": "d"}, "lacks the setting 'recipe'"),
        (
            {"model": "m", "data": "d", "recipe": {"name": "x"}},
            r"run\.toml\.recipe lacks the setting 'pretrained'",
        ),
        ({"modle": "m"}, "no setting 'modle'.*'model'"),
        (
            {"distill": {"teacher": "t", "mode": "hard"}},
            r"run\.toml\.distill lacks the setting 'alpha'",
        ),
    ],
)
def test_missing_and_unknown_entries_are_reported(values, what):
    with pytest.raises(ConfigError, match=what):
        from_dict(TrainConfig, values, "run.toml")


def test_broken_and_missing_toml_is_reported(tmp_path):
    (tmp_path / "a.toml").write_text("a = = 1")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    for name, what in (("a", "not valid TOML"), ("b", "not valid TOML"), ("c", "Cannot read")):
        with pytest.raises(ConfigError, match=what):
            read_toml(tmp_path / f"{name}.toml")


def test_none_is_left_out_of_toml():
    assert "distill" not in tomllib.loads(write_toml(replace(CONFIG, distill=None)))
    assert from_dict(Recipe, tomllib.loads(write_toml(RECIPES["digits"])), "x") == RECIPES["digits"]


def test_settings_are_flattened_to_their_dotted_names():
    assert flatten({"a": 1, "b": {"c": 2, "d": {"e": [3]}}, "f": {}}) == {
        "a": 1,
        "b.c": 2,
        "b.d.e": [3],
    }
    # of the model's own arguments there are those that were set
    assert set(flatten(to_dict(CONFIG))) == set(setting_names(TrainConfig)) - {"model_args"}


def test_a_configuration_read_again_does_not_differ():
    for config in (CONFIG, replace(CONFIG, distill=None, recipe=RECIPES["digits"])):
        assert (
            list_differences(
                from_dict(TrainConfig, tomllib.loads(write_toml(config)), "run.toml"), config
            )
            == []
        )


def test_differences_are_named_with_both_values():
    changed = override(
        CONFIG, {"seed": 7, "recipe.optim.lr": 1.0, "recipe.augment.crop_scale": "0.5,1"}
    )
    assert list_differences(CONFIG, changed) == [
        "augment.crop_scale is 0.08,1.0, not 0.5,1.0",
        "optim.lr is 0.0005, not 1.0",
        "seed is 0, not 7",
    ]
    shaped = override(CONFIG, {"model_args.depth": 6, "recipe.img_size": "96x160"})
    assert list_differences(CONFIG, shaped) == [
        "img_size is 224, not 96x160",
        "model.depth is not set, not 6",
    ]
    alone = replace(CONFIG, distill=None)
    assert "distill.mode is hard, not set" in list_differences(CONFIG, alone)
    assert "distill.mode is not set, not hard" in list_differences(alone, CONFIG)


def test_every_setting_is_the_machines_or_makes_a_difference():
    other = {
        "model": "m2",
        "data": "d2",
        "weights": "w",
        "classes": "c",
        "model_args": {"depth": 6},
        "image_folder": "i",
        "value_range": "0,4095",
        "seed": 3,
        "split_seed": 3,
        "fraction": 0.5,
        "extra_data": ("e",),
        "extra_weight": (0.5,),
        "data_order": "window",
        "window": 4,
        "task": "multilabel",
        "select": "f1",
        "patience": 3,
        "group_by": "g",
        "folds": 5,
        "fold": 2,
        "grad_checkpointing": True,
        "log": "csv",
        "cache_dir": "c",
        "cache_size": "1GB",
        "workers": 3,
        "micro_batch_size": 4,
        "save_every": "7",
        "loss_spike_factor": 0,
        "on_bad_image": "stop",
        "device": "cpu",
        "precision": "bf16",
        "output_dir": "o",
        "compile": "on",
        "cuda_graphs": True,
        "deterministic": True,
        "strategy": "fsdp",
    }
    plain = {name for name in setting_names(TrainConfig) if "." not in name}
    assert plain == set(other)
    for name, value in other.items():
        assert bool(list_differences(CONFIG, override(CONFIG, {name: value}))) == (
            name not in MACHINE_SETTINGS
        ), name


def test_the_last_part_of_a_setting_suggests_the_whole_name() -> None:
    with pytest.raises(ConfigError, match="no setting 'mixup'") as caught:
        override(RECIPES["paper"], {"mixup": 0.2})
    assert "'augment.mixup'" in caught.value.hint


@pytest.mark.parametrize(
    ("value", "choice"),
    [(True, "on"), (False, "off"), ("true", "on"), ("no", "off"), ("auto", "auto")],
)
def test_a_choice_that_was_a_switch_takes_booleans(value: object, choice: str) -> None:
    assert override(CONFIG, {"compile": value}).compile == choice

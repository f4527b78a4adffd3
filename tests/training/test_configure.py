from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm

from deitctl.errors import ConfigError, ModelError, TeacherError
from deitctl.events import SilentReporter
from deitctl.models.catalog import load_imagenet_classes
from deitctl.recipes import TABLES
from deitctl.settings import parse_overrides, read_toml, write_toml
from deitctl.training.configure import (
    add_tags,
    build_config,
    choose_model_args,
    make_absolute,
    name_source,
)
from deitctl.training.launch import run_training
from deitctl.training.repeat import read_config

SILENT = SilentReporter()


@pytest.fixture
def imagenet(tmp_path: Path, image_folder: Callable[..., Path]) -> Path:
    """A table with ImageNet's thousand classes, two images each."""
    root = image_folder({"images": 2})
    table = tmp_path / "imagenet.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for name in load_imagenet_classes()[0]:
            rows.writerow([root / "images" / "0.png", name, "train"])
            rows.writerow([root / "images" / "1.png", name, "val"])
    return table


def test_the_defaults_distill_the_built_in_pair_on_digits() -> None:
    config, train, _ = build_config({}, distilled=True, reporter=SILENT)
    assert (config.model, config.data, config.recipe.name) == ("deit_tiny", "digits", "digits")
    assert config.distill is not None
    assert (config.distill.teacher, config.distill.mode, config.distill.alpha) == (
        "regnety_002",
        "hard",
        0.5,
    )
    assert len(train.class_names) == 10
    assert (config.distill.views, config.distill.finetune_teacher) == (4, "scratch")


@pytest.mark.parametrize(
    ("settings", "teacher", "training"),
    [
        # the same with and without a network
        ({}, "regnety_002", "scratch"),
        ({"distill.finetune_teacher": "full"}, "regnety_002.pycls_in1k", "full"),
        ({"distill.teacher": "regnety_002"}, "regnety_002.pycls_in1k", "auto"),
        (
            {"distill.teacher": "resnet18", "distill.finetune_teacher": "scratch"},
            "resnet18",
            "scratch",
        ),
    ],
)
def test_only_the_default_teacher_of_digits_is_trained_from_scratch_unasked(
    settings: dict[str, str], teacher: str, training: str
) -> None:
    config, _, _ = build_config(settings, distilled=True, reporter=SILENT)
    assert config.distill is not None
    assert (config.distill.teacher, config.distill.finetune_teacher) == (teacher, training)


def test_a_teacher_with_weights_is_not_trained_from_scratch(digits_teacher: Path) -> None:
    for settings in (
        {"distill.teacher": str(digits_teacher)},
        {"distill.teacher": "hf-hub:owner/name"},
        {"distill.teacher": "resnet18", "distill.teacher_weights": "mine.safetensors"},
    ):
        with pytest.raises(ConfigError, match="scratch takes an architecture"):
            build_config(
                {**settings, "distill.finetune_teacher": "scratch"}, distilled=True, reporter=SILENT
            )


def test_a_teacher_from_scratch_has_no_weights_whose_classes_had_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb")
    for settings in ({}, {"distill.teacher": "resnet18", "distill.finetune_teacher": "scratch"}):
        named = {**settings, "distill.teacher_classes": str(tmp_path / "names.txt")}
        with pytest.raises(ConfigError, match="--teacher-classes names the classes of weights"):
            build_config(named, distilled=True, reporter=SILENT)


def test_soft_distillation_takes_the_papers_alpha_tau_and_reduction() -> None:
    config, _, _ = build_config({"distill.mode": "soft"}, distilled=True, reporter=SILENT)
    assert config.distill is not None
    assert (config.distill.alpha, config.distill.tau, config.distill.reduction) == (
        0.1,
        3.0,
        "batchmean",
    )


def test_imagenet_takes_the_papers_recipe_when_it_starts_from_nothing(imagenet: Path) -> None:
    config, _, _ = build_config(
        {"data": str(imagenet), "recipe.pretrained": False}, reporter=SILENT
    )
    assert (config.recipe.name, config.recipe.epochs, config.recipe.augment.repeated_aug) == (
        "paper",
        300,
        3,
    )


def test_imagenet_without_the_teachers_weights_names_the_file_and_the_option(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {
        "data": str(imagenet),
        "recipe.pretrained": False,
        "distill.teacher": "regnety_160",
    }
    config, train, val = build_config(settings, distilled=True, reporter=SILENT)
    with pytest.raises(TeacherError, match=r"regnety_160.*--teacher-weights"):
        run_training(config, datasets=(train, val))


@pytest.mark.parametrize(
    ("teacher", "weights", "named"),
    [
        ("regnety_160", "", "regnety_160.deit_in1k"),  # the paper's, by its authors
        ("regnety_160.sw_in12k_ft_in1k", "", "regnety_160.sw_in12k_ft_in1k"),
        ("deit_base", "", "deit_base_patch16_224.fb_in1k"),
        ("regnety_160", "mine.pth", "regnety_160"),  # nothing is published about a file
    ],
)
def test_a_teacher_is_named_with_the_tag_of_its_published_weights(
    teacher: str, weights: str, named: str, tmp_path: Path
) -> None:
    settings = {"distill.teacher": teacher, "distill.teacher_weights": weights}
    config, _, _ = build_config(settings, distilled=True, reporter=SILENT)
    assert config.distill is not None
    assert config.distill.teacher == named
    (tmp_path / "run.toml").write_text(write_toml(config))
    assert read_toml(tmp_path / "run.toml")["distill"]["teacher"] == named


def test_a_student_is_named_with_the_tag_of_the_weights_that_it_starts_from(
    image_folder: Callable[..., Path],
) -> None:
    data = str(image_folder({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1}))
    tag = timm.get_pretrained_cfg("test_resnet").tag
    for settings, named in (
        ({"model": "test_resnet"}, f"test_resnet.{tag}"),
        ({"model": "test_resnet", "recipe.pretrained": False}, "test_resnet"),
        ({"model": "test_resnet", "weights": "mine.pth"}, "test_resnet"),
        ({"model": "deit_tiny"}, "deit_tiny"),  # a DeiT's weights are those of the catalog
    ):
        config, _, _ = build_config({"data": data, **settings}, reporter=SILENT)
        assert config.model == named


def test_a_run_keeps_its_weights_when_timms_default_for_a_name_changes(
    tmp_path: Path, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm.models import _registry

    data = str(image_folder({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1}))
    settings = {"data": data, "model": "resnet18", "distill.teacher": "resnet50"}
    config, _, _ = build_config(settings, distilled=True, reporter=SILENT)
    (tmp_path / "run.toml").write_text(write_toml(config))
    for name, tag in (("resnet18", "tv_in1k"), ("resnet50", "tv_in1k")):
        assert timm.get_pretrained_cfg(name).tag != tag
        cfg = timm.get_pretrained_cfg(f"{name}.{tag}")
        monkeypatch.setitem(_registry._model_pretrained_cfgs, name, cfg)
    later = build_config(settings, distilled=True, reporter=SILENT)[0]
    assert (later.model, later.distill and later.distill.teacher) == (
        "resnet18.tv_in1k",
        "resnet50.tv_in1k",
    )
    assert read_config(tmp_path / "run.toml", {}, {}, distilled=True) == config
    assert add_tags(config) == config


def test_own_images_are_fine_tuned(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    config, _, _ = build_config({"data": str(root)}, reporter=SILENT)
    assert (config.recipe.name, config.recipe.pretrained) == ("finetune", True)
    config, _, _ = build_config({"data": str(root), "recipe.pretrained": False}, reporter=SILENT)
    assert (config.recipe.name, config.recipe.pretrained) == ("small", False)


def test_the_recipe_of_own_images_depends_on_their_number_and_on_the_weights_classes(
    image_folder: Callable[..., Path], tmp_path: Path, reporter: Any
) -> None:
    root = image_folder({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    config, _, _ = build_config({"data": str(root), "recipe.epochs": 3}, reporter=reporter)
    optim = config.recipe.optim
    assert (config.recipe.batch_size, optim.lr, optim.lr_base_size) == (8, 4e-4, 0)
    assert optim.warmup_epochs == pytest.approx(0.3)
    assert any("6 training images and a new head" in note for note in reporter.notes)
    config, _, _ = build_config(
        {"data": str(root), "recipe.batch_size": 64, "recipe.optim.lr": 1e-3}, reporter=reporter
    )
    assert (config.recipe.batch_size, config.recipe.optim.lr) == (64, 1e-3)
    mine = tmp_path / "mine.toml"  # values that are the recipe's own, but named
    mine.write_text('base = "finetune"\nbatch_size = 64\n[optim]\nlr = 3e-4\n')
    config, _, _ = build_config({"data": str(root), "recipe": str(mine)}, reporter=reporter)
    assert (config.recipe.batch_size, config.recipe.optim.lr) == (64, 3e-4)
    synsets = image_folder(
        {f"{part}/{name}": 2 for part in ("train", "val") for name in ("n01440764", "n01443537")},
        root="imagenet",
    )
    config, _, _ = build_config({"data": str(synsets), "recipe": "finetune"}, reporter=reporter)
    assert config.recipe.optim.lr == 1e-4  # published weights have these rows


def test_settings_and_overrides_replace_those_of_the_recipe() -> None:
    config, _, _ = build_config(
        {"recipe.epochs": 7, "seed": 3},
        overrides=parse_overrides(["augment.mixup=0.3", "workers=2"]),
        reporter=SILENT,
    )
    assert (config.recipe.epochs, config.seed, config.recipe.augment.mixup, config.workers) == (
        7,
        3,
        0.3,
        2,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("augment.mixxup=1", "augment.mixup"),
        ("epochs", "key=value"),
        ("epochs=many", "does not fit"),
        ("smoothing=1.5", "out of range"),
        ("optim.lr=-1", "out of range"),
        ("optim.weight_decay=-1", "out of range"),
        ("augment.rand_augment=foo", "is not a RandAugment string"),
        ("seed=3", "own argument or option"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(change: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_config({}, overrides=parse_overrides([change]), reporter=SILENT)
    assert message in str(error.value)


def test_weights_for_a_teacher_that_has_its_own_are_refused(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "teacher" / name).write_text("{}")
    settings = {
        "distill.teacher": str(tmp_path / "teacher"),
        "distill.teacher_weights": str(tmp_path / "other.safetensors"),
    }
    with pytest.raises(ConfigError, match=r"has weights of its own.*--teacher-weights"):
        build_config(settings, distilled=True, reporter=SILENT)


def test_paths_are_kept_absolute_and_names_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is called like a model is not the model, unless it holds one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deit_tiny").mkdir()
    (tmp_path / "weights.safetensors").touch()
    settings = {
        "data": "photos",
        "model": "deit_tiny",
        "weights": Path("weights.safetensors"),
        "distill.teacher_cache": "targets",
        "seed": 3,
    }
    assert make_absolute(settings) == {
        "data": str(tmp_path / "photos"),
        "model": "deit_tiny",
        "weights": str(tmp_path / "weights.safetensors"),
        "distill.teacher_cache": str(tmp_path / "targets"),
        "seed": 3,
    }
    names = {"data": "digits", "distill.teacher_cache": "off"}
    assert make_absolute(names) == names


def test_the_config_of_a_run_is_repeated_with_other_settings_of_the_machine(tmp_path: Path) -> None:
    config, _, _ = build_config({"seed": 3, "output_dir": "first"}, reporter=SILENT)
    (tmp_path / "run.toml").write_text(write_toml(config))
    again = read_config(
        tmp_path / "run.toml", {"workers": 0, "recipe.epochs": 2}, {"seed": "4"}, distilled=False
    )
    assert (again.workers, again.recipe.epochs, again.seed, again.output_dir) == (0, 2, 4, "")
    assert again.recipe.optim == config.recipe.optim


def test_another_input_size_of_a_run_has_crops_that_stretch_as_its_own(
    tmp_path: Path, reporter
) -> None:
    file, named = tmp_path / "run.toml", {"recipe": "small", "recipe.pretrained": False}
    config, _, _ = build_config({**named, "recipe.img_size": "32x64"}, reporter=SILENT)
    file.write_text(write_toml(config))

    def read(**changes: str) -> tuple[float, float]:
        settings = {f"recipe.{name}": value for name, value in changes.items()}
        again = read_config(file, {}, settings, distilled=False, reporter=reporter)
        return again.recipe.augment.crop_ratio

    assert read() == config.recipe.augment.crop_ratio == pytest.approx((3 / 2, 8 / 3))
    assert read(img_size="64x128") == config.recipe.augment.crop_ratio
    assert reporter.notes == []
    assert read(img_size="64") == pytest.approx((3 / 4, 4 / 3))
    assert read(img_size="64x32") == pytest.approx((3 / 8, 2 / 3))
    assert (
        "Random crops are 0.75 to 1.33 times as wide as high, 0.5 times what they"
        in reporter.notes[0]
    )
    assert read(**{"img_size": "64", "augment.crop_ratio": "1,2"}) == (1, 2)
    with pytest.raises(ModelError, match="32x60"):
        read(img_size="32x60")


def test_what_a_recipe_file_says_of_the_input_is_seen_before_data_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base = "small"\nin_chans = 5\nimg_size = "32x64"\n')
    assert name_source("photos", {"recipe": str(file)}).in_chans == 5
    assert name_source("photos", {"recipe": str(file), "recipe.in_chans": 1}).in_chans == 1
    file.write_text('base = "small"\nimg_size = "32x60"\n')
    with pytest.raises(ModelError, match="32x60"):
        build_config({"recipe": str(file), "recipe.pretrained": False}, reporter=SILENT)


@pytest.mark.parametrize("name", ["data", "model", "recipe", "recipe.pretrained", "distill.views"])
def test_what_a_config_decides_is_not_contradicted(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"has its own {name.rpartition('.')[2]}.*--set"):
        read_config(tmp_path / "run.toml", {name: "1"}, {}, distilled=False)


def test_long_training_on_few_images_has_more_views_unless_they_are_named() -> None:
    """None of them comes more than ten times: 4 views of the digits are enough for 40 epochs."""

    def count_views(**settings: Any) -> int:
        named = {name.replace("__", "."): value for name, value in settings.items()}
        config, _, _ = build_config(named, distilled=True, reporter=SilentReporter())
        assert config.distill is not None
        return config.distill.views

    assert count_views() == count_views(recipe__epochs=40) == 4
    assert count_views(recipe__epochs=41) == 5
    assert count_views(recipe__epochs=600) == 60
    assert count_views(recipe__epochs=600, distill__views=4) == 4
    assert count_views(recipe__epochs=600, distill__views=0) == 0


def test_mixed_images_are_not_cached() -> None:
    settings = {"distill.teacher_input": "mixed", "distill.views": 3}
    with pytest.raises(ConfigError, match="never sees a mixed image twice"):
        build_config(settings, distilled=True, reporter=SILENT)


@pytest.mark.parametrize(
    ("model", "img_size", "rate", "lr"),
    [
        ("deit3_small", 224, 0.05, 4e-3),
        ("deit3_medium_in22k", 224, 0.1, 3e-3),
        ("deit3_base_384", 192, 0.2, 3e-3),
        ("deit3_large", 192, 0.45, 3e-3),
        ("deit3_huge", 154, 0.6, 3e-3),
    ],
)
def test_deit3_has_the_settings_of_the_models_size(
    model: str, img_size: int, rate: float, lr: float
) -> None:
    config, _, _ = build_config({"recipe": "deit3", "model": model}, reporter=SILENT)
    recipe = config.recipe
    assert (recipe.img_size, recipe.drop_path_rate, recipe.optim.lr) == (img_size, rate, lr)
    assert (recipe.optim.opt, recipe.pretrained) == ("lamb", False)


def test_what_the_user_names_goes_before_the_models_size(reporter) -> None:
    settings = {"recipe": "deit3", "model": "deit3_base", "recipe.img_size": 32}
    config, _, _ = build_config(
        settings, overrides={"recipe.drop_path_rate": 0.0}, reporter=reporter
    )
    assert (config.recipe.img_size, config.recipe.drop_path_rate) == (32, 0)
    assert config.recipe.optim.lr == 3e-3
    (note,) = [text for text in reporter.notes if "width 768 (B)" in text]
    assert "img_size" not in note


def test_the_rates_of_deit3_are_lambs_and_another_optimizer_has_its_own(reporter) -> None:
    settings = {"recipe": "deit3", "model": "deit3_base", "recipe.optim.opt": "adamw"}
    config, _, _ = build_config(settings, reporter=reporter)
    assert config.recipe.optim.lr == pytest.approx(3e-3 / 1.5)
    assert config.recipe.optim.eps == 0  # its own
    assert any("learning rate 0.667 times the recipe's for LAMB" in n for n in reporter.notes)


def test_a_file_on_top_of_a_recipe_has_its_sizes_and_its_teacher(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "deit3"\ndrop_path_rate = 0.3\n')
    config, _, _ = build_config({"recipe": str(mine), "model": "deit3_base"}, reporter=SILENT)
    assert (config.recipe.name, config.recipe.drop_path_rate) == ("mine", 0.3)
    assert config.recipe.img_size == 192
    mine.write_text('base = "paper"\nepochs = 3\n')
    distilled, _, _ = build_config({"recipe": str(mine)}, distilled=True, reporter=SILENT)
    assert distilled.distill is not None
    assert distilled.distill.teacher_input == "mixed"


def test_patient_teaches_the_one_head_without_labels() -> None:
    settings = {"recipe": "patient", "distill.teacher": "regnety_002"}
    config, _, _ = build_config(settings, distilled=True, reporter=SILENT)
    d = config.distill
    assert d is not None
    assert (config.model, d.mode, d.alpha, d.tau) == ("deit_small", "soft", 1, 1)
    assert (d.dist_token, d.teacher_input, d.views) == (False, "mixed", 0)
    cached, _, _ = build_config({**settings, "distill.views": 8}, distilled=True, reporter=SILENT)
    assert cached.distill is not None
    assert (cached.distill.teacher_input, cached.distill.views) == ("unmixed", 8)
    hard, _, _ = build_config({**settings, "distill.mode": "hard"}, distilled=True, reporter=SILENT)
    assert hard.distill is not None
    assert (hard.distill.alpha, hard.distill.dist_token) == (0.5, False)


def test_plain_90_brings_its_model_and_says_where_another_keeps_its_shape(reporter) -> None:
    config, _, _ = build_config({"recipe": "plain-90"}, reporter=reporter)
    assert config.model == "vit_small_patch16_224"
    assert (config.model_args["global_pool"], config.model_args["class_token"]) == ("avg", False)
    assert not reporter.warnings
    other, _, _ = build_config({"recipe": "plain-90", "model": "deit_tiny"}, reporter=reporter)
    assert other.model_args == {}
    assert "deit_tiny keeps its own shape" in reporter.warnings[-1]


def test_an_eva_of_timms_that_is_named_vit_keeps_its_shape(reporter) -> None:
    table = TABLES["plain-90"]
    assert choose_model_args(table, "vit_tiny_patch16_224", reporter)["class_token"] is False
    assert choose_model_args(table, "vit_small_patch16_dinov3", reporter) == {}
    assert "vit_small_patch16_dinov3 keeps its own shape" in reporter.warnings[-1]


def test_patient_without_a_teacher_is_refused() -> None:
    with pytest.raises(ConfigError, match="learns from a teacher alone") as caught:
        build_config({"recipe": "patient"}, reporter=SILENT)
    assert "deitctl distill --recipe patient --teacher NAME" in caught.value.hint


def test_3_augment_and_rand_augment_are_not_both_done() -> None:
    both = parse_overrides(["augment.three_augment=true", "augment.rand_augment=rand-m9"])
    with pytest.raises(ConfigError, match="one replaces the other"):
        build_config({}, overrides=both, reporter=SILENT)

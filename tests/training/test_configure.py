from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from deitctl.errors import ConfigError, TeacherError
from deitctl.events import SilentReporter
from deitctl.models.catalog import load_imagenet_classes
from deitctl.settings import parse_overrides, write_toml
from deitctl.training.configure import build_config, make_absolute, read_config
from deitctl.training.launch import run_training

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


def test_own_images_are_fine_tuned(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    config, _, _ = build_config({"data": str(root)}, reporter=SILENT)
    assert (config.recipe.name, config.recipe.pretrained) == ("finetune", True)
    config, _, _ = build_config({"data": str(root), "recipe.pretrained": False}, reporter=SILENT)
    assert (config.recipe.name, config.recipe.pretrained) == ("small", False)


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


@pytest.mark.parametrize("name", ["data", "model", "recipe", "recipe.pretrained", "distill.views"])
def test_what_a_config_decides_is_not_contradicted(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"has its own {name.rpartition('.')[2]}.*--set"):
        read_config(tmp_path / "run.toml", {name: "1"}, {}, distilled=False)


def test_mixed_images_are_not_cached() -> None:
    settings = {"distill.teacher_input": "mixed", "distill.views": 3}
    with pytest.raises(ConfigError, match="never sees a mixed image twice"):
        build_config(settings, distilled=True, reporter=SILENT)

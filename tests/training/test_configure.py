from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from deitctl.errors import ConfigError, TeacherError
from deitctl.events import SilentReporter
from deitctl.models.catalog import load_imagenet_classes
from deitctl.training.configure import Request, Teaching, configure
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


def test_nothing_named_distils_the_built_in_pair_on_digits() -> None:
    config, train, _ = configure(Request(teaching=Teaching()), SILENT)
    assert (config.model, config.data, config.recipe.name) == ("deit_tiny", "digits", "digits")
    assert config.distill is not None
    assert (config.distill.teacher, config.distill.mode, config.distill.alpha) == (
        "regnety_002",
        "hard",
        0.5,
    )
    assert len(train.class_names) == 10


def test_soft_distillation_takes_the_papers_alpha_tau_and_reduction() -> None:
    config, _, _ = configure(Request(teaching=Teaching(mode="soft")), SILENT)
    assert config.distill is not None
    assert (config.distill.alpha, config.distill.tau, config.distill.reduction) == (
        0.1,
        3.0,
        "batchmean",
    )


def test_imagenet_takes_the_papers_recipe_when_it_starts_from_nothing(imagenet: Path) -> None:
    config, _, _ = configure(Request(data=str(imagenet), pretrained=False), SILENT)
    assert (config.recipe.name, config.recipe.epochs, config.recipe.augment.repeated_aug) == (
        "paper",
        300,
        3,
    )


def test_imagenet_without_the_teachers_weights_names_the_file_and_the_option(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    request = Request(
        data=str(imagenet), pretrained=False, teaching=Teaching(teacher="regnety_160")
    )
    config, train, val = configure(request, SILENT)
    with pytest.raises(TeacherError, match=r"regnety_160.*--teacher-weights"):
        run_training(config, datasets=(train, val))


def test_own_images_are_fine_tuned(image_folder: Callable[..., Path]) -> None:
    root = image_folder({"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    config, _, _ = configure(Request(data=str(root)), SILENT)
    assert (config.recipe.name, config.recipe.pretrained) == ("finetune", True)
    config, _, _ = configure(Request(data=str(root), pretrained=False), SILENT)
    assert (config.recipe.name, config.recipe.pretrained) == ("small", False)


def test_given_settings_and_changes_override_the_recipe() -> None:
    request = Request(
        given={"recipe.epochs": 7, "recipe.optim.lr": None, "seed": 3},
        changes=["augment.mixup=0.3", "workers=2"],
    )
    config, _, _ = configure(request, SILENT)
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
        ("augment.rand_augment=foo", "is not understood"),
        ("seed=3", "own argument or option"),
    ],
)
def test_a_wrong_setting_says_what_is_wrong(change: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        configure(Request(changes=[change]), SILENT)
    assert message in str(error.value)


def test_weights_for_a_teacher_that_has_its_own_are_refused(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "teacher" / name).write_text("{}")
    said = Teaching(teacher=str(tmp_path / "teacher"), weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(ConfigError, match=r"has weights of its own.*--teacher-weights"):
        configure(Request(teaching=said), SILENT)

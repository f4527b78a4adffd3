"""A teacher of images of several labels: fine-tuned to them, checked, and cached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.data.subsets import Subset
from deitctl.device import choose_device
from deitctl.distillation.distillation_teacher import DistillationTeacher
from deitctl.distillation.preflight import (
    Preflight,
    estimate_chance,
    read_preflight,
    require_above_chance,
    summarize_preflight,
    write_preflight,
)
from deitctl.errors import TeacherError
from deitctl.events import SilentReporter
from deitctl.models.model_config import Preprocessing
from deitctl.training.launch import run_training, train_or_find

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
NAMES = ("above 4", "even", "round")
DIGITS_OF = ((5, 6, 7, 8, 9), (0, 2, 4, 6, 8), (0, 6, 8, 9))


@pytest.fixture
def several(little: Pair) -> Pair:
    """The digits with what is true of each: 1 has none of the three, 6 and 8 all."""

    def label(dataset: ImageDataset, names: tuple[str, ...] = NAMES) -> Subset:
        labels = np.stack([np.isin(dataset.labels, digits) for digits in DIGITS_OF], axis=1)
        return Subset(dataset, np.arange(len(labels)), labels, names)

    return label(little[0]), label(little[1])


def open_teacher(config: TrainConfig, pair: Pair, reporter: SilentReporter) -> DistillationTeacher:
    return DistillationTeacher(
        replace(config, task="multilabel"),
        *pair,
        Preprocessing(img_size=32),
        device=choose_device("cpu", "fp32"),
        reporter=reporter,
        train_run=lambda run: train_or_find(run, pair, reporter),
    )


def test_a_teacher_of_one_label_is_fine_tuned_to_several_and_its_student_learns_from_the_cache(
    distilled: Make, several: Pair, reporter, tmp_path: Path
) -> None:
    """Preflight and targets of the cache, and the weights of students with the cache and without."""
    students = {}
    for folder, cache in (("cached", ""), ("live", "off")):
        config = distilled(
            folder, finetune_teacher="head", mode="soft", teacher_cache=cache, reduction="mean"
        )
        recipe = replace(config.recipe, epochs=1)
        run = replace(config, task="multilabel", recipe=recipe)
        result = run_training(run, datasets=several, reporter=reporter)
        students[folder] = (tmp_path / folder / "model.safetensors").read_bytes()
        assert result.teacher is not None
        teacher = result.teacher
    assert students["cached"] == students["live"]
    assert (teacher.finetuned, teacher.top1, teacher.mean_recall) == ("head", None, None)
    assert teacher.map > teacher.map_chance + 10  # of features that tell digits apart
    predictions = teacher.list_predictions(3)
    assert predictions.shape == (30, 3)
    assert set(predictions.flatten().tolist()) == {0, 1}
    assert result.evaluation.teacher_agreement is not None
    assert any("mAP" in note and "chance" in note for note in reporter.notes)


def test_a_teacher_of_the_same_classes_but_one_label_is_fine_tuned_or_refused(
    distilled: Make, little: Pair, reporter
) -> None:
    """Its softmax says which class is likeliest, not whether an image has it."""
    names = tuple(map(str, range(10)))
    pair: Pair = tuple(  # type: ignore[assignment]
        Subset(s, np.arange(len(s.labels)), s.labels[:, None] == np.arange(10), names)
        for s in little
    )
    ((part, recipe),) = open_teacher(distilled("run"), pair, reporter).plan()
    assert (part, recipe.freeze) == ("head", "backbone")
    (warning,) = reporter.warnings
    assert (
        "was trained for one label an image, and the data has several labels: its head is"
        in warning
    )
    with pytest.raises(TeacherError, match="was trained for one label an image"):
        open_teacher(distilled("run", finetune_teacher="none"), pair, reporter).plan()


def preflight_of(labels: np.ndarray, scores: np.ndarray) -> Preflight:
    chance, std = estimate_chance(labels, scores)
    return Preflight(
        name="t",
        top1=None,
        top5=None,
        mean_recall=None,
        map=100 * chance,
        map_chance=100 * chance,
        map_chance_std=100 * std,
        num_images=len(labels),
        class_match="same",
        class_rows=None,
        finetuned="no",
        folder="",
        preprocessing=Preprocessing(),
        head="cls",
        weights_fingerprint="w",
        val_fingerprint="v",
        val_predictions=(),
        val_label_bits=("05", "", "00"),
    )


def test_chance_is_about_the_share_of_images_that_have_a_class() -> None:
    draw = np.random.default_rng(0)
    labels = draw.random((2000, 2)) < (0.5, 0.1)
    chance, std = estimate_chance(labels, draw.random((2000, 2)))
    assert chance == pytest.approx(labels.mean(0).mean(), abs=0.01)
    assert 0 < std < 0.02


def test_a_teacher_of_several_labels_must_be_clearly_above_chance(
    distilled: Make, several: Pair
) -> None:
    draw = np.random.default_rng(0)
    labels = draw.random((500, 3)) < 0.2
    near = preflight_of(labels, draw.random((500, 3)))
    config = distilled("run", allow_weak_teacher=False)
    with pytest.raises(TeacherError, match=r"a mAP of .* at or near chance \(2\d\.\d %\)"):
        require_above_chance(config.distill, near, several[1])
    with pytest.raises(TeacherError, match=r"a mAP of 0\.0 %"):
        require_above_chance(config.distill, replace(near, map=0.0, map_chance=0.0), several[1])
    require_above_chance(config.distill, replace(near, map=35.0), several[1])


def test_a_teacher_is_not_judged_where_no_validation_image_has_a_label(
    distilled: Make, several: Pair, tmp_path: Path
) -> None:
    labels = np.zeros((30, 3), bool)
    near = preflight_of(labels, np.random.default_rng(0).random((30, 3)))
    unknown = replace(near, map=None, map_chance=None, map_chance_std=None)
    require_above_chance(distilled("run", allow_weak_teacher=False).distill, unknown, several[1])
    assert "Teacher t: no mAP, as no image has a label, on 30" in summarize_preflight(unknown, "")
    write_preflight(tmp_path / "teacher.json", unknown)
    assert read_preflight(tmp_path / "teacher.json", 3, 3) == unknown


def test_a_record_of_several_labels_survives_and_one_that_was_changed_does_not(
    tmp_path: Path,
) -> None:
    draw = np.random.default_rng(0)
    preflight = preflight_of(draw.random((9, 3)) < 0.5, draw.random((9, 3)))
    path = tmp_path / "teacher.json"
    write_preflight(path, preflight)
    assert read_preflight(path, 3, 3) == preflight
    expected = torch.tensor([[1, 0, 1], [-1, -1, -1], [0, 0, 0]], dtype=torch.int8)
    assert torch.equal(preflight.list_predictions(3), expected)
    for wrong in ({"val_label_bits": ("05", "", "0")}, {"map": None}, {"map": 101.0}):
        write_preflight(path, replace(preflight, **wrong))
        assert read_preflight(path, 3, 3) is None

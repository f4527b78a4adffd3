"""Teachers are compared on the same images; none is trained, and one that fails is a row with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import deitctl
from deitctl.data.dataset import ImageDataset
from deitctl.distillation.rank import (
    RankedTeacher,
    _order,
    measure_view_disagreement,
    split_weights,
)
from deitctl.distillation.view_sample import ViewLogits
from deitctl.errors import ConfigError

SETTINGS = {"recipe": "digits", "workers": 0, "device": "cpu", "precision": "fp32"}


def test_labels_come_before_features_before_failures(
    digits_teacher: Path,
    imagenet_teacher: Callable[..., Path],
    digit_datasets: tuple[ImageDataset, ImageDataset],
    reporter: Any,
) -> None:
    """A hard label takes four bytes of a cache, features two a number and two of a checksum."""
    ranking = deitctl.rank_teachers(
        "digits",
        ["no-such-model", str(imagenet_teacher()), str(digits_teacher)],
        num_images=24,
        reporter=reporter,
        **SETTINGS,  # type: ignore[arg-type]
    )
    train, val = digit_datasets
    assert (ranking.num_images, ranking.num_views) == (24, 2)
    assert ranking.num_val_images == len(val.labels)
    labels, features, failed = ranking.teachers
    assert (labels.gives, features.gives, failed.gives) == ("labels", "features", None)
    assert (labels.class_match, features.class_match) == ("same", "none")
    assert (failed.error or "").startswith("There is no model 'no-such-model'.")
    assert reporter.warnings == []  # the row says it
    assert not any("learning rate" in note for note in reporter.notes)  # nothing is trained
    assert features.lacks == "has 0 of 10 classes: no 0, 1, 2 and 7 more"
    assert labels.lacks is labels.head_score is None
    assert 10 < (features.head_score or 0) <= 100
    assert features.label_agreement is features.top1 is features.teacher_agreement is None
    assert min(labels.top1 or 0, labels.label_agreement or 0, labels.mean_entropy or 0) > 0
    num_views = len(train.labels) * ranking.num_cached_views
    assert labels.cache_bytes == 4 * num_views
    assert features.cache_bytes == 2 * (1 + (features.num_features or 0)) * num_views
    for teacher in (labels, features):
        assert min(teacher.gflops or 0, teacher.ms_per_image or 0) > 0


def test_disagreement_counts_pairs_of_views_of_one_image() -> None:
    """Three views decided a, a, b are three pairs, of which two differ; a single view has none."""
    keys = [(0, 7), (1, 7), (2, 7), (0, 8), (1, 8), (0, 9)]
    decisions = torch.tensor([0, 0, 1, 2, 2, 0])
    logits = torch.nn.functional.one_hot(decisions, 3).float()
    views = ViewLogits(keys=keys, logits=logits, is_multilabel=False)
    assert measure_view_disagreement(views) == pytest.approx(100 * 2 / 4)
    single = ViewLogits(keys=keys[:1], logits=logits[:1], is_multilabel=False)
    assert measure_view_disagreement(single) is None


def test_an_echo_comes_after_others_only_where_hard_labels_are_learned() -> None:
    def row(name: str, score: float, **values: object) -> RankedTeacher:
        fixed = {"gives": "labels", "is_weak": False, "is_echo": False, "gflops": 1.0}
        return RankedTeacher(teacher=name, balanced_accuracy=score, **{**fixed, **values})  # type: ignore[arg-type]

    rows = [
        RankedTeacher(teacher="failed", error="gone"),
        RankedTeacher(teacher="features", gives="features", head_score=99.0),
        RankedTeacher(teacher="worse features", gives="features", head_score=98.0),
        row("weak", 99.0, is_weak=True),
        row("echo", 95.0, is_echo=True),
        row("large", 80.0, gflops=9.0),
        row("small", 80.0),
        row("best", 90.0),
    ]

    def names(is_hard: bool) -> list[str]:
        return [r.teacher for r in sorted(rows, key=lambda row: _order(row, is_hard=is_hard))]

    by_features = ["features", "worse features"]
    assert names(True) == ["best", "small", "large", "echo", "weak", *by_features, "failed"]
    assert names(False) == ["echo", "best", "small", "large", "weak", *by_features, "failed"]


def test_teachers_that_are_joined_are_refused() -> None:
    for joined in ("deit_tiny+resnet10t", "deit_tiny+resnet10t=file.pth"):
        with pytest.raises(ConfigError, match=r"is 2 teachers.*deit_tiny resnet10t"):
            deitctl.rank_teachers("digits", [joined])


def test_weights_are_named_behind_an_equals_sign(tmp_path: Path) -> None:
    assert split_weights("regnety_160=file.pth") == ("regnety_160", "file.pth")
    assert split_weights("runs/first") == ("runs/first", "")
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    assert split_weights(str(folder)) == (str(folder), "")


def test_two_copies_of_a_teacher_decide_alike(digits_teacher: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(digits_teacher, tmp_path / "copy")
    ranking = deitctl.rank_teachers(
        "digits",
        [digits_teacher, copy],
        num_images=8,
        **SETTINGS,  # type: ignore[arg-type]
    )
    agreements = {t.teacher: t.teacher_agreement for t in ranking.teachers}
    assert agreements == {
        str(digits_teacher): {str(copy): 100.0},
        str(copy): {str(digits_teacher): 100.0},
    }

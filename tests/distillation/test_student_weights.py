"""A student starts from the weights that were named, or from the plain ones of its name, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deitctl.config import TrainConfig
from deitctl.data.dataset import ImageDataset
from deitctl.errors import DeitctlError, ModelError, WeightsNotFound
from deitctl.models.checkpoint_io import save_tensors
from deitctl.models.vit import VisionTransformer
from deitctl.training.build import build_student
from deitctl.training.plan import plan_training

Make = Callable[..., TrainConfig]
Pair = tuple[ImageDataset, ImageDataset]
PLAIN, WITH_TOKEN = "deit_tiny_patch16_224.pth", "deit_tiny_distilled_patch16_224.pth"
TOKEN_COPIED = "the distillation token starts as a copy of the class token"


@pytest.fixture
def shelf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deit: Callable[..., VisionTransformer]
) -> Callable[..., Path]:
    """Lay weights of a small DeiT and its distilled variant into $DEITCTL_WEIGHTS, by file name."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("DEITCTL_WEIGHTS", str(folder))

    def lay(*names: str) -> Path:
        for name in names:
            alias = name.partition("_patch16")[0]
            safetensors = folder / f"{name.removesuffix('.pth')}.safetensors"
            save_tensors(safetensors, deit(alias, seed=len(name)).state_dict())
        return folder

    return lay


@pytest.mark.parametrize(
    ("there", "changes", "taken"),
    [
        ((PLAIN, WITH_TOKEN), {}, WITH_TOKEN),
        ((WITH_TOKEN,), {}, WITH_TOKEN),
        ((PLAIN,), {}, PLAIN),
        ((PLAIN,), {"student": "deit_tiny_distilled"}, PLAIN),
        ((PLAIN, WITH_TOKEN), {"dist_token": False}, PLAIN),
        ((WITH_TOKEN,), {"dist_token": False}, None),
        ((PLAIN,), {"student": "deit_tiny_distilled", "teacher": False}, None),
        ((PLAIN,), {"student": "deit_small"}, None),
        ((PLAIN,), {"student": "test_resnet.r160_in1k"}, None),
        ((), {}, None),
        ((PLAIN, WITH_TOKEN), {"pretrained": False}, ""),
        ((), {"pretrained": False}, ""),
    ],
)
def test_weights_are_the_named_ones_or_plain_ones_or_the_run_stops(
    there: tuple[str, ...],
    changes: dict[str, object],
    taken: str | None,
    shelf: Callable[..., Path],
    distilled: Make,
    little: Pair,
    reporter,
) -> None:
    """`taken` is a file, "" for random weights, and None for a run that stops."""
    folder = shelf(*there)
    config = distilled("run", model_args={}, dist_token=changes.get("dist_token", True))
    if changes.get("teacher") is False:
        config = replace(config, distill=None)
    recipe = replace(config.recipe, pretrained=changes.get("pretrained", True))
    config = replace(config, recipe=recipe, model=str(changes.get("student", "deit_tiny")))
    if taken is None:
        for start in (build_student, lambda c, t, r: plan_training(c, datasets=little, reporter=r)):
            with pytest.raises(WeightsNotFound, match="are not on this machine") as stopped:
                start(config, little[0], reporter)
            assert "--no-pretrained trains from scratch." in stopped.value.hint
        return
    student = build_student(config, little[0], reporter)
    expected = str(folder / f"{taken.removesuffix('.pth')}.safetensors") if taken else ""
    assert student.weights == expected
    is_plain_for_token = taken == PLAIN and changes.get("dist_token", True)
    assert (TOKEN_COPIED in student.changes) == is_plain_for_token
    said = [f"starts from the plain weights {expected}" in line for line in reporter.warnings]
    assert said == ([True] if is_plain_for_token else [])
    planned = plan_training(config, datasets=little, reporter=reporter)
    assert (planned.initial_weights, planned.weight_changes) == (
        expected or "random",
        list(student.changes),
    )
    assert planned.is_local == (True if taken else None)


def test_the_distilled_file_that_is_here_is_named_where_the_plain_one_is_missing(
    shelf: Callable[..., Path], distilled: Make, little: Pair, reporter
) -> None:
    path = shelf(WITH_TOKEN) / WITH_TOKEN.replace("pth", "safetensors")
    config = distilled("run", model_args={}, dist_token=False)
    config = replace(config, recipe=replace(config.recipe, pretrained=True))
    with pytest.raises(WeightsNotFound) as stopped:
        build_student(config, little[0], reporter)
    assert f"--weights {path} takes them without their token" in stopped.value.hint
    student = build_student(replace(config, weights=str(path)), little[0], reporter)
    assert "the distillation token is left out" in student.changes


@pytest.mark.parametrize(
    ("name", "change"), [(PLAIN, TOKEN_COPIED), (WITH_TOKEN, "the head is new: 10 classes")]
)
def test_named_weights_are_taken_with_or_without_a_token(
    name: str,
    change: str,
    shelf: Callable[..., Path],
    distilled: Make,
    little: Pair,
    monkeypatch: pytest.MonkeyPatch,
    reporter,
) -> None:
    path = shelf(name) / name.replace("pth", "safetensors")
    monkeypatch.delenv("DEITCTL_WEIGHTS")
    config = replace(distilled("run", model_args={}), weights=str(path))
    student = build_student(config, little[0], reporter)
    assert student.weights == str(path)
    assert any(change in said for said in student.changes)
    assert student.model.head_dist is not None
    for other in ("deit_small", "test_resnet"):
        with pytest.raises(ModelError, match=os.path.basename(path)):
            build_student(replace(config, model=other), little[0], reporter)


def test_a_run_of_distill_without_weights_leaves_no_folder(
    distilled: Make, little: Pair, tmp_path: Path, reporter
) -> None:
    from deitctl.training.launch import run_training

    config = distilled("run", model_args={})
    config = replace(config, recipe=replace(config.recipe, pretrained=True))
    with pytest.raises(DeitctlError, match="are not on this machine"):
        run_training(config, datasets=little, reporter=reporter)
    assert not (tmp_path / "run").exists()

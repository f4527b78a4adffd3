"""A model to train starts with the rows of the head that belong to the data's classes, or with a new head."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deitctl.errors import ModelError
from deitctl.models.build import build_model, has_class_rows
from deitctl.models.checkpoint_io import save_model, save_tensors
from deitctl.models.factory import LoadedModel
from deitctl.models.introspect import describe_layers
from deitctl.models.vit import VisionTransformer

BARE = "w.safetensors"


@pytest.fixture
def bare(tmp_path: Path, deit: Callable[..., VisionTransformer]) -> VisionTransformer:
    """A DeiT of three classes whose file does not name them."""
    model = deit(classes=3)
    save_tensors(tmp_path / BARE, model.state_dict())
    return model


def build(weights: Path, class_names: tuple[str, ...], reporter, **changes: object) -> LoadedModel:
    options = {"img_size": 32, "drop_path_rate": 0.0, "pretrained": False, "distilled": None}
    return build_model(
        "deit_tiny",
        class_names=class_names,
        weights=str(weights),
        reporter=reporter,
        **{**options, **changes},  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("start_classes", "data", "rows"),
    [
        (("a", "b", "c"), ("c", "a", "b"), [2, 0, 1]),
        (("a", "b", "c"), ("c", "b"), [2, 1]),
        (("e\u0301", "b", " c"), ("\u00e9", "b", "c"), [0, 1, 2]),  # as older models have them
        ((), ("c", "a", "b"), [0, 1, 2]),  # not named: the order is assumed, and is said
    ],
)
def test_rows_of_the_head_follow_names(
    start_classes: tuple[str, ...],
    data: tuple[str, ...],
    rows: list[int],
    bare: VisionTransformer,
    tmp_path: Path,
    reporter,
) -> None:
    loaded = build(tmp_path / BARE, data, reporter, start_classes=start_classes)
    assert torch.equal(loaded.model.head.weight, bare.head.weight[rows])
    assert not loaded.has_new_head
    assert has_class_rows(
        "deit_tiny", str(tmp_path / BARE), data, reporter, start_classes=start_classes
    )
    assumed = [f"order of the data's classes ({', '.join(data)})" in c for c in loaded.changes]
    assert any(assumed) == (not start_classes)


def test_classes_of_other_names_get_a_new_head(
    bare: VisionTransformer, tmp_path: Path, reporter
) -> None:
    """As many, so that their rows would fit."""
    names, data = ("a", "b", "c"), ("a", "b", "x")
    loaded = build(tmp_path / BARE, data, reporter, start_classes=names)
    assert loaded.has_new_head
    assert not torch.equal(loaded.model.head.weight, bare.head.weight)
    weights = str(tmp_path / BARE)
    assert not has_class_rows("deit_tiny", weights, data, reporter, start_classes=names)


def test_names_of_another_number_of_classes_are_refused(
    bare: VisionTransformer, tmp_path: Path, reporter
) -> None:
    with pytest.raises(ModelError, match="--classes names 2 classes, and .* has 3"):
        build(tmp_path / BARE, ("a", "b"), reporter, start_classes=("a", "b"))


def test_a_timm_model_says_that_its_head_is_new(tmp_path: Path, reporter) -> None:
    from deitctl.models import timm_models

    model = timm_models.create_model("test_resnet", num_classes=3, img_size=32)
    config = timm_models.read_model_config(model, "test_resnet", 3).at_size(32)
    save_model(tmp_path / "folder", model.state_dict(), config, describe_layers(model))
    loaded = build_model(
        str(tmp_path / "folder"),
        class_names=("a", "b"),
        img_size=32,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=None,
        reporter=reporter,
    )
    assert loaded.changes == ("the head is new: 2 classes",)
    assert loaded.weights == str(tmp_path / "folder" / "model.safetensors")


def test_names_that_replace_those_of_a_run_are_said(
    deit: Callable[..., VisionTransformer], tmp_path: Path, reporter
) -> None:
    """Swapped names swap the rows of the head."""
    model = deit(classes=2)
    config = model.arch.to_model_config().at_size(model.img_size)
    config = replace(config, num_classes=2, class_names=("owl", "cat"), descriptions=None)
    save_model(tmp_path / "run", model.state_dict(), config, describe_layers(model))
    for names, rows in ((("owl", "cat"), [1, 0]), (("cat", "owl"), [0, 1])):
        loaded = build(tmp_path / "run", ("cat", "owl"), reporter, start_classes=names)
        assert torch.equal(loaded.model.head.weight, model.head.weight[rows])
        said = [c for c in loaded.changes if "are replaced, 'owl' by 'cat' for example" in c]
        assert bool(said) == (names == ("cat", "owl"))


def test_names_of_published_weights_that_are_not_here_count_as_they_will(
    monkeypatch: pytest.MonkeyPatch, reporter
) -> None:
    from deitctl.models import build as package

    monkeypatch.setattr(package, "find_weights", lambda arch: None)
    options = {"weights": "", "pretrained": True, "download": False}
    imagenet = tuple(f"c{i}" for i in range(1000))
    with pytest.raises(ModelError, match="--classes names 2 classes, and deit_tiny.* has 1000"):
        build(**options, class_names=("a", "b"), start_classes=("a", "b"), reporter=reporter)
    loaded = build(**options, class_names=("c7", "c1"), start_classes=imagenet, reporter=reporter)
    assert not loaded.has_new_head
    assert "the head keeps the weights' rows of the data's 2 classes" in loaded.changes
    for names, has_rows in ((imagenet, True), ((), False)):
        assert (
            has_class_rows("deit_tiny", "", ("c7", "c1"), reporter, start_classes=names) is has_rows
        )


def test_a_training_normalizes_as_the_files_trainer_did(
    bare: VisionTransformer, tmp_path: Path, reporter
) -> None:
    args = argparse.Namespace(mean=[0.5] * 3, std=[0.25] * 3, crop_pct=0.95)
    torch.save({"model": bare.state_dict(), "args": args}, tmp_path / "w")
    pre = build(tmp_path / "w", ("a", "b", "c"), reporter).model_config.preprocessing
    assert (pre.mean, pre.std, pre.crop_pct) == ((0.5,) * 3, (0.25,) * 3, 0.95)

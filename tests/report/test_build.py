"""A report shows the evaluation's own figures, the right images, and where each token looks."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deitctl.device import choose_device
from deitctl.evaluation.score_models import evaluate_models
from deitctl.events import SilentReporter
from deitctl.models import timm_models
from deitctl.models.catalog import load_imagenet_classes
from deitctl.models.checkpoint_io import save_model, save_tensors
from deitctl.models.factory import build_model
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.report.build import _name, contents_of
from deitctl.report.contents import OUTSIDE

CPU = choose_device("cpu", "fp32")


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(alias: str, classes: tuple[str, ...]) -> Path:
        torch.manual_seed(0)
        built = build_model(
            alias,
            class_names=classes,
            img_size=32,
            drop_path_rate=0.0,
            pretrained=False,
            weights="",
            distilled=None,
            reporter=SilentReporter(),
        )
        save_model(
            tmp_path / alias,
            built.model.state_dict(),
            pin_img_size(built.model, built.model_config),
            describe_layers(built.model),
        )
        return tmp_path / alias

    return make


@pytest.fixture
def images(image_folder: Callable[..., Path]) -> Path:
    root = image_folder({"a": 6, "b": 6})
    (root / "b" / "5.png").write_text("no")
    return root


def gathered(found, command="deitctl eval"):
    return contents_of(found, CPU, command, SilentReporter())


def test_a_distilled_model_is_shown_with_both_heads_and_both_tokens(model_folder, images) -> None:
    found = evaluate_models(
        str(images), models=[str(model_folder("deit_tiny_distilled", ("a", "b", "c")))], workers=0
    )
    scores, (shown,) = found.results[0].scores, gathered(found).evaluated
    assert (shown.top1, shown.loss, shown.ece, shown.heads) == (
        scores.top1,
        scores.loss,
        scores.ece,
        scores.heads,
    )
    assert shown.intervals == found.results[0].intervals
    assert np.array_equal(shown.correct, scores.correct.numpy())
    assert set(shown.outside.values()) <= {"c"}
    assert set(shown.outside) == set(np.flatnonzero(shown.predicted == OUTSIDE).tolist())
    wrong = [e.index for e in shown.mistakes]
    assert sorted(wrong) == np.flatnonzero(~shown.correct).tolist()
    assert wrong == sorted(wrong, key=lambda n: -float(scores.confidences[n]))
    assert [e.index for e in shown.unsure] == sorted(
        np.flatnonzero(shown.correct).tolist(), key=lambda n: float(scores.confidences[n])
    )
    assert {e.index for e in shown.disagreements} == set(
        torch.nonzero(scores.disagree)[:, 0].tolist()
    )
    for example in (*shown.mistakes, *shown.unsure):
        label, score = example.guesses[0]
        assert score == pytest.approx(float(scores.confidences[example.index]), rel=1e-4)
        assert label == found.results[0].model_config.label(int(scores.predictions[example.index]))
        assert set(example.maps) == {"class token", "distillation token"}
        sizes = {
            Image.open(io.BytesIO(b)).size for b in (example.thumbnail, *example.maps.values())
        }
        assert len({w / h for w, h in sizes}) == 1
        says = {name: said for name, (said, _) in example.heads.items()}
        assert (says["class head"] != says["distillation head"]) == bool(
            scores.disagree[example.index]
        )
    assert [bin_.num_images for bin_ in shown.reliability if bin_.num_images] == [
        row["images"] for row in found.results[0].to_dict()["reliability"]
    ]
    assert [name for name, _ in shown.data.unreadable] == [str(images / "b" / "5.png")]


def test_scores_of_examples_are_those_of_the_models_temperature(model_folder, images) -> None:
    model = model_folder("deit_tiny", ("a", "b"))
    config = json.loads((model / "config.json").read_text())
    config["deitctl"]["temperatures"] = {"cls": 0.05}
    (model / "config.json").write_text(json.dumps(config))
    found = evaluate_models(str(images), models=[str(model)], workers=0)
    (shown,) = gathered(found).evaluated
    for example in (*shown.mistakes, *shown.unsure):
        assert example.guesses[0][1] == pytest.approx(
            float(found.results[0].scores.confidences[example.index]), rel=1e-4
        )
    assert ("temperature", "0.050, the model's own") in shown.facts


def test_a_model_of_another_kind_is_shown_without_maps(images, tmp_path) -> None:
    torch.manual_seed(0)
    model = timm_models.create_model("regnety_002", num_classes=2, img_size=32)
    model_config = timm_models.read_model_config(model, "regnety_002", 2)
    from dataclasses import replace

    save_model(
        tmp_path / "net",
        model.state_dict(),
        replace(model_config, class_names=("a", "b")),
        describe_layers(model),
    )
    (shown,) = gathered(
        evaluate_models(str(images), models=[str(tmp_path / "net")], workers=0)
    ).evaluated
    assert all(e.maps is None and e.heads is None for e in (*shown.mistakes, *shown.unsure))
    assert shown.disagreements == []


def test_several_are_told_apart_and_compared(model_folder, images) -> None:
    model = str(model_folder("deit_tiny", ("a", "b")))
    found = evaluate_models(str(images), models=[model], protocols=["native", "hf"], workers=0)
    contents = gathered(found)
    assert [e.name for e in contents.evaluated] == ["native", "hf"]
    assert contents.evaluated[0].data is contents.evaluated[1].data
    (compared,) = contents.comparisons
    assert (compared.a, compared.b) == ("native", "hf")
    assert contents.curves is None


def test_the_curves_are_those_of_the_run_that_the_model_is(model_folder, images) -> None:
    model = model_folder("deit_tiny", ("a", "b"))
    epoch = {"kind": "epoch", "epoch": 1, "step": 2, "val_loss": 0.5, "top1": 50.0, "heads": None}
    step = {"kind": "step", "step": 1, "epoch": 0, "lr": 0.1, "loss": 1.0}
    (model / "metrics.jsonl").write_text(json.dumps(step) + "\n" + json.dumps(epoch) + "\n")
    (model / "result.json").write_text(json.dumps({"teacher": {"top1": 90.0}}))
    curves = gathered(evaluate_models(str(images), models=[str(model)], workers=0)).curves
    assert (curves.steps, curves.epochs, curves.teacher_top1, curves.run) == (
        [step],
        [epoch],
        90.0,
        "deit_tiny",
    )


def test_files_are_written_where_they_are_wanted(model_folder, images, tmp_path, reporter) -> None:
    found = evaluate_models(
        str(images),
        models=[str(model_folder("deit_tiny_distilled", ("a", "b")))],
        workers=0,
        reporter=reporter,
        report=str(tmp_path / "new" / "r.html"),
        figures=str(tmp_path / "figures"),
        command="deitctl eval 'my data'",
    )
    page = (tmp_path / "new" / "r.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "deitctl eval &#x27;my data&#x27;" in page
    assert f"{found.results[0].scores.top1:.1f}" in page
    drawn = {p.name for p in (tmp_path / "figures").glob("*.png")}
    assert {"confusion.png", "per_class.png", "reliability.png", "unsure.png"} <= drawn
    assert any("r.html" in note for note in reporter.notes)


def test_a_guess_that_is_right_goes_by_the_datas_name(deit, image_folder, tmp_path) -> None:
    """Of ImageNet's classes 134 and 517 are both called crane; 207 is golden retriever."""
    ids = load_imagenet_classes()[0]
    root = image_folder({ids[n]: 2 for n in (134, 207, 517)})
    save_tensors(
        tmp_path / "w.safetensors", deit("deit_tiny", classes=1000, img_size=32).state_dict()
    )
    found = evaluate_models(str(root), models=[str(tmp_path / "w.safetensors")], workers=0)
    (shown,) = gathered(found).evaluated
    assert shown.data.classes == [f"crane ({ids[134]})", "golden retriever", f"crane ({ids[517]})"]
    said = {name for e in shown.mistakes for name, _ in e.guesses}
    assert not any("," in name for name in said)
    assert _name(found.results[0], 517, shown.data) == shown.data.classes[2]
    assert _name(found.results[0], 0, shown.data) == "tench"

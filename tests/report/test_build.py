"""A report shows the evaluation's own metrics, the right images, and the attention of each token."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deitctl.errors import ConfigError, DeitctlError
from deitctl.evaluation.evaluate import evaluate_models
from deitctl.events import SilentReporter
from deitctl.models import timm_models
from deitctl.models.build import build_model
from deitctl.models.catalog import load_imagenet_classes
from deitctl.models.checkpoint_io import save_model, save_tensors
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.report.build import (
    build_contents,
    require_report_paths,
    select_mistakes,
    select_unsure,
    write_report,
)
from deitctl.report.contents import OUTSIDE
from deitctl.report.thumbnails import THUMBNAIL_PX, encode_thumbnail

CORRECT = np.array([True, False, True, False, False])
CONFIDENCES = np.array([0.9, 0.3, 0.2, 0.8, 0.8])


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


def build(results):
    return build_contents(results, "deitctl eval", SilentReporter())


def test_a_distilled_model_is_shown_with_both_heads_and_both_tokens(model_folder, images) -> None:
    results = evaluate_models(
        str(images), models=[str(model_folder("deit_tiny_distilled", ("a", "b", "c")))], workers=0
    )
    (result,), (section,) = results.evaluations, build(results).sections
    assert section.result is result
    preds, galleries = section.preds, section.galleries
    wrong = [e.index for e in galleries["mistakes"]]
    assert sorted(wrong) == torch.nonzero(~result.correct)[:, 0].tolist()
    assert wrong == sorted(wrong, key=lambda n: -float(result.confidences[n]))
    assert [e.index for e in galleries["unsure"]] == sorted(
        torch.nonzero(result.correct)[:, 0].tolist(), key=lambda n: float(result.confidences[n])
    )
    assert {e.index for e in galleries["disagreements"]} == set(
        torch.nonzero(result.heads_differ)[:, 0].tolist()
    )
    for row in np.flatnonzero(preds == OUTSIDE):
        assert section.get_outside_title(row) == "c"
    for example in (*galleries["mistakes"], *galleries["unsure"]):
        label, score = example.guesses[0]
        assert score == pytest.approx(float(result.confidences[example.index]), rel=1e-4)
        assert label == "abc"[int(result.preds[example.index])]
        assert set(example.maps) == {"class token", "distillation token"}
        sizes = {
            Image.open(io.BytesIO(b)).size for b in (example.thumbnail, *example.maps.values())
        }
        assert len({w / h for w, h in sizes}) == 1
        heads = {name: guess for name, (guess, _) in example.heads.items()}
        assert (heads["class head"] != heads["distillation head"]) == bool(
            result.heads_differ[example.index]
        )
    assert [name for name, _ in result.read_errors] == [str(images / "b" / "5.png")]


def test_scores_of_examples_are_those_of_the_models_temperature(model_folder, images) -> None:
    model = model_folder("deit_tiny", ("a", "b"))
    config = json.loads((model / "config.json").read_text())
    config["deitctl"]["temperatures"] = {"cls": 0.05}
    (model / "config.json").write_text(json.dumps(config))
    results = evaluate_models(str(images), models=[str(model)], workers=0)
    (section,) = build(results).sections
    for example in (*section.galleries["mistakes"], *section.galleries["unsure"]):
        assert example.guesses[0][1] == pytest.approx(
            float(results.evaluations[0].confidences[example.index]), rel=1e-4
        )
    assert ("temperature", "0.050, the model's own") in section.facts


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
    (section,) = build(
        evaluate_models(str(images), models=[str(tmp_path / "net")], workers=0)
    ).sections
    examples = (*section.galleries["mistakes"], *section.galleries["unsure"])
    assert all(e.maps == e.heads == {} for e in examples)
    assert section.galleries["disagreements"] == []


def test_several_are_distinguished_and_compared(model_folder, images) -> None:
    model = str(model_folder("deit_tiny", ("a", "b")))
    results = evaluate_models(str(images), models=[model], protocols=["native", "hf"], workers=0)
    contents = build(results)
    assert [section.result.name for section in contents.sections] == ["native", "hf"]
    (compared,) = contents.comparisons
    assert (compared.a, compared.b) == ("native", "hf")
    assert contents.curves is None


def test_the_curves_are_those_of_the_run_that_the_model_is(model_folder, images) -> None:
    model = model_folder("deit_tiny", ("a", "b"))
    epoch = {"kind": "epoch", "epoch": 1, "step": 2, "val_loss": 0.5, "top1": 50.0, "heads": None}
    step = {"kind": "step", "step": 1, "epoch": 0, "lr": 0.1, "loss": 1.0}
    (model / "metrics.jsonl").write_text(json.dumps(step) + "\n" + json.dumps(epoch) + "\n")
    (model / "result.json").write_text(json.dumps({"teacher": {"top1": 90.0}}))
    curves = build(evaluate_models(str(images), models=[str(model)], workers=0)).curves
    assert (curves.steps, curves.teacher_top1, curves.run) == ([step], 90.0, "deit_tiny")
    (drawn,) = curves.epochs
    assert drawn.items() >= epoch.items()


def test_the_page_and_the_figures_are_written_and_the_page_holds_its_command(
    model_folder, images, tmp_path, reporter
) -> None:
    model = str(model_folder("deit_tiny_distilled", ("a", "b")))
    results = evaluate_models(str(images), models=[model], workers=0)
    page, figures = tmp_path / "new" / "r.html", tmp_path / "figures"
    command = "deitctl eval 'my data'"
    write_report(results, reporter, report=str(page), figures=str(figures), command=command)
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "deitctl eval &#x27;my data&#x27;" in text
    assert f"{results.evaluations[0].top1:.1f}" in text
    drawn = {p.name for p in figures.glob("*.png")}
    assert {"confusion.png", "per_class.png", "reliability.png", "unsure.png"} <= drawn
    assert any("r.html" in note for note in reporter.notes)


def test_paths_that_cannot_be_written_are_refused_before_the_evaluation(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeitctlError, match="Name another folder with --figures"):
        require_report_paths("", str(tmp_path / "file"))
    for report in ("cat.jpg", "page", "rep.pdf"):
        with pytest.raises(ConfigError, match=r"Name it FILE\.html"):
            require_report_paths(report, "")
    with pytest.raises(ConfigError, match="Name two files"):
        require_report_paths("a.html", "", "./a.html")


def test_a_correct_guess_has_the_datas_name(deit, image_folder, tmp_path) -> None:
    """Of ImageNet's classes 134 and 517 are both called crane; 207 is golden retriever."""
    ids = load_imagenet_classes()[0]
    root = image_folder({ids[n]: 2 for n in (134, 207, 517)})
    save_tensors(
        tmp_path / "w.safetensors", deit("deit_tiny", classes=1000, img_size=32).state_dict()
    )
    results = evaluate_models(str(root), models=[str(tmp_path / "w.safetensors")], workers=0)
    (section,) = build(results).sections
    assert section.subject.class_titles == [
        f"crane ({ids[134]})",
        "golden retriever",
        f"crane ({ids[517]})",
    ]
    guesses = {name for e in section.galleries["mistakes"] for name, _ in e.guesses}
    assert not any("," in name for name in guesses)
    assert section.subject.get_title(517) == section.subject.class_titles[2]
    assert section.subject.get_title(0) == "tench"


def test_mistakes_are_ordered_from_the_most_confident_equal_ones_as_in_the_data():
    assert select_mistakes(CORRECT, CONFIDENCES, 24) == [3, 4, 1]
    assert select_mistakes(CORRECT, CONFIDENCES, 1) == [3]


def test_correct_predictions_are_ordered_from_the_least_confident():
    assert select_unsure(CORRECT, CONFIDENCES, 24) == [2, 0]


def test_without_mistakes_or_correct_predictions_a_gallery_is_empty():
    assert select_mistakes(np.ones(3, bool), CONFIDENCES[:3], 24) == []
    assert select_unsure(np.zeros(3, bool), CONFIDENCES[:3], 24) == []


def test_a_thumbnail_is_a_small_jpeg_of_the_same_shape_and_colors():
    pixels = np.zeros((3, 384, 192), np.uint8)
    pixels[0] = 200
    image = Image.open(io.BytesIO(encode_thumbnail(pixels)))
    assert (image.format, image.size) == ("JPEG", (THUMBNAIL_PX // 2, THUMBNAIL_PX))
    assert np.abs(np.asarray(image).reshape(-1, 3).mean(0) - [200, 0, 0]).max() < 3


def test_a_small_image_is_not_enlarged(pixels):
    assert Image.open(io.BytesIO(encode_thumbnail(pixels(0)))).size == (32, 32)


def test_seventy_two_images_with_two_maps_each_stay_below_three_megabytes(make_image):
    def one(seed: int) -> bytes:
        return encode_thumbnail(np.asarray(make_image(224, 224, seed)).transpose(2, 0, 1))

    largest = max(len(one(seed)) for seed in range(4))
    assert 72 * 3 * largest * 4 / 3 < 3e6  # base64 makes four bytes of three

"""Predictions from scores, one an input, in order; models of any kind, inputs of any kind."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deitctl.data.decode import read_image
from deitctl.data.eval_transform import Pixels
from deitctl.errors import ConfigError, DataError, ModelError
from deitctl.events import SilentReporter
from deitctl.inference.classifier import Classifier, Prediction, Scores, load, predict
from deitctl.models.build import build_model
from deitctl.models.checkpoint_io import save_model
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.models.model_config import ModelConfig, Preprocessing
from deitctl.records import to_json


class Colors:
    """Three classes, scored by the mean of the red, green and blue values."""

    model_config = ModelConfig(
        architecture="colors",
        num_classes=3,
        class_names=("r", "g", "b"),
        descriptions=("red", "green", "blue"),
        preprocessing=Preprocessing(img_size=8, crop_pct=1.0),
    )

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    resizes_images = False

    def logits(self, pixels: Pixels) -> Scores:
        return pixels.reshape(len(pixels), 3, -1).mean(axis=2).astype(np.float32)

    def scores(self, pixels: Pixels) -> Scores:
        self.batch_sizes.append(len(pixels))
        sums = pixels.reshape(len(pixels), 3, -1).sum(axis=2).astype(np.float32)
        with np.errstate(invalid="ignore"):
            return sums / sums.sum(axis=1, keepdims=True)


@pytest.fixture
def painted(tmp_path: Path) -> Callable[..., str]:
    def paint(name: str, color: tuple[int, int, int]) -> str:
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{name}.png")
        return str(tmp_path / f"{name}.png")

    return paint


def classify(names: list[str], **options: object) -> list[Prediction]:
    settings = {"topk": 5, "batch_size": 2, **options}
    return list(Classifier(Colors()).stream(names, **settings))


def test_predictions_are_sorted_by_score_then_index(painted):
    names = [painted("a", (30, 10, 60)), painted("b", (50, 0, 50))]
    first, second = classify(names)
    assert [(g.index, g.label) for g in first.predictions] == [
        (2, "blue"),
        (0, "red"),
        (1, "green"),
    ]
    assert [g.score for g in first.predictions] == pytest.approx([0.6, 0.3, 0.1])
    assert [g.label for g in second.predictions] == ["red", "blue", "green"]


@pytest.mark.parametrize(("topk", "named"), [(1, 1), (2, 2), (3, 3), (4, 3), (10**9, 3)])
def test_topk_is_limited_by_the_number_of_classes(topk, named, painted):
    [record] = classify([painted("a", (1, 2, 3))], topk=topk)
    assert len(record.predictions) == named
    assert record.predictions[0].label == "blue"


def test_scores_that_are_nan_are_an_error_of_their_image(painted):
    # black is 0 / 0
    names = [painted("a", (1, 2, 3)), painted("black", (0, 0, 0)), painted("c", (3, 2, 1))]
    records = classify(names, batch_size=3)
    assert [r.input for r in records] == names
    assert [r.error is None for r in records] == [True, False, True]
    assert "not numbers" in str(records[1].error)
    assert [r.predictions[0].label for r in records if r.predictions] == ["blue", "red"]


def test_readable_images_are_batched(painted):
    names = [painted(str(n), (n + 1, 0, 0)) for n in range(5)]
    backend = Colors()
    list(Classifier(backend).stream([*names[:2], "/nowhere.png", *names[2:]], batch_size=3))
    assert backend.batch_sizes == [2, 3]


def test_keep_pixels_returns_the_model_input(painted):
    name = painted("a", (7, 8, 9))
    assert classify([name])[0].pixels is None
    [record] = classify([name], keep_pixels=True)
    assert record.pixels is not None
    assert record.pixels.shape == (3, 8, 8)
    assert record.pixels[:, 0, 0].tolist() == [7, 8, 9]
    assert record == classify([name])[0]


def test_json_is_that_of_the_contract(painted):
    name = painted("a", (0, 0, 5))
    [record, missing] = classify([name, "/nowhere.png"], topk=1)
    assert to_json(record) == {
        "input": name,
        "predictions": [{"index": 2, "label": "blue", "score": 1.0}],
        "error": None,
        "labels": None,
    }
    assert to_json(missing) == {
        "input": "/nowhere.png",
        "predictions": [],
        "error": "/nowhere.png cannot be read: No such file or directory.",
        "labels": None,
    }


class SeveralColors(Colors):
    """Each color's mean of 0..255 is the probability that it is there."""

    model_config = replace(
        Colors.model_config, task="multilabel", thresholds={"cls": (0.5, 0.2, 0.5)}
    )

    def scores(self, pixels: Pixels) -> Scores:
        return self.logits(pixels) / 255


def test_several_labels_are_those_that_reach_their_threshold_most_probable_first(painted):
    names = [painted("a", (51, 102, 204)), painted("b", (127, 50, 0)), "/nowhere.png"]
    [first, none, missing] = Classifier(SeveralColors()).predict(names, topk=2)
    assert [(c.label, c.threshold) for c in first.labels] == [("blue", 0.5), ("green", 0.2)]
    assert [c.score for c in first.labels] == pytest.approx([0.8, 0.4])
    assert (none.labels, none.predictions[0].label, none.error) == ((), "red", None)
    assert (missing.labels, missing.predictions) == (None, ())
    assert to_json(none)["predictions"][1] == {
        "index": 1,
        "label": "green",
        "score": pytest.approx(50 / 255),
        "threshold": 0.2,
    }


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A distilled DeiT-tiny at 32 pixels with three named classes, random weights."""
    torch.manual_seed(0)
    built = build_model(
        "deit_tiny_distilled",
        class_names=("ant", "bee", "cow"),
        img_size=32,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=None,
        reporter=SilentReporter(),
    )
    model_config: ModelConfig = pin_img_size(built.model, built.model_config)
    save_model(
        tmp_path / "model", built.model.state_dict(), model_config, describe_layers(built.model)
    )
    return tmp_path / "model"


def test_predictions_are_in_input_order_for_any_batch_size(
    model_folder: Path, image_folder: Callable[..., Path]
) -> None:
    root = image_folder({"in": 5})
    (root / "in" / "2.png").write_bytes(b"no image")
    paths = [str(root / "in" / f"{i}.png") for i in (4, 2, 0, 1, 3)] + [str(root / "gone.jpg")]
    for batch_size in (1, 2, 16):
        records = list(predict(paths, model=str(model_folder), batch_size=batch_size, topk=9))
        assert [r.input for r in records] == paths
        assert [r.error is None for r in records] == [True, False, True, True, True, False]
        assert "is a text file, not an image" in str(records[1].error)
        assert all(len(r.predictions) == 3 for r in records if r.error is None)
        assert all(
            abs(sum(g.score for g in r.predictions) - 1) < 1e-5 for r in records if r.error is None
        )
        assert {g.label for g in records[0].predictions} == {"ant", "bee", "cow"}


def test_folders_are_walked_and_a_dash_reads_stdin(
    model_folder: Path, image_folder: Callable[..., Path]
) -> None:
    root = image_folder({"in/deep": 2, "in": 1})
    walked = list(predict([str(root / "in")], model=str(model_folder)))
    assert [Path(r.input).relative_to(root).as_posix() for r in walked] == [
        "in/0.png",
        "in/deep/0.png",
        "in/deep/1.png",
    ]
    listed = list(
        predict(["-"], model=str(model_folder), stdin=[f"{r.input}\n" for r in walked] + ["\n"])
    )
    assert [r.input for r in listed] == [r.input for r in walked]
    assert listed[0].predictions[0].score == pytest.approx(walked[0].predictions[0].score)


def test_each_head_rule_has_its_scores(
    model_folder: Path, image_folder: Callable[..., Path]
) -> None:
    image = str(image_folder({"in": 1}) / "in" / "0.png")
    scores = {}
    for head in ("cls", "dist", "avg-probs"):
        [record] = predict([image], model=str(model_folder), head=head)
        scores[head] = {g.label: g.score for g in record.predictions}
    for label, score in scores["avg-probs"].items():
        assert score == pytest.approx((scores["cls"][label] + scores["dist"][label]) / 2, abs=1e-6)


def test_bad_arguments_fail_before_the_first_prediction() -> None:
    with pytest.raises(ModelError, match="Did you mean 'deit_tiny'"):
        predict(["x.jpg"], model="deit_tinny")
    with pytest.raises(ConfigError):
        predict(["x.jpg"], topk=0)


def test_what_is_passed_over_in_a_folder_is_reported_at_the_end(
    model_folder: Path, image_folder, reporter
) -> None:
    root = image_folder({"in": 1})
    (root / "in" / "scan.dcm").write_bytes(b"x")
    records = predict([str(root)], model=str(model_folder), reporter=reporter)
    assert next(records).error is None
    assert reporter.warnings == []
    assert list(records) == []
    assert [w[:32] for w in reporter.warnings] == ["1 file is not read: 1 .dcm (expo"]


def test_an_empty_folder_is_an_error_in_its_place(
    model_folder: Path, image_folder: Callable[..., Path]
) -> None:
    image = image_folder({"in": 1}) / "in" / "0.png"
    (image.parent.parent / "empty").mkdir()
    records = list(
        predict(
            [str(image), str(image.parent.parent / "empty"), "a\0b.png", str(image)],
            model=str(model_folder),
        )
    )
    assert [r.error is None for r in records] == [True, False, False, True]


@pytest.mark.parametrize("name", ["deit_tiny_distilled", "test_byobnet"])
def test_scores_are_calibrated_when_the_folder_has_a_temperature(
    name: str, tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    """Odds p/q become (p/q)^(1/T); another rule's temperature changes nothing."""
    torch.manual_seed(0)
    built = build_model(
        name,
        class_names=("ant", "bee", "cow"),
        img_size=64,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=None,
        reporter=SilentReporter(),
    )
    with torch.no_grad():
        for parameter in built.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model_config = replace(pin_img_size(built.model, built.model_config), temperatures={})
    rule = "dist" if "deit" in name else "cls"
    for folder, temperatures in (("plain", {}), ("warm", {rule: 4.0})):
        warmed = replace(model_config, head=rule, temperatures=temperatures)
        save_model(
            tmp_path / folder, built.model.state_dict(), warmed, describe_layers(built.model)
        )
    image = str(image_folder({"in": 1}) / "in" / "0.png")

    def odds(folder: str, head: str) -> float:
        [record] = predict([image], model=str(tmp_path / folder), head=head)
        scores = {g.label: g.score for g in record.predictions}
        return scores["ant"] / scores["bee"]

    assert odds("plain", "auto") != pytest.approx(1, rel=1e-3)
    assert odds("warm", "auto") == pytest.approx(odds("plain", "auto") ** 0.25, rel=1e-4)
    if rule == "dist":
        assert odds("warm", "cls") == odds("plain", "cls")


def test_inputs_of_every_kind_have_the_same_prediction(model_folder: Path, painted) -> None:
    """Bytes, Pillow image, array and tensors hold the same pixels as the file."""
    path = painted("a", (200, 30, 90))
    model = load(model_folder)
    array = np.asarray(read_image(Path(path)))
    chw = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = model.predict(path, topk=3)
    assert expected.input == path
    assert model.predict(Path(path), topk=3) == expected
    with Image.open(path) as image:
        images = [Path(path).read_bytes(), image, array, chw, chw.float() / 255]
        results = model.predict(images, topk=3)
        assert model.predict(image, topk=3).predictions == expected.predictions
    for result in results:  # a batch's last bit may be another than a single image's
        for ours, theirs in zip(result.predictions, expected.predictions, strict=True):
            assert ours == replace(theirs, score=ours.score)
            assert ours.score == pytest.approx(theirs.score, abs=1e-6)
    assert [r.input for r in results] == [f"image {n}" for n in range(5)]


def test_a_batch_of_arrays_or_tensors_is_several_images() -> None:
    arrays = np.zeros((4, 8, 8, 3), np.uint8)
    arrays[..., 1] = 9
    for images in (arrays, torch.from_numpy(arrays).permute(0, 3, 1, 2), iter(arrays)):
        results = Classifier(Colors()).predict(images, topk=1)
        assert [r.predictions[0].label for r in results] == ["green"] * 4


def test_a_string_is_one_path_and_never_iterated(painted) -> None:
    model = Classifier(Colors())
    assert model.predict(painted("a", (1, 0, 0))).input.endswith("a.png")
    with pytest.raises(DataError, match="nowhere cannot be read"):
        model.predict("nowhere")
    [record] = model.predict(["nowhere"])
    assert "nowhere cannot be read" in str(record.error)


def test_a_folder_is_expanded_in_a_list_and_refused_alone(painted) -> None:
    folder = Path(painted("a", (1, 0, 0))).parent
    painted("b", (0, 1, 0))
    assert len(Classifier(Colors()).predict([folder])) == 2
    for method in (Classifier(Colors()).predict, Classifier(Colors()).logits):
        with pytest.raises(DataError, match=r"is a folder, not an image\. .*pass a list: \['/"):
            method(folder)


def test_predict_takes_one_image_or_a_folder(model_folder: Path, painted) -> None:
    path = painted("a", (1, 0, 0))
    [one] = predict(path, model=model_folder)
    [array] = predict(np.asarray(read_image(Path(path))), model=model_folder)
    folder = Path(path).parent / "in"
    folder.mkdir()
    Path(path).rename(folder / "a.png")
    [walked] = predict(folder, model=model_folder)
    assert one.predictions == array.predictions == walked.predictions


def test_logits_are_rows_of_the_images_before_the_temperature(model_folder: Path, painted) -> None:
    paths = [painted(str(n), (n, 40 * n, 7)) for n in range(3)]
    model = load(model_folder)
    logits = model.logits(paths, batch_size=2)
    assert logits.shape == (3, 3)
    assert model.logits(paths[1]).shape == (3,)
    np.testing.assert_allclose(model.logits(paths[1]), logits[1], atol=1e-5)
    assert model.logits([]).shape == (0, 3)
    scores = {s.index: s.score for s in model.predict(paths[2]).predictions}
    softmax = np.exp(logits[2]) / np.exp(logits[2]).sum()
    np.testing.assert_allclose([scores[k] for k in range(3)], softmax, atol=1e-6)
    with pytest.raises(DataError, match="nowhere"):
        model.logits([paths[0], "nowhere"])


@pytest.mark.parametrize("value", [0, -1, 2.5, "2", None])
def test_numbers_that_are_no_positive_integers_are_refused(value: object, painted) -> None:
    model, path = Classifier(Colors()), painted("a", (1, 0, 0))
    for method, option in (
        (model.predict, "topk"),
        (model.predict, "batch_size"),
        (model.stream, "topk"),  # before the first prediction is requested
        (model.logits, "batch_size"),
    ):
        with pytest.raises(ConfigError, match=f"{option} = {value!r}: it is an integer of 1"):
            method([path], **{option: value})
    assert len(model.predict(path, topk=np.int64(2)).predictions) == 2


def test_what_is_neither_an_image_nor_a_list_is_refused() -> None:
    for images in (None, 5, io.StringIO("a.png\n")):
        with pytest.raises(DataError, match="is of type|is an open file"):
            Classifier(Colors()).predict(images)


def test_an_array_of_paths_is_several_images(painted) -> None:
    names = np.array([painted("a", (9, 0, 0)), painted("b", (0, 9, 0))])
    results = Classifier(Colors()).predict(names, topk=1)
    assert [r.predictions[0].label for r in results] == ["red", "green"]


def test_a_task_and_a_threshold_of_the_user_replace_those_of_the_model(model_folder, make_image):
    image = make_image()
    plain = load(model_folder).predict(image)
    assert plain.labels is None
    assert sum(c.score for c in plain.predictions) == pytest.approx(1)
    model = load(model_folder, task="multilabel", threshold=0.0)
    several = model.predict(image)
    assert len(several.labels) == 3
    logits = np.sort(model.logits(image))[::-1]
    assert [c.score for c in several.labels] == pytest.approx(1 / (1 + np.exp(-logits)), rel=1e-5)
    assert load(model_folder, task="multilabel", threshold=1.0).predict(image).labels == ()
    with pytest.raises(ConfigError, match="several labels an image, and deit_tiny"):
        load(model_folder, threshold=0.5)
    with pytest.raises(ConfigError, match="There is no task 'multi'"):
        load(model_folder, task="multi")
    with pytest.raises(ConfigError, match="it is a probability"):
        load(model_folder, task="multilabel", threshold=1.5)

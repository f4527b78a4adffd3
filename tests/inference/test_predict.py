"""Records from scores: order, how many classes, ties, answers that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deitctl.data.eval_transform import Pixels
from deitctl.inference.predict import Prediction, Scores, predict_stream
from deitctl.models.model_config import ModelConfig, Preprocessing


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
        self.asked: list[int] = []

    def scores(self, pixels: Pixels) -> Scores:
        self.asked.append(len(pixels))
        sums = pixels.reshape(len(pixels), 3, -1).sum(axis=2).astype(np.float32)
        with np.errstate(invalid="ignore"):
            return sums / sums.sum(axis=1, keepdims=True)


@pytest.fixture
def painted(tmp_path: Path) -> Callable[..., str]:
    from PIL import Image

    def paint(name: str, color: tuple[int, int, int]) -> str:
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{name}.png")
        return str(tmp_path / f"{name}.png")

    return paint


def ask(names: list[str], **options: object) -> list[Prediction]:
    settings = {"topk": 5, "batch_size": 2, **options}
    return list(predict_stream(Colors(), names, **settings))


def test_scores_are_the_classifiers_best_first_and_of_equal_ones_the_first_class_is_first(painted):
    names = [painted("a", (30, 10, 60)), painted("b", (50, 0, 50))]
    first, second = ask(names)
    assert [(g.index, g.label) for g in first.guesses] == [(2, "blue"), (0, "red"), (1, "green")]
    assert [g.score for g in first.guesses] == pytest.approx([0.6, 0.3, 0.1])
    assert [g.label for g in second.guesses] == ["red", "blue", "green"]


@pytest.mark.parametrize(("topk", "named"), [(1, 1), (2, 2), (3, 3), (4, 3), (10**9, 3)])
def test_more_classes_than_there_are_means_all(topk, named, painted):
    [record] = ask([painted("a", (1, 2, 3))], topk=topk)
    assert len(record.guesses) == named
    assert record.guesses[0].label == "blue"


def test_an_answer_that_is_no_number_is_an_error_in_its_place(painted):
    names = [
        painted("a", (1, 2, 3)),
        painted("black", (0, 0, 0)),
        painted("c", (3, 2, 1)),
    ]  # black is 0 / 0
    records = ask(names, batch_size=3)
    assert [r.input for r in records] == names
    assert [r.error is None for r in records] == [True, False, True]
    assert "not numbers" in str(records[1].error)
    assert [r.guesses[0].label for r in records if r.guesses] == ["blue", "red"]


def test_images_of_several_inputs_are_asked_about_together(painted):
    names = [painted(str(n), (n + 1, 0, 0)) for n in range(5)]
    classifier = Colors()
    list(predict_stream(classifier, [*names[:2], "/nowhere.png", *names[2:]], topk=1, batch_size=3))
    assert classifier.asked == [2, 3]


def test_a_prediction_carries_its_image_only_where_it_was_asked_for(painted):
    name = painted("a", (7, 8, 9))
    assert ask([name])[0].pixels is None
    [record] = ask([name], keep_pixels=True)
    assert record.pixels is not None
    assert record.pixels.shape == (3, 8, 8)
    assert record.pixels[:, 0, 0].tolist() == [7, 8, 9]
    assert record.to_dict() == ask([name])[0].to_dict()
    assert record == ask([name])[0]


def test_the_record_is_the_contracts(painted):
    name = painted("a", (0, 0, 5))
    [record, missing] = ask([name, "/nowhere.png"], topk=1)
    assert record.to_dict() == {
        "input": name,
        "predictions": [{"index": 2, "label": "blue", "score": 1.0}],
        "error": None,
    }
    assert missing.to_dict() == {
        "input": "/nowhere.png",
        "predictions": [],
        "error": "/nowhere.png cannot be read: No such file or directory.",
    }

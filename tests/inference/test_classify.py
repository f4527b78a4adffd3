from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deitctl.errors import ConfigError, ModelError
from deitctl.events import SilentReporter
from deitctl.inference.classify import predict
from deitctl.models.checkpoint_io import save_model
from deitctl.models.factory import build_model
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.models.model_config import ModelConfig


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


def test_one_record_an_input_in_order_whatever_the_batch_size(
    model_folder: Path, image_folder: Callable[..., Path]
) -> None:
    root = image_folder({"in": 5})
    (root / "in" / "2.png").write_bytes(b"no image")
    paths = [str(root / "in" / f"{i}.png") for i in (4, 2, 0, 1, 3)] + [str(root / "gone.jpg")]
    for batch_size in (1, 2, 16):
        records = list(predict(paths, model=str(model_folder), batch_size=batch_size, topk=9))
        assert [r.input for r in records] == paths
        assert [r.error is None for r in records] == [True, False, True, True, True, False]
        assert "is not an image" in str(records[1].error)
        assert all(len(r.guesses) == 3 for r in records if r.error is None)
        assert all(
            abs(sum(g.score for g in r.guesses) - 1) < 1e-5 for r in records if r.error is None
        )
        assert {g.label for g in records[0].guesses} == {"ant", "bee", "cow"}


def test_folders_are_walked_and_dashes_read_from_stdin(
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
    assert listed[0].guesses[0].score == pytest.approx(walked[0].guesses[0].score)


def test_each_head_answers(model_folder: Path, image_folder: Callable[..., Path]) -> None:
    image = str(image_folder({"in": 1}) / "in" / "0.png")
    scores = {}
    for head in ("cls", "dist", "avg-probs"):
        [record] = predict([image], model=str(model_folder), head=head)
        scores[head] = {g.label: g.score for g in record.guesses}
    for label, score in scores["avg-probs"].items():
        assert score == pytest.approx((scores["cls"][label] + scores["dist"][label]) / 2, abs=1e-6)


def test_a_wrong_name_fails_before_the_first_record() -> None:
    with pytest.raises(ModelError, match="Did you mean 'deit_tiny'"):
        predict(["x.jpg"], model="deit_tinny")
    with pytest.raises(ConfigError):
        predict(["x.jpg"], topk=0)


def test_an_empty_folder_is_a_record_and_not_the_end(
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
        scores = {g.label: g.score for g in record.guesses}
        return scores["ant"] / scores["bee"]

    assert odds("plain", "auto") != pytest.approx(1, rel=1e-3)
    assert odds("warm", "auto") == pytest.approx(odds("plain", "auto") ** 0.25, rel=1e-4)
    if rule == "dist":
        assert odds("warm", "cls") == odds("plain", "cls")

"""An evaluation from the outside: names, several models and protocols, temperatures, labels by another list."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deitctl.data.classes import match_classes
from deitctl.errors import ConfigError, DataError, DeitctlError, ModelError
from deitctl.evaluation.score_models import evaluate_model, evaluate_models
from deitctl.events import SilentReporter
from deitctl.models.catalog import find, load_imagenet_classes
from deitctl.models.checkpoint_io import load_model_config, load_tensors, save_model, save_tensors
from deitctl.models.factory import build_model
from deitctl.models.introspect import describe_layers, pin_img_size


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a DeiT-tiny at 32 pixels with random weights that know the classes; large ones make it too sure."""

    def make(
        name: str, classes: tuple[str, ...] = ("a", "b"), alias: str = "deit_tiny", seed: int = 0
    ) -> Path:
        torch.manual_seed(seed)
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
        state = {
            k: 20 * v if k.startswith("head") else v for k, v in built.model.state_dict().items()
        }
        state |= {
            k.replace("head.", "head_dist."): v / 2
            for k, v in state.items()
            if alias.endswith("distilled") and k.startswith("head.")
        }
        save_model(
            tmp_path / name,
            state,
            pin_img_size(built.model, built.model_config),
            describe_layers(built.model),
        )
        return tmp_path / name

    return make


@pytest.fixture
def images(image_folder: Callable[..., Path]) -> Path:
    return image_folder({"a": 12, "b": 12})


def test_the_record_has_what_the_contract_names(folder, images) -> None:
    record = evaluate_model(str(images), model=str(folder("m")), workers=0).to_dict()
    assert {
        "model",
        "data",
        "images",
        "unreadable",
        "top1",
        "top5",
        "loss",
        "ece",
        "per_class",
        "heads",
        "images_per_second",
    } <= set(record)
    json.dumps(record, allow_nan=False)
    assert (record["images"], record["heads"], record["top5"], record["temperature"]) == (
        24,
        None,
        100.0,
        1.0,
    )
    assert {k: v["images"] for k, v in record["per_class"].items()} == {"a": 12, "b": 12}
    assert record["top1"] == pytest.approx(sum(v["top1"] for v in record["per_class"].values()) / 2)
    assert record["intervals"]["top1"][0] <= record["top1"] <= record["intervals"]["top1"][1]
    assert sum(b["images"] for b in record["reliability"]) == 24
    wrong = round(24 * (1 - record["top1"] / 100))
    assert sum(c["images"] for c in record["confusions"]) == wrong


def test_several_models_and_protocols_in_one_pass_are_what_each_is_alone(
    folder, images, reporter
) -> None:
    models = [str(folder("one")), str(folder("two", seed=1))]
    found = evaluate_models(
        str(images), models=models, protocols=["native", "hf"], workers=0, batch_size=5
    )
    assert [r.name for r in found.results] == ["one, native", "one, hf", "two, native", "two, hf"]
    for result in found.results:
        alone = evaluate_model(str(images), model=result.model, protocol=result.protocol, workers=0)
        assert torch.equal(alone.scores.predictions, result.scores.predictions)
        assert alone.scores.loss == pytest.approx(result.scores.loss, rel=1e-6)
    assert [(d.a, d.b) for d in found.differences] == [
        ("one, native", other) for other in ("one, hf", "two, native", "two, hf")
    ]
    record = found.to_dict()
    assert [e["top1"] for e in record["evaluations"]] == [r.scores.top1 for r in found.results]
    first, third = (r.scores.correct for r in found.results[::2])
    assert record["differences"][1]["only_a"] == int((first & ~third).sum())


def test_models_that_know_different_classes_are_compared_among_the_datas(folder, images) -> None:
    models = [str(folder("few")), str(folder("many", ("c", "b", "a", "d"), seed=1))]
    found = evaluate_models(str(images), models=models, workers=0)
    (difference,) = found.differences
    few, many = (r.scores for r in found.results)
    assert difference.among_classes
    assert difference.only_b == int(((many.among == many.labels) & ~few.correct).sum())
    assert difference.difference == pytest.approx(few.top1 - many.top1_among)


def test_names_say_what_differs(folder, images) -> None:
    model = str(folder("m"))
    by_protocol = evaluate_models(
        str(images), models=[model, model], protocols=["deit", "hf", "deit"], workers=0
    )
    assert [r.name for r in by_protocol.results] == ["deit", "hf"]  # said twice is said once
    (only,) = evaluate_models(str(images), models=[model], workers=0).results
    assert only.name == Path(model).name


@pytest.fixture
def mostly_right(folder, images) -> Path:
    """Images that are called what a distilled model says, except every fourth."""
    said = evaluate_model(
        str(images), model=str(folder("m", alias="deit_tiny_distilled")), workers=0
    )
    for n, record in enumerate(list(said.records())):
        right = record["prediction"]["label"]
        label = right if n % 4 else "ab".replace(right, "")
        source = Path(record["input"])
        source.rename(images / label / f"{record['label']}-{source.name}")
    return images


def test_a_temperature_is_kept_with_the_model_and_used_again(
    folder, mostly_right, reporter
) -> None:
    model, images = folder("m", alias="deit_tiny_distilled"), mostly_right
    before = evaluate_model(
        str(images), model=str(model), workers=0, save_temperature=True, reporter=reporter
    )
    assert before.calibration is not None
    model_config = load_model_config(model)
    assert model_config.temperatures == pytest.approx(before.calibration.temperatures)
    assert before.intervals["avg-logits"] == before.intervals["top1"]
    assert set(before.intervals) == {
        "top1",
        "top5",
        "loss",
        "cls",
        "dist",
        "avg-logits",
        "avg-probs",
    }
    assert set(model_config.temperatures) == {"cls", "dist", "avg-logits", "avg-probs"}
    assert "Kept with the model: temperature" in reporter.notes[-1]
    after = evaluate_model(str(images), model=str(model), workers=0)
    assert after.contender.temperature == before.calibration.temperature != 1.0
    assert torch.equal(after.scores.predictions, before.scores.predictions)
    assert after.scores.loss < before.scores.loss
    assert after.calibration is not None
    assert after.calibration.temperature == pytest.approx(before.calibration.temperature, rel=1e-4)
    by_head = evaluate_model(str(images), model=str(model), head="dist", workers=0)
    assert by_head.contender.temperature == model_config.temperatures["dist"]


def test_a_temperature_needs_one_model_in_a_folder(folder, images, tmp_path) -> None:
    model = folder("m")
    with pytest.raises(ConfigError, match="one model under its own protocol"):
        evaluate_models(str(images), models=[str(model), "x"], save_temperature=True)
    with pytest.raises(ConfigError, match="one model under its own protocol"):
        evaluate_models(
            str(images), models=[str(model)], protocols=["deit", "hf"], save_temperature=True
        )
    with pytest.raises(ConfigError, match="deitctl export .*model.pth --to timm"):
        evaluate_models(str(images), models=[str(model / "model.pth")], save_temperature=True)


def test_where_no_temperature_fits_nothing_is_written_and_nothing_is_lost(
    folder, image_folder, reporter
) -> None:
    model = folder("m")
    before = (model / "config.json").read_text()
    one = image_folder({"a": 1, "b": 0}, "one")
    found = evaluate_model(
        str(one), model=str(model), workers=0, save_temperature=True, reporter=reporter
    )
    assert found.scores.num_images == 1
    assert "No temperature fits" in reporter.warnings[-1]
    assert (model / "config.json").read_text() == before


def test_a_temperature_is_of_the_models_own_input_size_and_protocol(folder, images) -> None:
    model = str(folder("m"))
    with pytest.raises(ConfigError, match="not for 48 pixels"):
        evaluate_models(str(images), models=[model], img_size=48, save_temperature=True)
    with pytest.raises(ConfigError, match="its own protocol"):
        evaluate_models(str(images), models=[model], protocols=["hf"], save_temperature=True)


def test_a_model_that_answers_no_numbers_is_refused_by_name_of_the_image(folder, images) -> None:
    model = folder("m")
    state = load_tensors(model / "model.safetensors")
    save_tensors(
        model / "model.safetensors", state | {"head.weight": 3e38 * state["head.weight"].sign()}
    )
    with pytest.raises(ModelError, match=r"0\.png with values that are not numbers"):
        evaluate_model(str(images), model=str(model), workers=0)


def test_equally_many_other_classes_are_other_classes(folder, images) -> None:
    models = [str(folder("one", ("a", "b", "c"))), str(folder("two", ("a", "b", "d")))]
    (difference,) = evaluate_models(str(images), models=models, workers=0).differences
    assert difference.among_classes
    same = [str(folder("abc", ("a", "b", "c"))), str(folder("cba", ("c", "b", "a")))]
    (difference,) = evaluate_models(str(images), models=same, workers=0).differences
    assert not difference.among_classes


def test_weights_are_for_one_model(folder, images) -> None:
    with pytest.raises(ConfigError, match="--weights is for one model"):
        evaluate_models(str(images), models=["deit_tiny", "deit_small"], weights="x.safetensors")


def test_what_cannot_be_written_or_named_is_said_before_the_work(folder, images, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "out.jsonl", images):
        with pytest.raises(DeitctlError, match="Cannot write .* with --predictions"):
            evaluate_models(str(images), models=["no such model"], predictions=str(path))
    with pytest.raises(DeitctlError, match="Name another folder with --figures"):
        evaluate_models(str(images), models=["no such model"], figures=str(tmp_path / "file"))
    for report in ("cat.jpg", "page", "rep.pdf"):
        with pytest.raises(ConfigError, match="Name it FILE.html"):
            evaluate_models(str(images), models=["no such model"], report=report)
    with pytest.raises(ConfigError, match="Name two files"):
        evaluate_models(str(images), models=["x"], report="a.html", predictions="./a.html")
    with pytest.raises(ConfigError, match="No protocol is named"):
        evaluate_models(str(images), models=["no such model"], protocols=[])


def test_predictions_are_one_line_an_image_and_model(folder, images, tmp_path) -> None:
    (images / "a" / "0.png").write_text("no")
    models = [str(folder("one")), str(folder("two", seed=1))]
    evaluate_models(str(images), models=models, workers=0, predictions=str(tmp_path / "out.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 24
    assert [r["model"] for r in rows] == [models[0]] * 24 + [models[1]] * 24
    assert [r["error"] is not None for r in rows[:24]] == [False] * 23 + [True]
    assert all(
        (r["prediction"]["label"] == r["label"]) == r["correct"] for r in rows if r["error"] is None
    )


@pytest.fixture
def imagenet_model(tmp_path: Path, deit) -> Path:
    """Weights of a DeiT that knows ImageNet's thousand classes."""
    save_tensors(
        tmp_path / "imagenet.safetensors", deit("deit_tiny", classes=1000, img_size=32).state_dict()
    )
    return tmp_path / "imagenet.safetensors"


def test_folders_called_0_to_999_are_imagenets_numbers(
    imagenet_model, image_folder, reporter
) -> None:
    root = image_folder({str(n): 1 for n in range(1000)}, "v2")
    found = evaluate_model(str(root), model=str(imagenet_model), workers=0, reporter=reporter)
    assert found.match.kind == "numbers"
    assert sorted(found.scores.targets.tolist()) == list(range(1000))
    assert all(
        found.source.name(i).split("/")[-2] == str(t)
        for i, t in enumerate(found.scores.targets.tolist())
    )
    assert any("ImageNetV2" in note for note in reporter.notes)
    model_config = find("deit_tiny").to_model_config()
    turned = replace(
        model_config,
        class_names=model_config.class_names[::-1],
        descriptions=model_config.descriptions[::-1],
    )
    assert match_classes(turned, [str(n) for n in range(1000)]).rows[:2] == (
        999,
        998,
    )  # numbers are ImageNet's
    assert (
        match_classes(model_config, [str(n) for n in range(999)]) is None
    )  # one is missing: not that set
    assert (
        match_classes(model_config, [f"{n:03d}" for n in range(1000)]) is None
    )  # another numbering that went around


def test_a_part_of_imagenetv2_is_told_why_it_is_not_taken_for_it(
    imagenet_model, image_folder
) -> None:
    with pytest.raises(DataError, match="only where all of 0 to 999 have images"):
        evaluate_model(
            str(image_folder({"7": 1, "999": 1}, "v2")), model=str(imagenet_model), workers=0
        )
    with pytest.raises(DataError) as digits:
        evaluate_model("digits", model=str(imagenet_model), workers=0)
    assert "ImageNetV2" not in str(digits.value)


def test_a_part_of_imagenet_is_scored_among_its_classes_too(imagenet_model, image_folder) -> None:
    ids = load_imagenet_classes()[0]
    root = image_folder({ids[7]: 2, ids[400]: 2}, "imagenet-a")
    record = evaluate_model(str(root), model=str(imagenet_model), workers=0).to_dict()
    assert (record["classes"], record["images"]) == (2, 4)
    assert record["top1_among_classes"] >= record["top1"]
    assert record["confusions"][0]["answer"] == "a class that the data does not have"


def test_real_labels_are_scored_by_the_number_in_the_name(
    imagenet_model, image_folder, tmp_path
) -> None:
    root = image_folder({load_imagenet_classes()[0][7]: 2}, "val")
    for n in (0, 1):
        (root / load_imagenet_classes()[0][7] / f"{n}.png").rename(
            root / load_imagenet_classes()[0][7] / f"ILSVRC2012_val_0000000{n + 1}.png"
        )
    plain = evaluate_model(str(root), model=str(imagenet_model), workers=0)
    said = plain.scores.best.tolist()
    (tmp_path / "real.json").write_text(json.dumps([[said[0][0]], [said[1][4]]]))
    real = evaluate_model(
        str(root), model=str(imagenet_model), workers=0, real_labels=str(tmp_path / "real.json")
    ).real
    assert real == (2, 50.0, 100.0)
    assert plain.real is None
    with pytest.raises(DataError, match="has no ReaL labels"):
        evaluate_model("digits", model="no such model", real_labels=str(tmp_path / "real.json"))

"""Several models and protocols, saved temperatures, subsets of ImageNet and ReaL labels, through `evaluate_models`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from deitctl.api import evaluate
from deitctl.cli.app import app
from deitctl.data.classes import match_classes
from deitctl.data.run_data import write_split
from deitctl.data.training_data import Source, open_for_training
from deitctl.errors import ConfigError, DataError, DeitctlError, ModelError
from deitctl.evaluation.evaluate import evaluate_models
from deitctl.evaluation.result import OUTSIDE_NAME, RealLabelScore
from deitctl.events import SilentReporter
from deitctl.models.build import build_model
from deitctl.models.catalog import find, load_imagenet_classes
from deitctl.models.checkpoint_io import load_model_config, load_tensors, save_model, save_tensors
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.records import to_object


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a DeiT-tiny at 32 pixels with random weights; large ones in the head make it overconfident."""

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
    result = evaluate(str(images), model=str(folder("m")), workers=0)
    record = to_object(result)
    assert {
        "model",
        "data",
        "split",
        "num_images",
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
    assert (record["num_images"], record["heads"], record["top5"], record["temperature"]) == (
        24,
        None,
        None,
        1.0,
    )
    assert {k: v["num_images"] for k, v in record["per_class"].items()} == {"a": 12, "b": 12}
    assert record["top1"] == pytest.approx(
        sum(v["recall"] for v in record["per_class"].values()) / 2
    )
    assert record["top1_interval"]["lower"] <= record["top1"] <= record["top1_interval"]["upper"]
    assert sum(b["num_images"] for b in record["reliability"]) == 24
    wrong = round(24 * (1 - record["top1"] / 100))
    assert sum(c["num_images"] for c in record["confusions"]) == wrong


def test_several_models_and_protocols_in_one_pass_are_what_each_is_alone(
    folder, images, reporter
) -> None:
    models = [str(folder("one")), str(folder("two", seed=1))]
    results = evaluate_models(
        str(images), models=models, protocols=["native", "hf"], workers=0, batch_size=5
    )
    assert [r.name for r in results.evaluations] == [
        "one, native",
        "one, hf",
        "two, native",
        "two, hf",
    ]
    for result in results.evaluations:
        alone = evaluate(str(images), model=result.model, protocol=result.protocol, workers=0)
        assert torch.equal(alone.preds, result.preds)
        assert alone.loss == pytest.approx(result.loss, rel=1e-6)
    assert [(d.a, d.b) for d in results.comparisons] == [
        ("one, native", other) for other in ("one, hf", "two, native", "two, hf")
    ]
    record = to_object(results)
    assert [e["top1"] for e in record["evaluations"]] == [r.top1 for r in results.evaluations]
    first, third = (r.correct for r in results.evaluations[::2])
    assert record["comparisons"][1]["only_a_correct"] == int((first & ~third).sum())


def test_models_with_different_classes_are_compared_among_the_datas_classes(folder, images) -> None:
    models = [str(folder("few")), str(folder("many", ("c", "b", "a", "d"), seed=1))]
    results = evaluate_models(str(images), models=models, workers=0)
    (comparison,) = results.comparisons
    few, many = (r for r in results.evaluations)
    assert comparison.among_classes
    assert comparison.only_b_correct == int(
        ((many.preds_among_classes == many.labels) & ~few.correct).sum()
    )
    assert comparison.top1_difference == pytest.approx(few.top1 - many.top1_among_classes)


def test_names_say_what_differs(folder, images) -> None:
    model = str(folder("m"))
    by_protocol = evaluate_models(
        str(images), models=[model, model], protocols=["deit", "hf", "deit"], workers=0
    )
    # a repeated protocol counts once
    assert [r.name for r in by_protocol.evaluations] == ["deit", "hf"]
    (only,) = evaluate_models(str(images), models=[model], workers=0).evaluations
    assert only.name == Path(model).name


@pytest.fixture
def mostly_right(folder, images) -> Path:
    """Images labeled as a distilled model predicts them, except every fourth."""
    result = evaluate(str(images), model=str(folder("m", alias="deit_tiny_distilled")), workers=0)
    for n, record in enumerate(list(result.iter_images())):
        predicted = record.predicted.label
        label = predicted if n % 4 else "ab".replace(predicted, "")
        path = Path(record.input)
        path.rename(images / label / f"{record.label}-{path.name}")
    return images


def test_a_saved_temperature_is_stored_in_the_model_folder_and_used_again(
    folder, mostly_right, reporter
) -> None:
    model, images = folder("m", alias="deit_tiny_distilled"), mostly_right
    before = evaluate(
        str(images), model=str(model), workers=0, save_temperature=True, reporter=reporter
    )
    assert before.calibration is not None
    model_config = load_model_config(model)
    assert model_config.temperatures == pytest.approx(before.calibration.temperatures)
    assert before.head_intervals is not None
    assert before.head_intervals["avg-logits"] == before.top1_interval
    assert set(before.head_intervals) == {"cls", "dist", "avg-logits", "avg-probs"}
    assert set(model_config.temperatures) == {"cls", "dist", "avg-logits", "avg-probs"}
    assert "temperature" in reporter.notes[-1]
    assert "config.json" in reporter.notes[-1]
    after = evaluate(str(images), model=str(model), workers=0)
    assert after.temperature == before.calibration.temperature != 1.0
    assert torch.equal(after.preds, before.preds)
    assert after.loss < before.loss
    assert after.calibration is not None
    assert after.calibration.temperature == pytest.approx(before.calibration.temperature, rel=1e-4)
    by_head = evaluate(str(images), model=str(model), head="dist", workers=0)
    assert by_head.temperature == model_config.temperatures["dist"]


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


def test_where_no_temperature_fits_none_is_stored(folder, image_folder, reporter) -> None:
    model = folder("m")
    before = (model / "config.json").read_text()
    one = image_folder({"a": 1, "b": 0}, "one")
    result = evaluate(
        str(one), model=str(model), workers=0, save_temperature=True, reporter=reporter
    )
    assert result.num_images == 1
    assert "No temperature fits" in reporter.warnings[-1]
    assert (model / "config.json").read_text() == before


def test_a_temperature_is_of_the_models_own_input_size_and_protocol(folder, images) -> None:
    model = str(folder("m"))
    with pytest.raises(ConfigError, match="32 pixels, not for 48"):
        evaluate_models(str(images), models=[model], img_size=48, save_temperature=True)
    with pytest.raises(ConfigError, match="its own protocol"):
        evaluate_models(str(images), models=[model], protocols=["hf"], save_temperature=True)


def test_logits_that_are_not_finite_are_an_error_that_names_the_image(folder, images) -> None:
    model = folder("m")
    state = load_tensors(model / "model.safetensors")
    save_tensors(
        model / "model.safetensors", state | {"head.weight": 3e38 * state["head.weight"].sign()}
    )
    with pytest.raises(ModelError, match=r"logits for .*0\.png are not finite"):
        evaluate(str(images), model=str(model), workers=0)


def test_as_many_but_other_classes_are_different_classes(folder, images) -> None:
    models = [str(folder("one", ("a", "b", "c"))), str(folder("two", ("a", "b", "d")))]
    (comparison,) = evaluate_models(str(images), models=models, workers=0).comparisons
    assert comparison.among_classes
    same = [str(folder("abc", ("a", "b", "c"))), str(folder("cba", ("c", "b", "a")))]
    (comparison,) = evaluate_models(str(images), models=same, workers=0).comparisons
    assert not comparison.among_classes


def test_weights_are_for_one_model(folder, images) -> None:
    with pytest.raises(ConfigError, match="--weights is for one model"):
        evaluate_models(str(images), models=["deit_tiny", "deit_small"], weights="x.safetensors")


def test_a_predictions_file_and_values_out_of_range_are_refused_before_the_work(
    folder, images, tmp_path
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "out.jsonl", images):
        with pytest.raises(DeitctlError, match="Cannot write .* with --predictions"):
            evaluate_models(str(images), models=["no such model"], predictions=str(path))
    with pytest.raises(ConfigError, match="No protocol is named"):
        evaluate_models(str(images), models=["no such model"], protocols=[])
    for batch_size in (0, -1, 2.5):
        with pytest.raises(ConfigError, match="batch_size = .* integer of 1 or more"):
            evaluate_models(str(images), models=["no such model"], batch_size=batch_size)


def test_the_printed_object_is_that_of_the_function_for_its_arguments(folder, images) -> None:
    """One model: its keys at the top; several: `evaluations`, which one model does not have."""
    models = [str(folder("one")), str(folder("two", seed=1))]

    def run(*arguments: str) -> dict[str, Any]:
        command = ["eval", str(images), "--workers", "0", "--format", "json", *arguments]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    one = run("--model", models[0])
    several = run("--model", models[0], "--model", models[1])
    assert (one["schema_version"], several["schema_version"]) == (1, 1)
    assert "evaluations" not in one
    assert set(several) == {"schema_version", "data", "evaluations", "comparisons"}
    assert several["evaluations"][0].keys() == one.keys() - {"schema_version"}
    assert several["evaluations"][0]["top1"] == one["top1"]


def test_predictions_are_one_line_per_image_and_model(folder, images, tmp_path) -> None:
    (images / "a" / "0.png").write_text("no")
    models = [str(folder("one")), str(folder("two", seed=1))]
    evaluate_models(str(images), models=models, workers=0, predictions=str(tmp_path / "out.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 24
    assert [r["model"] for r in rows] == [models[0]] * 24 + [models[1]] * 24
    assert [r["error"] is not None for r in rows[:24]] == [False] * 23 + [True]
    assert all(
        (r["predicted"]["label"] == r["label"]) == r["correct"] for r in rows if r["error"] is None
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
    result = evaluate(str(root), model=str(imagenet_model), workers=0, reporter=reporter)
    assert result.subject.match.kind == "numbers"
    assert sorted(result.targets.tolist()) == list(range(1000))
    dataset = result.subject.dataset
    assert all(
        dataset.name(i).split("/")[-2] == str(t) for i, t in enumerate(result.targets.tolist())
    )
    assert any("ImageNetV2" in note for note in reporter.notes)
    model_config = find("deit_tiny").to_model_config()
    turned = replace(
        model_config,
        class_names=model_config.class_names[::-1],
        descriptions=model_config.descriptions[::-1],
    )
    # numbers are ImageNet's
    assert match_classes(turned, [str(n) for n in range(1000)]).rows[:2] == (999, 998)
    # one is missing: not that set
    assert match_classes(model_config, [str(n) for n in range(999)]) is None
    # another numbering that went around
    assert match_classes(model_config, [f"{n:03d}" for n in range(1000)]) is None


def test_a_part_of_imagenetv2_is_refused_with_the_reason(imagenet_model, image_folder) -> None:
    with pytest.raises(DataError, match="only if all of 0 to 999 have images"):
        evaluate(str(image_folder({"7": 1, "999": 1}, "v2")), model=str(imagenet_model), workers=0)
    with pytest.raises(DataError) as digits:
        evaluate("digits", model=str(imagenet_model), workers=0)
    assert "ImageNetV2" not in str(digits.value)


def test_a_part_of_imagenet_is_scored_among_its_classes_too(imagenet_model, image_folder) -> None:
    ids = load_imagenet_classes()[0]
    root = image_folder({ids[7]: 2, ids[400]: 2}, "imagenet-a")
    record = evaluate(str(root), model=str(imagenet_model), workers=0)
    record = to_object(record)
    assert (record["num_classes"], record["num_images"]) == (2, 4)
    assert record["top1_among_classes"] >= record["top1"]
    assert record["confusions"][0]["predicted"] == OUTSIDE_NAME


def test_real_labels_are_scored_by_the_number_in_the_name(
    imagenet_model, image_folder, tmp_path
) -> None:
    root = image_folder({load_imagenet_classes()[0][7]: 2}, "val")
    for n in (0, 1):
        (root / load_imagenet_classes()[0][7] / f"{n}.png").rename(
            root / load_imagenet_classes()[0][7] / f"ILSVRC2012_val_0000000{n + 1}.png"
        )
    plain = evaluate(str(root), model=str(imagenet_model), workers=0)
    preds = plain.topk_preds.tolist()
    (tmp_path / "real.json").write_text(json.dumps([[preds[0][0]], [preds[1][4]]]))
    real = evaluate(
        str(root), model=str(imagenet_model), workers=0, real_labels=str(tmp_path / "real.json")
    ).real_labels
    assert real == RealLabelScore(2, 50.0, 100.0)
    assert plain.real_labels is None
    with pytest.raises(DataError, match="has no ReaL labels"):
        evaluate("digits", model="no such model", real_labels=str(tmp_path / "real.json"))


def test_a_file_of_no_run_with_the_datas_classes_may_have_been_trained_on_them(
    folder, images, reporter
) -> None:
    own, other = folder("m"), folder("other", ("a", "b", "c"))
    for model in (own, other):
        result = evaluate(str(images), model=str(model), workers=0, reporter=reporter)
        assert (result.split, result.num_train_images) == ("all", None)
    (note,) = reporter.notes
    assert f"Whether {own} was trained on some of these images is not known" in note


def test_a_run_alone_is_scored_on_the_images_that_it_held_out(folder, images, reporter) -> None:
    run = folder("m")
    (run / "run.toml").write_text(f'data = "{images}"\n')
    train, val = open_for_training(Source(str(images)), reporter=reporter)
    write_split(run, train, val)
    for arguments in ({"data": str(run)}, {"model": str(run)}, {"data": images, "model": run}):
        result = evaluate(**arguments, workers=0, reporter=reporter)
        assert (result.model, result.data) == (str(run), str(images))
        assert (result.split, result.num_images) == ("val", len(val.labels))
        assert result.num_train_images == 0
    everything = evaluate(str(run), split="all", workers=0, reporter=reporter)
    assert (everything.num_images, everything.num_train_images) == (24, len(train.labels))
    shown = CliRunner().invoke(app, ["eval", str(run), "--workers", "0", "--format", "table"])
    assert f"{len(val.labels)} images of {images} (val, held out of training)" in shown.output

"""`verify` runs an export again: beside its model, beside another, or on its golden sample alone."""

from __future__ import annotations

import json
import shutil

import onnx
import pytest
import torch

from deitctl.errors import ConfigError, ExportError, ModelError
from deitctl.exporters.export import export
from deitctl.exporters.golden import GOLDEN
from deitctl.exporters.verify import verify_export
from deitctl.models.checkpoint_io import save_model
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.records import to_object


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory):
    """A run folder with its exports inside."""
    run = shutil.copytree(saved, tmp_path_factory.mktemp("verify") / "seven")
    for options in (
        {"to": "onnx"},
        {"to": "onnx", "quantize": "int8"},
        {"to": "torch"},
        {"to": "timm"},
    ):
        export(str(run), num_images=2, **options)
    return run


@pytest.fixture
def run(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "seven")


@pytest.mark.parametrize(
    ("name", "kind", "quantize"),
    [
        ("seven.onnx", "onnx", None),
        ("seven-int8.onnx", "onnx", "int8"),
        ("seven.pt2", "torch", None),
        ("seven-timm", "timm", None),
    ],
)
def test_an_export_in_its_run_is_compared_with_the_run(name, kind, quantize, run):
    result = verify_export(str(run / "export" / name), num_images=4)
    record = json.loads(json.dumps(to_object(result)))
    assert (record["format"], record["quantize"], record["num_verified"]) == (kind, quantize, 4)
    assert record["golden_diff"] <= record["golden_tolerance"]
    assert record["top1_agreement"] == 100
    assert record["model"] is not None


def test_elsewhere_the_golden_sample_is_looked_at_alone(run, tmp_path):
    moved = shutil.copy(run / "export" / "seven.onnx", tmp_path / "m.onnx")
    record = to_object(verify_export(str(moved)))
    assert (record["model"], record["num_verified"], record["max_abs_diff"]) == (None, 0, None)
    assert record["golden_diff"] < 1e-3


def test_a_folder_that_was_moved_is_not_its_own_model(run, tmp_path):
    moved = shutil.copytree(run / "export" / "seven-timm", tmp_path / "m")
    record = to_object(verify_export(str(moved)))
    assert (record["model"], record["num_verified"]) == (None, 0)


def test_a_run_is_informed_which_of_its_exports_can_be_named(run):
    with pytest.raises(ExportError, match=r"Name one of these: .*seven-int8.onnx"):
        verify_export(str(run))


def test_images_without_a_model_are_refused_not_ignored(run, tmp_path, image_folder):
    moved = shutil.copy(run / "export" / "seven.onnx", tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="no model to compare.*--model"):
        verify_export(str(moved), verify_data=str(image_folder({"a": 2})))


def test_a_model_that_is_named_is_compared_on_the_images_that_are_named(
    run, tmp_path, image_folder
):
    moved = shutil.copy(run / "export" / "seven.onnx", tmp_path / "m.onnx")
    root = image_folder({"a": 3}) / "a"
    record = to_object(verify_export(str(moved), verify_data=str(root), model=str(run)))
    assert (record["model"], record["num_verified"]) == (str(run), 3)


@pytest.mark.parametrize("name", ["seven.onnx", "seven-timm"])
def test_a_model_that_was_trained_on_is_another_model(name, run):
    from deitctl.events import SilentReporter
    from deitctl.models.factory import load_model

    loaded = load_model(str(run), reporter=SilentReporter())
    with torch.no_grad():
        loaded.model.head.weight[0, 0] += 0.5
    save_model(
        run,
        loaded.model.state_dict(),
        pin_img_size(loaded.model, loaded.model_config),
        describe_layers(loaded.model),
    )
    with pytest.raises(ExportError, match="disagrees with the model"):
        verify_export(str(run / "export" / name), num_images=4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["pretrained_cfg"].update(mean=[0.5, 0.5, 0.5]), "mean differ"),
        (lambda c: c["pretrained_cfg"].update(crop_pct=0.5), "resize_to, crop_pct differ"),
        (lambda c: c.update(label_names=list("abcdefghij")), "class_names differ"),
        (lambda c: c["deitctl"].update(temperatures={"avg-logits": 2.0}), "temperature differ"),
    ],
)
def test_another_preprocessing_is_named(change, says, run):
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=f"was not exported from .*: .*{says}"):
        verify_export(str(run / "export" / "seven.onnx"), num_images=2)


def test_weights_that_were_damaged_on_the_way_fail_the_golden_sample(run, tmp_path):
    proto = onnx.load(run / "export" / "seven.onnx")
    (weight,) = (w for w in proto.graph.initializer if w.name == "model.head.weight")
    weight.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight)[::-1].copy(), weight.name)
    )
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="fails its golden sample"):
        verify_export(str(tmp_path / "m.onnx"))


@pytest.mark.parametrize("value", [None, "no json", '{"tile": "AA=="}'])
def test_a_file_without_a_golden_sample_is_one_line(value, run, tmp_path):
    proto = onnx.load(run / "export" / "seven.onnx")
    (entry,) = (e for e in proto.metadata_props if e.key == GOLDEN)
    if value is None:
        proto.metadata_props.remove(entry)
    else:
        entry.value = value
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="golden sample.*Export it again"):
        verify_export(str(tmp_path / "m.onnx"))


def test_what_is_no_export_is_one_line(run, tmp_path):
    (tmp_path / "notes.onnx").write_text("dear diary")
    (tmp_path / "empty").mkdir()
    for path in ("notes.onnx", "empty", "absent.onnx"):
        with pytest.raises(ExportError):
            verify_export(str(tmp_path / path))
    with pytest.raises(ExportError, match="is no export"):
        verify_export(str(run))
    with pytest.raises(ModelError):
        verify_export(str(run / "export" / "seven.onnx"), model="no_such_model")


def test_accuracy_is_that_of_labels_that_the_model_has(run, image_folder):
    """Of four black images one has the label that the model gives to black."""
    file = str(run / "export" / "seven.onnx")
    root = image_folder({"a": 2})
    assert verify_export(file, verify_data=str(root)).top1 is None
    from PIL import Image

    from deitctl.inference.classifier import predict

    Image.new("RGB", (32, 32)).save(root / "black.png")
    (black,) = predict([str(root / "black.png")], model=str(run))
    first = black.predictions[0].label
    labels = [first, *(str((int(first) + i) % 10) for i in (1, 2, 3))]
    for number, label in enumerate(labels):
        (root / "of" / label).mkdir(parents=True)
        shutil.copy(root / "black.png", root / "of" / label / f"{number}.png")
    record = to_object(verify_export(file, verify_data=str(root / "of")))
    assert (record["top1"], record["model_top1"]) == (25, 25)

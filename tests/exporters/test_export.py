from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from deitctl.errors import ConfigError, DataError, DeitctlError, ExportError, ModelError
from deitctl.exporters.export import export
from deitctl.exporters.formats import FORMATS, Format
from deitctl.exporters.golden import GOLDEN, make_golden_sample
from deitctl.exporters.quantize import PRECISIONS
from deitctl.paths import write_bytes
from deitctl.records import to_object


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "seven")


@pytest.fixture
def quick(monkeypatch, replace_runner):
    """Replace the torch format by one that writes one byte, and runner.py by a program."""

    def install(program="raise SystemExit('nothing runs here')"):
        def write(network, model_config, metadata, path):
            write_bytes(path, b"x")

        replace_runner(program)
        sample = make_golden_sample(np.zeros(10, dtype=np.float32))
        stand_in = Format(
            name="torch",
            suffix=".pt2",
            write=write,
            tolerance=1e-3,
            read_metadata=lambda path: {GOLDEN: sample},
        )
        monkeypatch.setitem(FORMATS, "torch", stand_in)

    return install


def test_onnx_is_written_beside_the_run_and_verified(model, reporter):
    result = export(str(model), to="onnx", num_images=5, reporter=reporter)
    assert result.path == model / "export" / "seven.onnx"
    assert result.bytes == result.path.stat().st_size
    assert (result.format, result.num_verified, result.top1_agreement) == ("onnx", 5, 100)
    assert result.max_abs_diff < 1e-4
    assert [p.name for p in result.path.parent.iterdir()] == ["seven.onnx"]
    assert result.top1 == result.model_top1 is not None
    assert json.loads(json.dumps(to_object(result)))["path"] == str(result.path)


def test_a_bare_quantized_file_is_verified_timed_and_named_after_what_it_is(model, reporter):
    result = export(
        str(model), to="onnx", quantize="int8", preprocess=False, num_images=5, reporter=reporter
    )
    assert result.path.name == "seven-bare-int8.onnx"
    assert [p.name for p in result.path.parent.iterdir()] == [result.path.name]
    assert result.bytes == result.path.stat().st_size
    assert result.bytes < 0.48 * (model / "model.safetensors").stat().st_size  # fp16: 0.51
    record = to_object(result)
    assert (record["quantize"], record["num_verified"]) == ("int8", 5)
    assert 0 < record["relative_diff"] < 0.15
    assert record["speedup"] > 0


def test_a_file_of_dynamic_size_is_verified_on_whole_images(model, reporter, image_folder):
    images = str(image_folder({"a": 5}))
    result = export(
        str(model),
        to="onnx",
        quantize="int8",
        dynamic_size=True,
        verify_data=images,
        reporter=reporter,
    )
    assert result.path.name == "seven-dynamic-int8.onnx"
    assert [p.name for p in result.path.parent.iterdir()] == [result.path.name]
    assert (result.num_verified, result.top1_agreement) == (5, 100)
    assert 0 < result.relative_diff < 0.15
    assert [n for n in reporter.notes if "Whole images: " in n and "by 2 of 255 at most" in n]


def test_an_interpolation_that_onnx_has_not_is_refused_before_anything_is_written(model):
    config = json.loads((model / "config.json").read_text())
    config["pretrained_cfg"]["interpolation"] = "lanczos"
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=r"not with lanczos.*Leave --dynamic-size out"):
        export(str(model), to="onnx", dynamic_size=True, num_images=2)
    assert not (model / "export").exists()


def test_static_int8_is_calibrated_on_what_the_run_was_trained_on_or_on_what_is_named(
    model, image_folder
):
    with pytest.raises(ConfigError, match="--calibration-data IMAGES"):
        export(str(model), to="onnx", quantize="int8-static", num_images=2)
    with pytest.raises(ConfigError, match="is for --quantize int8-static"):
        export(str(model), to="onnx", calibration_data=str(model), num_images=2)
    (model / "run.toml").write_text('data = "digits"\n')
    result = export(str(model), to="onnx", quantize="int8-static", num_images=2)
    assert result.path.name == "seven-int8-static.onnx"
    named = image_folder({"a": 9})
    again = export(
        str(model), to="onnx", quantize="int8-static", calibration_data=str(named), num_images=2
    )
    assert again.relative_diff != result.relative_diff


def test_quantization_beyond_its_tolerance_is_rejected(model, monkeypatch):
    monkeypatch.setitem(PRECISIONS, "fp16", replace(PRECISIONS["fp16"], tolerance=1e-9))
    with pytest.raises(ExportError, match=r"seven-fp16.onnx.rejected"):
        export(str(model), to="onnx", quantize="fp16", num_images=2)
    assert [p.name for p in (model / "export").iterdir()] == ["seven-fp16.onnx.rejected"]


@pytest.mark.parametrize(
    ("to", "options", "says"),
    [
        ("onnx", {"quantize": "int4"}, "Did you mean 'int8'.*There are: fp16, int8"),
        (
            "torch",
            {"quantize": "int8"},
            "torch is not quantized to int8: --quantize int8 is for --to onnx",
        ),
        ("openvino", {"quantize": "int8"}, "openvino is not quantized to int8"),
        ("timm", {"quantize": "fp16"}, "fp16 is for --to onnx or --to openvino"),
        (
            "timm",
            {"preprocess": False},
            "timm has no bare variant: --no-preprocess is for --to onnx",
        ),
        ("torch", {"dynamic_size": True}, "--dynamic-size is for --to onnx"),
        ("web", {"dynamic_size": True}, "--dynamic-size is for --to onnx"),
        (
            "onnx",
            {"dynamic_size": True, "preprocess": False},
            "--no-preprocess none.*Leave one out",
        ),
    ],
    ids=str,
)
def test_variants_that_there_are_not_are_refused_before_the_model_is_loaded(to, options, says):
    with pytest.raises(ExportError, match=says):
        export("no_such_model", to=to, **options)


def test_a_timm_folder_predicts_the_mean_of_logits_and_reports_it(model, reporter, tmp_path):
    result = export(
        str(model),
        to="timm",
        head="dist",
        classes=list("abcdefghij"),
        num_images=5,
        output=str(tmp_path / "out"),
        reporter=reporter,
    )
    assert sorted(p.name for p in result.path.iterdir()) == [
        "README.md",
        "config.json",
        "deitctl.json",
        "model.safetensors",
    ]
    assert [n for n in reporter.notes if "timm fuses heads by avg-logits" in n]
    config = json.loads((result.path / "config.json").read_text())
    assert (config["deitctl"]["head"], config["label_names"]) == ("dist", list("abcdefghij"))
    assert [n for n in reporter.notes if "are replaced, '0' by 'a' for example" in n]
    assert result.bytes == sum(p.stat().st_size for p in result.path.iterdir())


def test_an_openvino_folder_in_fp16_is_verified_and_keeps_head_and_temperature(model, reporter):
    pytest.importorskip("openvino")
    config = json.loads((model / "config.json").read_text())
    config["deitctl"]["temperatures"] = {"dist": 1.5}
    (model / "config.json").write_text(json.dumps(config))
    result = export(
        str(model), to="openvino", head="dist", quantize="fp16", num_images=5, reporter=reporter
    )
    assert result.path == model / "export" / "seven-dist-fp16-openvino"
    assert [p.name for p in result.path.parent.iterdir()] == [result.path.name]
    assert sorted(p.name for p in result.path.iterdir()) == ["README.md", "model.bin", "model.xml"]
    assert (result.num_verified, result.top1_agreement, result.speedup) == (5, 100, None)
    assert 0 < result.relative_diff < 0.01
    assert not [n for n in reporter.notes if "fuses heads" in n or "temperature" in n]
    text = (result.path / "README.md").read_text()
    assert "The network takes that as uint8 and does the rest itself" in text
    assert "library_name: openvino" in text


@pytest.mark.skipif(sys.platform == "darwin", reason="verified there")
def test_a_format_that_cannot_be_run_here_is_written_and_reported_as_not_verified(
    model, quick, reporter, monkeypatch
):
    quick()
    monkeypatch.setitem(FORMATS, "torch", replace(FORMATS["torch"], runs_on="macOS"))
    result = export(str(model), to="torch", num_images=2, reporter=reporter)
    assert [p.name for p in result.path.parent.iterdir()] == ["seven.pt2"]
    assert (result.num_verified, result.max_abs_diff, result.top1_agreement) == (0, None, None)
    assert [n for n in reporter.notes if "not verified: its runtime is for macOS alone" in n]


def test_a_core_ml_package_is_replaced_and_no_other_folder_is(model, tmp_path):
    pytest.importorskip("coremltools")
    output = tmp_path / "m.mlpackage"
    for _ in range(2):
        result = export(str(model), to="coreml", num_images=2, output=str(output))
        assert (result.path, result.bytes) == (
            output,
            sum(p.stat().st_size for p in output.rglob("*") if p.is_file()),
        )
    (output / "Manifest.json").unlink()
    (output / "seven.mlpackage").mkdir()
    with pytest.raises(ExportError, match=r"exists and is no earlier export"):
        export(str(model), to="coreml", num_images=2, output=str(output))


def test_a_transformers_folder_is_verified_from_file_to_label(model, reporter):
    pytest.importorskip("transformers")
    config = json.loads((model / "config.json").read_text())
    config["pretrained_cfg"]["crop_pct"] = (
        1.0  # 32 out of 35, as it is otherwise, is one pixel beside in transformers
    )
    (model / "config.json").write_text(json.dumps(config))
    result = export(str(model), to="transformers", head="dist", num_images=5, reporter=reporter)
    assert result.path == model / "export" / "seven-transformers"
    assert sorted(p.name for p in result.path.iterdir()) == [
        "README.md",
        "config.json",
        "deitctl.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert (result.num_verified, result.top1_agreement) == (5, 100)
    assert [n for n in reporter.notes if "transformers fuses heads by avg-logits" in n]
    assert [n for n in reporter.notes if "From image file to label" in n]
    assert "library_name: transformers" in (result.path / "README.md").read_text()


def test_a_file_that_disagrees_is_kept_as_rejected_and_an_earlier_good_one_stays(
    model, monkeypatch
):
    def write_wrong(network, model_config, metadata, path):
        with torch.no_grad():
            network.model.head.weight[0, 0] += 1
        FORMATS["timm"].write(network, model_config, metadata, path)

    (model / "export").mkdir()
    (model / "export" / "seven.pt2").write_bytes(b"earlier")
    monkeypatch.setitem(
        FORMATS,
        "torch",
        replace(
            FORMATS["torch"],
            write=write_wrong,
            name="timm",
            read_metadata=lambda path: (
                {"deitctl_version": "0"} if path.is_file() else FORMATS["timm"].read_metadata(path)
            ),
        ),
    )
    with pytest.raises(ExportError, match=r"fails its golden sample.*kept as .*seven.pt2.rejected"):
        export(str(model), to="torch", num_images=5)
    assert sorted(p.name for p in (model / "export").iterdir()) == [
        "seven.pt2",
        "seven.pt2.rejected",
    ]
    assert (model / "export" / "seven.pt2").read_bytes() == b"earlier"


def test_a_file_that_does_not_run_is_rejected_with_the_reason(model, quick):
    quick("raise RuntimeError('no such operation')")
    with pytest.raises(ExportError, match=r"RuntimeError: no such operation.*seven.pt2.rejected"):
        export(str(model), to="torch", num_images=2)
    assert [p.name for p in (model / "export").iterdir()] == ["seven.pt2.rejected"]


def test_a_file_that_is_no_export_is_never_overwritten(model):
    weights = model / "model.safetensors"
    before = weights.read_bytes()
    for to in ("onnx", "torch"):
        with pytest.raises(
            ExportError, match=r"is no earlier export: it would be lost.*new --output"
        ):
            export(str(model), to=to, output=str(weights), num_images=2)
    assert weights.read_bytes() == before


def test_another_head_rule_is_another_file_and_an_earlier_export_is_replaced(model):
    for _ in range(2):
        result = export(str(model), to="torch", head="dist", num_images=2)
        assert (result.path.name, result.head) == ("seven-dist.pt2", "dist")
    assert not (model / "export" / "seven.pt2").exists()


def test_an_output_folder_gets_the_default_name(model, quick, tmp_path):
    quick()
    (tmp_path / "there").mkdir()
    for output in (f"{tmp_path}/there", f"{tmp_path}/new/"):
        with pytest.raises(ExportError, match=rf"{output.rstrip('/')}/seven.pt2.rejected"):
            export(str(model), to="torch", num_images=2, output=output)


def test_a_folder_with_other_files_is_not_taken_for_an_export(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(ExportError, match=r"is no earlier export: it has .*Name a new --output"):
        export(str(model), to="timm", output=str(tmp_path))
    assert (tmp_path / "thesis.tex").exists()


def test_a_timm_folder_is_ready_for_a_hub(model, reporter, tmp_path):
    """Its README.md says what the run folder knows; what the folder cannot hold is said; what is edited is kept."""
    config = json.loads((model / "config.json").read_text())
    config["deitctl"]["temperatures"] = {"avg-logits": 1.5}
    (model / "config.json").write_text(json.dumps(config))
    (model / "run.toml").write_text(
        'data = "/home/me/secret/digits"\nmodel = "deit_tiny"\n[recipe]\nepochs = 7\n'
    )
    (model / "result.json").write_text(
        '{"epochs": 7, "best": {"epoch": 6, "top1": 91.234, "top5": 99.5}}'
    )
    result = export(
        str(model), to="timm", num_images=2, output=str(tmp_path / "m"), reporter=reporter
    )
    text = (result.path / "README.md").read_text()
    assert "Trained on `digits`." in text
    assert "secret" not in text
    assert "| epoch 6 of 7 | 91.23 % | 99.50 % |" in text
    assert "On 2 images" in text
    assert [n for n in reporter.notes if "no place for a temperature" in n and "1.5" in n]
    (result.path / "README.md").write_text(text.replace("## Training data", "## Our data"))
    with pytest.raises(ExportError, match=r"README.md has been edited"):
        export(str(model), to="timm", num_images=2, output=str(tmp_path / "m"))
    assert "## Our data" in (result.path / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "hint"), [("onx", "Did you mean 'onnx'"), ("tflite", "There are: onnx, torch, timm")]
)
def test_an_unknown_format_gets_a_suggestion_and_the_list(name, hint):
    with pytest.raises(ExportError, match=hint):
        export("deit_tiny", to=name)


def test_a_missing_package_is_found_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ExportError, match="onnxscript"):
        export("no_such_model", to="onnx")


def test_verification_on_no_image_is_refused(model):
    with pytest.raises(ConfigError, match="num_images = 0"):
        export(str(model), to="torch", num_images=0)


def test_wrong_models_and_images_are_errors_of_their_kind(model, tmp_path):
    with pytest.raises(ModelError):
        export("no_such_model", to="torch")
    with pytest.raises(DataError):
        export(str(model), to="torch", verify_data=str(tmp_path / "absent"))


@pytest.mark.unprivileged
def test_a_folder_that_may_not_be_written_is_one_line(model, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(DeitctlError, match="Cannot write"):
        export(str(model), to="timm", num_images=2, output=str(tmp_path / "locked" / "m"))


def test_an_output_below_a_file_is_one_line(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DeitctlError, match="Cannot write"):
        export(str(model), to="timm", num_images=2, output=str(tmp_path / "file" / "m"))


ECHO = "import sys; raise SystemExit(__import__('numpy').load(sys.argv[3]).shape[0])"


def count_of(error):
    """Read how many images the stand-in was given, the golden sample among them."""
    return int(str(error.value).split("exit code ")[1].split(".")[0].split()[0]) - 1


@pytest.mark.parametrize("kind", ["classes", "loose", "one"])
def test_images_to_verify_on_may_be_data_a_plain_folder_or_a_file(kind, model, quick, image_folder):
    quick(ECHO)
    root = image_folder({"a": 3, "b": 3})
    given, expected = {
        "classes": (root, 6),
        "loose": (root / "a", 3),
        "one": (root / "a" / "0.png", 1),
    }[kind]
    with pytest.raises(ExportError) as error:
        export(str(model), to="torch", verify_data=str(given))
    assert count_of(error) == expected


def test_a_run_is_verified_on_its_own_validation_images(model, quick, image_folder):
    quick(ECHO)
    root = image_folder({"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 1})
    (model / "run.toml").write_text(f'data = "{root.as_posix()}"\n')
    with pytest.raises(ExportError) as error:
        export(str(model), to="torch")
    assert count_of(error) == 3


def test_a_run_whose_data_is_gone_is_verified_on_digits_and_reports_it(
    model, quick, tmp_path, reporter
):
    quick(ECHO)
    (model / "run.toml").write_text(f'data = "{(tmp_path / "gone").as_posix()}"\n')
    with pytest.raises(ExportError) as error:
        export(str(model), to="torch", num_images=7, reporter=reporter)
    assert count_of(error) == 7
    assert [n for n in reporter.notes if "Verifying on digits" in n]

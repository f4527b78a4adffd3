"""An exported ONNX file is evaluated like any model, with the metrics of the model that it was exported from."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper

from deitctl.api import evaluate
from deitctl.device import choose_device
from deitctl.errors import DeitctlError
from deitctl.evaluation.evaluate import evaluate_models
from deitctl.events import SilentReporter
from deitctl.exporters.metadata import collect_metadata
from deitctl.exporters.network import ExportedClassifier
from deitctl.exporters.onnx import export_onnx
from deitctl.exporters.quantize import quantize_onnx
from deitctl.models.factory import LoadedModel
from deitctl.models.vit import VisionTransformer
from deitctl.records import to_object
from deitctl.report.build import build_contents

RULE = "dist"


@pytest.fixture(scope="module")
def loaded(tiny_arch, randomize: Callable[..., torch.nn.Module]) -> LoadedModel:
    """A distilled DeiT of one block with six classes, one head's rule, its own mean and std, and a temperature."""
    arch = replace(tiny_arch("deit_tiny_distilled"), depth=1)
    model_config = replace(
        arch.to_model_config(),
        num_classes=6,
        class_names=tuple("fedcba"),
        descriptions=tuple(f"letter {c}" for c in "fedcba"),
        head=RULE,
        temperatures={RULE: 1.7},
    )
    pre = replace(
        model_config.preprocessing, mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.25), crop_pct=0.8
    )
    model = randomize(VisionTransformer(arch, num_classes=6, img_size=32)).eval()
    return LoadedModel(model, replace(model_config, preprocessing=pre))


@pytest.fixture
def model(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its name; the loader is replaced, as no weights file has one block."""
    monkeypatch.setattr("deitctl.evaluation.networks.load_model", lambda *_, **__: loaded)
    return "m"


@pytest.fixture(scope="module")
def file(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "m.onnx"
    network = ExportedClassifier(loaded.model, loaded.model_config, RULE)
    export_onnx(
        network, loaded.model_config, collect_metadata(network, loaded.model_config, "onnx"), path
    )
    return path


@pytest.fixture
def images(image_folder: Callable[..., Path]) -> Path:
    root = image_folder(dict.fromkeys("abcdef", 5))
    (root / "b" / "4.png").write_text("no")
    return root


@pytest.mark.parametrize("protocol", ["native", "hf"])
def test_an_onnx_file_has_the_metrics_of_its_model(
    protocol: str, model: str, file: Path, images: Path
) -> None:
    ours, theirs = (
        evaluate(str(images), model=m, protocol=protocol, workers=0, batch_size=7)
        for m in (model, str(file))
    )
    mine, its = to_object(ours), to_object(theirs)
    assert len({r["recall"] for r in mine["per_class"].values()}) > 1  # classes can be told apart
    for same in (
        "top1",
        "top5",
        "per_class",
        "confusions",
        "num_images",
        "unreadable",
        "head",
        "temperature",
        "protocol",
    ):
        assert its[same] == mine[same], same
    for close in ("loss", "ece"):
        assert its[close] == pytest.approx(mine[close], abs=1e-5)
    assert (its["head"], its["temperature"]) == (RULE, 1.7)
    assert (its["heads"], its["head_agreement"]) == (None, None)  # they are fused inside
    torch.testing.assert_close(theirs.logits.cls, ours.logits.dist, rtol=0, atol=1e-4)
    assert theirs.subject.model_config.preprocessing == ours.subject.model_config.preprocessing
    assert theirs.subject.class_titles[0] == ours.subject.class_titles[0] == "letter a"


def test_the_fitted_temperature_is_one_of_the_files_logits(
    model: str, file: Path, image_folder
) -> None:
    results = evaluate_models(
        str(image_folder(dict.fromkeys("abc", 12))), models=[model, str(file)], workers=0
    )
    ours, theirs = (r.calibration for r in results.evaluations)
    assert set(theirs.temperatures) == {RULE}
    assert (
        theirs.temperature
        == theirs.temperatures[RULE]
        == pytest.approx(ours.temperatures[RULE], rel=1e-3)
    )
    assert theirs.ece == pytest.approx(ours.ece, abs=1e-4)


def test_model_file_and_quantized_file_are_compared_image_by_image(
    model: str, file: Path, images: Path, tmp_path: Path
) -> None:
    small = tmp_path / "m-int8.onnx"
    quantize_onnx(file, "int8", small)
    results = evaluate_models(
        str(images),
        models=[model, str(file), str(small)],
        workers=0,
        predictions=str(tmp_path / "p.jsonl"),
    )
    assert [r.name for r in results.evaluations] == ["m", "m.onnx", "m-int8.onnx"]
    same, quantized = results.comparisons
    assert (same.b, same.only_a_correct, same.only_b_correct, same.p_value) == ("m.onnx", 0, 0, 1.0)
    answers = [r.correct for r in results.evaluations]
    assert (quantized.only_a_correct, quantized.only_b_correct) == (
        int((answers[0] & ~answers[2]).sum()),
        int((answers[2] & ~answers[0]).sum()),
    )
    assert 1e-5 < (results.evaluations[2].losses - results.evaluations[0].losses).abs().max() < 0.5
    records = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [r["model"] for r in records].count(str(small)) == 30
    sections = build_contents(results, "deitctl eval", SilentReporter()).sections
    first = [[*s.galleries["mistakes"], *s.galleries["unsure"]][0] for s in sections]
    assert first[0].maps
    assert first[0].heads
    assert (first[1].maps, first[1].heads) == ({}, {})
    assert [name for name, _ in first[1].guesses] == [name for name, _ in first[0].guesses]
    assert [p for _, p in first[1].guesses] == pytest.approx(
        [p for _, p in first[0].guesses], abs=1e-4
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"head": "cls"}, "m.onnx was exported with head rule dist, not cls.*--head cls"),
        ({"img_size": 48}, "m.onnx takes images of 32 pixels, not 48"),
        ({"precision": "bf16"}, "runs on the CPU, in the precision"),
        ({"weights": "w.safetensors"}, "m.onnx holds its own weights"),
        ({"save_temperature": True}, "m.onnx has its own inside.*export it again"),
    ],
    ids=str,
)
def test_unsupported_options_of_an_onnx_file_are_one_line(
    options: dict[str, object], says: str, file: Path, images: Path
) -> None:
    with pytest.raises(DeitctlError, match=says) as refused:
        evaluate(str(images), model=str(file), **options)
    assert "\n" not in str(refused.value)


def test_a_device_other_than_the_cpu_is_refused(file: Path, images: Path, monkeypatch) -> None:
    # had cuda
    monkeypatch.setattr(
        "deitctl.evaluation.networks.choose_device", lambda *_: choose_device("cpu", "fp32")
    )
    with pytest.raises(DeitctlError, match="An ONNX file runs on the CPU"):
        evaluate(str(images), model=str(file), device="cuda")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"temperature": "nan"}, "temperatures are"),
        ({"temperature": "0"}, "temperatures are"),
        ({"temperature": "warm"}, "unreadable metadata"),
        ({"temperature": None}, "unreadable metadata"),
        ({"layout": "NCHW float32"}, "bare network"),
    ],
)
def test_unusable_metadata_is_one_line(changed, says, file, images, tmp_path) -> None:
    proto = onnx.load(file)
    metadata = {p.key: p.value for p in proto.metadata_props}
    metadata["preprocessing"] = metadata["preprocessing"].replace(
        "NHWC uint8", changed.pop("layout", "NHWC uint8")
    )
    del proto.metadata_props[:]
    helper.set_model_props(proto, {k: v for k, v in (metadata | changed).items() if v is not None})
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(DeitctlError, match=rf"other\.onnx.*{says}"):
        evaluate(str(images), model=str(tmp_path / "other.onnx"))


def test_an_exported_torch_program_is_not_opened(images: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:  # as torch.export.save lays it out
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/models/model.json", "{}")
    with pytest.raises(DeitctlError, match="could run any code when torch loads it"):
        evaluate(str(images), model=str(tmp_path / "m.pt2"))

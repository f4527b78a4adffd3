"""`deitctl export --to web`: the folder, its verification, precisions and what is refused; no browser, no network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from deitctl.errors import DataError, ExportError
from deitctl.events import SilentReporter
from deitctl.exporters import runner, web
from deitctl.exporters.export import export
from deitctl.exporters.formats import FORMATS
from deitctl.exporters.verify import verify_export
from deitctl.exporters.web import FILES, read_metadata
from deitctl.inference.classifier import predict
from deitctl.models.build import build_model
from deitctl.models.checkpoint_io import save_model
from deitctl.models.introspect import describe_layers, pin_img_size


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, randomize) -> Path:
    """A small distilled digits classifier in a folder, with a temperature."""
    torch.manual_seed(0)
    loaded = build_model(
        "deit_tiny",
        class_names=[str(d) for d in range(10)],
        img_size=32,
        drop_path_rate=0.0,
        pretrained=False,
        weights="",
        distilled=True,
        reporter=SilentReporter(),
    )
    randomize(loaded.model)
    folder = tmp_path_factory.mktemp("model") / "seven"
    save_model(
        folder,
        loaded.model.state_dict(),
        pin_img_size(loaded.model, loaded.model_config),
        describe_layers(loaded.model),
    )
    config = json.loads((folder / "config.json").read_text())
    config["deitctl"]["temperatures"] = {config["deitctl"]["head"]: 1.7}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "seven")


@pytest.fixture
def runtime(tmp_path, monkeypatch) -> str:
    """A made-up archive that is pinned in the place of the real one; the registry is not there."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in web.PARTS.values():
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))

    def unreachable(url, **_):
        raise DataError(f"{url} cannot be fetched: no network.")

    digest = base64.b64encode(hashlib.sha512(file.getvalue()).digest()).decode()
    monkeypatch.delenv(web.VARIABLE, raising=False)
    monkeypatch.setattr(web, "INTEGRITY", f"sha512-{digest}")
    monkeypatch.setattr(web, "fetch", unreachable)
    (tmp_path / "runtime.tgz").write_bytes(file.getvalue())
    return str(tmp_path / "runtime.tgz")


def test_the_folder_is_verified_and_takes_the_place_of_an_earlier_one(
    model, runtime, reporter, make_image, tmp_path
):
    (model / "export" / "seven-web").mkdir(parents=True)
    (model / "export" / "seven-web" / "model.json").write_text("of an earlier export")
    result = export(str(model), to="web", num_images=5, runtime=runtime, reporter=reporter)
    assert result.path == model / "export" / "seven-web"
    assert sorted(p.name for p in result.path.iterdir()) == sorted(FILES)
    assert (result.format, result.num_verified, result.top1_agreement) == ("web", 5, 100)
    assert result.max_abs_diff < 1e-4
    assert not [n for n in reporter.notes if "temperature" in n], "the network has it inside"

    about = json.loads((result.path / "model.json").read_text())
    assert about["labels"] == [str(d) for d in range(10)]
    assert about["tokens"] == ["class token", "distillation token"]
    assert about["temperature"] == 1.7
    metadata = read_metadata(result.path)
    assert (metadata["architecture"], metadata["temperature"]) == (about["architecture"], "1.7")
    assert "golden_sample" in metadata
    again = verify_export(str(result.path), num_images=3)
    assert (again.format, again.model, again.num_verified) == ("web", str(model), 3)

    make_image().save(tmp_path / "p.png")
    (ours,) = predict([str(tmp_path / "p.png")], model=str(model))
    (theirs,) = predict([str(tmp_path / "p.png")], model=str(result.path / "model.onnx"))
    assert [g.index for g in theirs.predictions] == [g.index for g in ours.predictions]
    np.testing.assert_allclose(
        [g.score for g in theirs.predictions], [g.score for g in ours.predictions], atol=1e-4
    )


def test_a_quantized_folder_has_a_smaller_network_that_still_gives_attention(
    model, runtime, sample_pixels
):
    result = export(str(model), to="web", quantize="int8", num_images=5, runtime=runtime)
    assert result.path.name == "seven-int8-web"
    assert sorted(p.name for p in result.path.iterdir()) == sorted(FILES)
    weights = (model / "model.safetensors").stat().st_size
    assert (result.path / "model.onnx").stat().st_size < 0.37 * weights
    assert 0 < result.relative_diff < 0.15
    assert result.speedup > 0
    assert read_metadata(result.path)["quantize"] == "int8"
    session = onnxruntime.InferenceSession(
        result.path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    _, probabilities, attention = session.run(None, {"pixels": sample_pixels})
    assert attention.shape == (len(sample_pixels), 2, 2, 2)
    np.testing.assert_allclose(runner.load_web(str(result.path))(sample_pixels)[1], probabilities)


@pytest.fixture
def sample_pixels() -> np.ndarray:
    return np.random.Generator(np.random.PCG64(0)).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"preprocess": False}, "web has no bare variant.*--to onnx"),
        ({"dynamic_size": True}, "web takes images of one size.*--to onnx"),
        ({"to": "onnx", "runtime": "x.tgz"}, "onnx holds no runtime: --runtime is for --to web"),
        ({"quantize": "int4"}, "Did you mean 'int8'"),
    ],
    ids=str,
)
def test_what_makes_no_page_is_refused_before_the_model_is_loaded(options, says, runtime):
    with pytest.raises(ExportError, match=says):
        export("no_such_model", **{"to": "web", **options})


def test_without_the_runtime_nothing_is_loaded_or_written(runtime, tmp_path):
    with pytest.raises(
        ExportError,
        match=r"no network.*Download https://registry.npmjs.org/.*--runtime or \$DEITCTL_ORT_WEB",
    ):
        export("no_such_model", to="web", output=str(tmp_path / "page"))
    assert not (tmp_path / "page").exists()


def test_a_folder_of_somebody_elses_is_not_replaced(model, runtime, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "blog.html").write_text("mine")
    with pytest.raises(ExportError, match="is no earlier export: it has blog.html"):
        export(str(model), to="web", runtime=runtime, output=str(tmp_path / "site"))


@pytest.mark.parametrize("wrong", ["negative", "too much", "no number"])
def test_verification_refuses_attention_that_is_no_weights(wrong):
    attention = np.full((1, 2, 2, 2), 0.2, dtype=np.float32)
    runner.require_attention_weights(attention)
    attention[0, 1, 0, 0] = {"negative": -0.1, "too much": 0.9, "no number": np.nan}[wrong]
    with pytest.raises(SystemExit, match="no weights"):
        runner.require_attention_weights(attention)


def test_every_file_of_the_page_is_in_the_package_and_in_the_folder():
    page = Path(web.__file__).with_name("page")
    assert {p.name for p in page.iterdir()} == set(FORMATS["web"].files) - {
        "model.onnx",
        "model.json",
        "onnxruntime.js",
        "onnxruntime.wasm",
    }


def test_the_policy_of_the_page_allows_no_other_server_and_no_inline_script():
    index = (Path(web.__file__).with_name("page") / "index.html").read_text()
    policy = index.split('Content-Security-Policy" content="')[1].split('"')[0]
    assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; ")
    assert "unsafe-inline" not in policy
    assert "http" not in policy
    assert "*" not in policy

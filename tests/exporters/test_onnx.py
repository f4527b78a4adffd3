from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from deitctl.errors import ExportError
from deitctl.exporters import onnx as onnx_export
from deitctl.exporters.metadata import describe_model
from deitctl.exporters.network import BareClassifier
from deitctl.exporters.onnx import IR_VERSION, OPSET, export_onnx, read_metadata
from deitctl.models.model_config import HEADS


def run(path, pixels):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.stack(session.run(["logits", "probabilities"], {"pixels": pixels}))


@pytest.fixture(scope="module")
def deit_tiny(shallow):
    return shallow("deit_tiny")


@pytest.fixture(scope="module")
def file(deit_tiny, network, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "deit_tiny.onnx"
    export_onnx(
        network(deit_tiny, "cls"),
        deit_tiny.model_config,
        describe_model(deit_tiny.model_config, "cls"),
        path,
    )
    return path


@pytest.mark.parametrize("count", [1, 5])
def test_the_file_gives_the_models_outputs_at_any_batch_size(
    count, file, deit_tiny, network, sample, answer
):
    pixels = sample(deit_tiny, count).pixels
    np.testing.assert_allclose(
        run(file, pixels), answer(network(deit_tiny, "cls"), pixels), atol=1e-4
    )


@pytest.mark.parametrize("head", HEADS)
def test_the_file_holds_the_head_rule(head, shallow, network, sample, answer, tmp_path):
    loaded, path = shallow(), tmp_path / "m.onnx"
    export_onnx(network(loaded, head), loaded.model_config, {}, path)
    pixels = sample(loaded, 3).pixels
    np.testing.assert_allclose(run(path, pixels), answer(network(loaded, head), pixels), atol=1e-4)


def test_a_convnet_of_timm_exports_too(classifier, network, sample, answer, tmp_path):
    loaded, path = classifier("test_byobnet", img_size=64), tmp_path / "m.onnx"
    export_onnx(network(loaded, "cls"), loaded.model_config, {}, path)
    pixels = sample(loaded, 3).pixels
    np.testing.assert_allclose(run(path, pixels), answer(network(loaded, "cls"), pixels), atol=1e-4)


def test_the_file_is_one_of_the_pinned_opset_with_a_free_batch(file):
    model = onnx.load(file)
    onnx.checker.check_model(model)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION == 9, (
        "the newest that onnxruntime 1.17 reads, the first with opset 20"
    )
    (pixels,) = model.graph.input
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (pixels, *model.graph.output)}
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in shapes["pixels"][1:]] == [32, 32, 3]
    assert {d[0].dim_param for d in shapes.values()} == {"batch"}
    assert [p.name for p in file.parent.iterdir()] == ["deit_tiny.onnx"]


def test_a_bare_network_takes_normalized_images_and_gives_logits(
    deit_tiny, sample, answer, network, tmp_path
):
    model_config, path = deit_tiny.model_config, tmp_path / "bare.onnx"
    export_onnx(
        BareClassifier(deit_tiny.model, model_config, "cls"),
        model_config,
        describe_model(model_config, "cls", bare=True),
        path,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (takes,), (gives,) = session.get_inputs(), session.get_outputs()
    assert (takes.name, takes.type, takes.shape) == (
        "images",
        "tensor(float)",
        ["batch", 3, 32, 32],
    )
    assert (gives.name, gives.shape) == ("logits", ["batch", 10])
    pixels = sample(deit_tiny, 3).pixels
    said = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])["normalization"]
    images = ((pixels / 255 - said["mean"]) / said["std"]).transpose(0, 3, 1, 2).astype(np.float32)
    wanted = answer(network(deit_tiny, "cls"), pixels)[0]
    np.testing.assert_allclose(session.run(None, {"images": images})[0], wanted, atol=1e-4)


def test_metadata_comes_back_from_onnxruntime(file):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == list("0123456789")
    assert metadata["head"] == "cls"


def test_metadata_is_read_without_onnxruntime(file, tmp_path):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert read_metadata(file) == session.get_modelmeta().custom_metadata_map
    (tmp_path / "half.onnx").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"half.onnx is not a readable ONNX file"):
        read_metadata(tmp_path / "half.onnx")


def test_the_file_names_no_file_of_this_machine(file):
    assert b".py" not in file.read_bytes()


def test_the_file_runs_where_torch_deitctl_and_timm_cannot_be_imported(
    file, deit_tiny, sample, run_without, tmp_path
):
    np.save(tmp_path / "in.npy", sample(deit_tiny, 18).pixels)
    run_without(["torch", "deitctl", "timm"], "onnx", file, "in.npy", "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (2, 18, 10)


def test_nothing_of_the_exporter_reaches_the_terminal(shallow, network, tmp_path, capfd):
    loaded = shallow()
    export_onnx(network(loaded, "cls"), loaded.model_config, {}, tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_model_larger_than_one_file_is_refused_before_the_work(
    shallow, network, tmp_path, monkeypatch
):
    monkeypatch.setattr(onnx_export, "MAX_BYTES", 1000)
    loaded = shallow()
    with pytest.raises(ExportError, match=r"2 GiB.*--to torch"):
        export_onnx(network(loaded, "cls"), loaded.model_config, {}, tmp_path / "m.onnx")


def test_a_model_that_cannot_be_traced_is_one_error(shallow, network, tmp_path):
    class Stubborn(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3)) if images.sum().item() > 0 else images.amax((2, 3))

    loaded = shallow()
    stubborn = network(loaded, "cls")
    stubborn.model = Stubborn()
    with pytest.raises(ExportError, match="cannot be traced"):
        export_onnx(stubborn, loaded.model_config, {}, tmp_path / "m.onnx")

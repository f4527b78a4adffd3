from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from deitctl.errors import ExportError
from deitctl.exporters.formats import FORMATS
from deitctl.exporters.golden import GOLDEN
from deitctl.exporters.metadata import collect_metadata
from deitctl.exporters.openvino import (
    FILES,
    export_openvino,
    halve_matrices,
    quantize_openvino,
    read_metadata,
)
from deitctl.exporters.runner import load_openvino
from deitctl.exporters.verification_images import compute_reference

openvino = pytest.importorskip(
    "openvino", reason="openvino is not installed: pip install 'deitctl[openvino]'"
)

KIND = FORMATS["openvino"]


@pytest.fixture(scope="module")
def loaded(shallow):
    return shallow()


@pytest.fixture(scope="module")
def metadata(loaded, network):
    odd = {"architecture": "a <b> & \"c\" 'd'\n"}
    return collect_metadata(network(loaded, "avg-probs"), loaded.model_config, "openvino") | odd


@pytest.fixture(scope="module")
def folder(loaded, metadata, network, tmp_path_factory):
    path = tmp_path_factory.mktemp("openvino") / "m"
    export_openvino(network(loaded, "avg-probs"), loaded.model_config, metadata, path)
    return path


@pytest.mark.parametrize("count", [1, 5])
def test_the_folder_gives_the_models_outputs_at_any_batch_size(
    count, folder, loaded, network, sample, answer
):
    pixels = sample(loaded, count).pixels
    given = load_openvino(str(folder))(pixels)
    np.testing.assert_allclose(given, answer(network(loaded, "avg-probs"), pixels), atol=1e-4)


def test_a_convnet_of_timm_exports_too(classifier, network, sample, verify_fp32, tmp_path):
    loaded = classifier("test_byobnet", img_size=64)
    export_openvino(network(loaded, "cls"), loaded.model_config, {}, tmp_path / "m")
    some = sample(loaded, 3)
    wanted = compute_reference(loaded.model, loaded.model_config, "cls", some.pixels)
    assert verify_fp32("openvino", tmp_path / "m", wanted, some).top1_agreement == 100


def test_inputs_and_outputs_have_names_types_and_sizes(folder):
    model = openvino.Core().read_model(folder / "model.xml")
    ports = {
        port.any_name: (port.element_type.to_string(), str(port.partial_shape))
        for port in (*model.inputs, *model.outputs)
    }
    assert ports == {
        "pixels": ("u8", "[?,32,32,3]"),
        "logits": ("f32", "[?,10]"),
        "probabilities": ("f32", "[?,10]"),
    }
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)


def test_the_metadata_comes_back_with_and_without_openvino(folder, metadata):
    assert read_metadata(folder) == metadata
    model = openvino.Core().read_model(folder / "model.xml")
    assert {key: model.get_rt_info(["deitctl", key]).value for key in metadata} == metadata


def test_metadata_that_is_not_there_is_not_invented(folder, tmp_path):
    with pytest.raises(ExportError, match=r"has no readable model.xml"):
        read_metadata(tmp_path)
    text = (folder / "model.xml").read_text()
    (tmp_path / "model.xml").write_text(text[: len(text) // 2])
    with pytest.raises(ExportError, match=r"has no readable model.xml"):
        read_metadata(tmp_path)
    (tmp_path / "model.xml").write_text("<net><rt_info/></net>")
    assert read_metadata(tmp_path) == {}


def test_weights_in_fp16_are_half_the_size_and_verified(
    folder, loaded, sample, metadata, verify_quantized, tmp_path
):
    quantize_openvino(folder, "fp16", tmp_path / "half")
    sizes = [(path / "model.bin").stat().st_size for path in (tmp_path / "half", folder)]
    assert sizes[0] < 0.51 * sizes[1]
    some = sample(loaded, 18)
    wanted = compute_reference(loaded.model, loaded.model_config, "avg-probs", some.pixels)
    verification = verify_quantized("openvino", tmp_path / "half", wanted, some, 0.01)
    assert 0 < verification.relative_diff < 0.01
    assert verification.num_verified == 18
    golden = json.loads(metadata[GOLDEN]) | {"tolerance": 0.01}
    assert read_metadata(tmp_path / "half") == metadata | {
        "quantize": "fp16",
        GOLDEN: json.dumps(golden),
    }


def test_fp16_keeps_the_thresholds_of_every_class():
    thresholds = np.array([[0.1, 2e-8]], np.float32)  # 0 in fp16, which every image reaches
    ops, weight = openvino.opset13, np.ones((4096, 2), np.float32)
    x = ops.parameter([1, 4096], np.float32)
    probs = ops.sigmoid(ops.matmul(x, ops.constant(weight), False, False))
    model = openvino.Model([ops.greater_equal(probs, ops.constant(thresholds))], [x], "labels")
    halve_matrices(model)
    found = {
        node.get_element_type().to_string(): node.data
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant"
    }
    assert found["f16"].shape == weight.shape
    np.testing.assert_array_equal(found["f32"], thresholds)


def test_other_weights_fail(folder, loaded, sample, verify_fp32, tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    weights = np.fromfile(tmp_path / "model.bin", dtype=np.float32)
    (weights * 1.01).astype(np.float32).tofile(tmp_path / "model.bin")
    some = sample(loaded, 5)
    wanted = compute_reference(loaded.model, loaded.model_config, "avg-probs", some.pixels)
    with pytest.raises(ExportError):
        verify_fp32("openvino", tmp_path, wanted, some)


def test_the_folder_names_no_file_of_this_machine(folder):
    assert b".py" not in (folder / "model.xml").read_bytes()


def test_the_folder_runs_where_torch_deitctl_and_timm_cannot_be_imported(
    folder, loaded, sample, run_without, tmp_path
):
    np.save(tmp_path / "in.npy", sample(loaded, 18).pixels)
    run_without(["torch", "deitctl", "timm"], "openvino", folder, "in.npy", "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (2, 18, 10)


def test_nothing_of_the_converter_reaches_the_terminal(loaded, network, tmp_path, capfd):
    export_openvino(network(loaded, "cls"), loaded.model_config, {"head": "cls"}, tmp_path / "m")
    assert capfd.readouterr() == ("", "")


def test_the_usage_in_the_readme_runs(folder, make_image, tmp_path):
    make_image(40, 40).save(tmp_path / "image.jpg")
    code = KIND.usage.replace("PATH", str(folder))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] in "0123456789"

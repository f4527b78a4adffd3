from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from deitctl.errors import ExportError
from deitctl.exporters import quantize
from deitctl.exporters.golden import GOLDEN
from deitctl.exporters.onnx import OPSET
from deitctl.exporters.quantize import PRECISIONS, measure_speedup, quantize_onnx
from deitctl.exporters.verification_images import compute_reference


@pytest.fixture(scope="module")
def quantized(onnx_file, shallow, sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    some = sample(shallow(), 20).pixels
    for precision, kind in PRECISIONS.items():
        quantize_onnx(
            onnx_file, precision, folder / f"{precision}.onnx", some if kind.calibrated else None
        )
    return folder


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_quantized_file_is_verified(precision, quantized, shallow, sample, verify_quantized):
    loaded = shallow()
    some = sample(loaded, 18)
    wanted = compute_reference(loaded.model, loaded.model_config, "avg-probs", some.pixels)
    tolerance = PRECISIONS[precision].tolerance
    path = quantized / f"{precision}.onnx"
    verification = verify_quantized("onnx", path, wanted, some, tolerance)
    assert verification.num_verified == 18
    assert 0 < verification.relative_diff < tolerance


@pytest.mark.parametrize(
    ("precision", "most"), [("fp16", 0.55), ("int8", 0.50), ("int8-static", 0.50)]
)
def test_a_quantized_file_is_smaller_keeps_its_metadata_and_describes_itself(
    precision, most, quantized, onnx_file
):
    path = quantized / f"{precision}.onnx"
    assert path.stat().st_size < most * onnx_file.stat().st_size
    before, after = (
        {p.key: p.value for p in onnx.load(f).metadata_props} for f in (onnx_file, path)
    )
    golden = json.loads(after.pop(GOLDEN))
    assert golden == json.loads(before.pop(GOLDEN)) | {"tolerance": PRECISIONS[precision].tolerance}
    assert after.pop("quantize") == precision
    assert after == before


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_quantized_file_has_operations_of_the_same_opset_alone(precision, quantized):
    model = onnx.load(quantized / f"{precision}.onnx")
    onnx.checker.check_model(model)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert model.ir_version == 9


def test_fp16_stores_matrices_in_half_and_keeps_norms_and_biases(quantized):
    weights = {
        w.name: numpy_helper.to_array(w)
        for w in onnx.load(quantized / "fp16.onnx").graph.initializer
    }
    assert weights["model.patch_embed.proj.weight.fp16"].dtype == np.float16
    assert weights["model.blocks.0.norm1.weight"].dtype == np.float32
    large = {
        n
        for n, w in weights.items()
        if w.size >= quantize.LARGE and w.ndim > 1 and w.dtype == np.float32
    }
    assert not large


def test_fp16_keeps_the_thresholds_of_thousands_of_classes(tmp_path):
    count = quantize.LARGE
    arrays = {
        "weight": np.ones((2, count), np.float32),
        "thresholds": np.full(count, 2e-8, np.float32),  # 0 in fp16, which every image reaches
    }
    node = onnx.helper.make_node
    floats, bools = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
    graph = onnx.helper.make_graph(
        [
            node("MatMul", ["x", "weight"], ["logits"]),
            node("Sigmoid", ["logits"], ["probs"]),
            node("GreaterOrEqual", ["probs", "thresholds"], ["labels"]),
        ],
        "labels",
        [onnx.helper.make_tensor_value_info("x", floats, [1, 2])],
        [onnx.helper.make_tensor_value_info("labels", bools, [1, count])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(onnx.helper.make_model(graph, ir_version=9), tmp_path / "m.onnx")
    model = PRECISIONS["fp16"].quantize(tmp_path / "m.onnx", None)
    kept = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    assert kept["weight.fp16"].dtype == np.float16
    np.testing.assert_array_equal(kept["thresholds"], arrays["thresholds"])


def test_int8_quantizes_every_linear_layer_by_channel_and_nothing_else(quantized):
    """One block has four linear layers, and two heads follow; attention's two products keep fp32."""
    model = onnx.load(quantized / "int8.onnx")
    operations = Counter(n.op_type for n in model.graph.node)
    assert (operations["MatMulInteger"], operations["MatMul"], operations["Gemm"]) == (6, 2, 0)
    assert (operations["Conv"], operations["ConvInteger"], operations["LayerNormalization"]) == (
        1,
        0,
        3,
    )
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type == "MatMulInteger"]
    assert all(weights[n.input[1]].dtype == np.int8 for n in products)
    scales = [w for n, w in weights.items() if n.endswith("_scale")]
    assert sorted(len(s) for s in scales) == [10, 10, 192, 192, 576, 768]


def test_static_int8_quantizes_the_same_layers_and_their_inputs_by_calibrated_ranges(quantized):
    model = onnx.load(quantized / "int8-static.onnx")
    weights = {w.name for w in model.graph.initializer}
    made = {o: n for n in model.graph.node for o in n.output}
    products = [n for n in model.graph.node if n.op_type in ("MatMul", "Gemm")]
    from_weights = [
        n for n in products if (source := made.get(n.input[1])) and source.input[0] in weights
    ]
    assert (len(from_weights), len(products)) == (6, 8)
    for node in from_weights:
        assert [made[i].op_type for i in node.input[:2]] == ["DequantizeLinear"] * 2
        assert made[made[node.input[0]].input[0]].input[1] in weights  # the scale is a constant


def test_static_int8_gives_an_image_the_same_logits_in_any_batch_and_int8_does_not(
    quantized, shallow, sample
):
    pixels = sample(shallow(), 18).pixels
    off = {}
    for precision in ("int8", "int8-static"):
        session = onnxruntime.InferenceSession(
            quantized / f"{precision}.onnx", providers=["CPUExecutionProvider"]
        )
        alone, together = (
            session.run(["logits"], {"pixels": p})[0][0] for p in (pixels[:1], pixels)
        )
        off[precision] = np.abs(alone - together).max()
    assert off["int8-static"] < 1e-5 < 1e-4 < off["int8"]


def test_a_network_with_hardly_a_linear_layer_is_refused(onnx_file, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "MAX_RATIO", 0.01)
    with pytest.raises(ExportError, match=r"int8 would leave 4\d % of the bytes.*--quantize fp16"):
        quantize_onnx(onnx_file, "int8", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_quantized_is_one_line(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 999)
    with pytest.raises(ExportError, match=r"cannot be quantized to int8: .*Leave --quantize out"):
        quantize_onnx(tmp_path / "m.onnx", "int8", tmp_path / "quantized.onnx")


def test_nothing_of_the_quantizer_reaches_the_terminal(onnx_file, tmp_path, capfd):
    quantize_onnx(onnx_file, "int8", tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


def test_weights_beyond_the_range_of_fp16_fail(
    onnx_file, shallow, sample, verify_quantized, tmp_path
):
    proto = onnx.load(onnx_file)
    (weight,) = (w for w in proto.graph.initializer if w.name == "model.patch_embed.proj.weight")
    weight.CopyFrom(numpy_helper.from_array(1e5 + numpy_helper.to_array(weight), weight.name))
    onnx.save(proto, tmp_path / "wide.onnx")
    quantize_onnx(tmp_path / "wide.onnx", "fp16", tmp_path / "m.onnx")
    loaded = shallow()
    some = sample(loaded, 2)
    wanted = compute_reference(loaded.model, loaded.model_config, "avg-probs", some.pixels)
    with pytest.raises(ExportError, match="nan"):
        verify_quantized("onnx", tmp_path / "m.onnx", wanted, some, 0.01)


def test_quantization_that_ruins_the_network_fails(
    onnx_file, shallow, sample, verify_quantized, tmp_path, monkeypatch
):
    """Weights of four levels instead of 255."""

    def coarse(source, _):
        proto = onnx.load(source)
        for weight in proto.graph.initializer:
            values = numpy_helper.to_array(weight)
            if values.dtype == np.float32 and values.ndim == 2 and values.size >= quantize.LARGE:
                step = np.abs(values).max() / 2
                weight.CopyFrom(numpy_helper.from_array(np.rint(values / step) * step, weight.name))
        return proto

    monkeypatch.setitem(PRECISIONS, "int8", replace(PRECISIONS["int8"], quantize=coarse))
    monkeypatch.setattr(quantize, "MAX_RATIO", 2)
    quantize_onnx(onnx_file, "int8", tmp_path / "m.onnx")
    loaded = shallow()
    some = sample(loaded, 18)
    wanted = compute_reference(loaded.model, loaded.model_config, "avg-probs", some.pixels)
    with pytest.raises(ExportError, match="disagrees"):
        verify_quantized("onnx", tmp_path / "m.onnx", wanted, some, 0.15)


def test_a_file_is_as_fast_as_itself(onnx_file):
    image = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    assert 0.5 < measure_speedup(onnx_file, onnx_file, image) < 2

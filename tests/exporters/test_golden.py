"""The golden sample: a file that answers it otherwise is told apart, by its own runtime and without the model."""

from __future__ import annotations

import base64
import json

import numpy as np
import onnx
import pytest

from deitctl.errors import ExportError
from deitctl.exporters.formats import FORMATS
from deitctl.exporters.golden import (
    GOLDEN,
    TILE,
    Golden,
    enlarge,
    make_golden_input,
    make_golden_tile,
    read_golden,
)
from deitctl.exporters.metadata import collect_metadata
from deitctl.exporters.verification_images import compute_reference


def test_a_tile_is_enlarged_to_its_nearest_colors():
    tile = make_golden_tile()
    pixels = enlarge(tile, 20)
    assert pixels.shape == (1, 20, 20, 3)
    for y, x in ((0, 0), (19, 0), (0, 19), (7, 13)):
        assert (pixels[0, y, x] == tile[8 * y // 20, 8 * x // 20]).all()
    np.testing.assert_array_equal(enlarge(tile, TILE)[0], tile)


def test_swapped_channels_and_transposed_axes_are_other_samples():
    pixels = enlarge(make_golden_tile(), 32)
    assert not (pixels[..., 0] == pixels[..., 2]).all()
    assert not (pixels == pixels.transpose(0, 2, 1, 3)).all()


def test_the_sample_holds_the_input_and_the_models_output(shallow, network):
    loaded = shallow()
    metadata = collect_metadata(network(loaded, "dist"), loaded.model_config, "onnx")
    sample = json.loads(metadata[GOLDEN])
    np.testing.assert_array_equal(
        np.frombuffer(base64.b64decode(sample["tile"]), np.uint8), make_golden_tile().ravel()
    )
    wanted = compute_reference(
        loaded.model, loaded.model_config, "dist", enlarge(make_golden_tile(), 32)
    )[0, 0]
    np.testing.assert_allclose(sample["logits"], wanted, rtol=1e-5)
    golden = read_golden(metadata, 32)
    np.testing.assert_array_equal(golden.pixels, enlarge(make_golden_tile(), 32))
    assert golden.check(wanted) < 1e-5


def test_the_difference_is_relative_to_the_spread_of_the_logits():
    """Logits 1 and 5 have a standard deviation of 2; both off by 1 is half of that."""
    golden = Golden(make_golden_input(8), np.array([1.0, 5.0], dtype=np.float32), 0.5)
    assert golden.check(np.array([2.0, 4.0], dtype=np.float32)) == pytest.approx(0.5)
    for wrong in ([2.1, 4.0], [np.nan, 5.0], [1.0]):
        with pytest.raises(ExportError, match="golden sample"):
            golden.check(np.array(wrong, dtype=np.float32))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"tile": "AA=="}', '{"tile": 1, "logits": [1], "tolerance": 1}']
)
def test_a_sample_that_cannot_be_read_is_one_error(text):
    with pytest.raises(ExportError, match="golden sample cannot be read"):
        read_golden({GOLDEN: text}, 32)


@pytest.mark.parametrize("change", ["logits", "weights"])
def test_an_export_whose_golden_sample_or_weights_were_changed_fails(
    change, onnx_file, shallow, sample, verify_fp32, tmp_path
):
    proto = onnx.load(onnx_file)
    if change == "logits":
        (entry,) = (e for e in proto.metadata_props if e.key == GOLDEN)
        changed = json.loads(entry.value)
        changed["logits"][0] += 0.1
        entry.value = json.dumps(changed)
    else:
        (bias,) = (w for w in proto.graph.initializer if w.name == "model.head.bias")
        bias.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias)[::-1].copy(), bias.name)
        )
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = shallow()
    some = sample(loaded, 2)
    wanted = compute_reference(loaded.model, loaded.model_config, "avg-probs", some.pixels)
    golden = read_golden(FORMATS["onnx"].read_metadata(tmp_path / "m.onnx"), 32)
    with pytest.raises(ExportError, match="fails its golden sample"):
        verify_fp32("onnx", tmp_path / "m.onnx", wanted, some, golden)

"""The golden sample: a file that answers it otherwise is told apart, by its own runtime and without the model."""

from __future__ import annotations

import base64
import json

import numpy as np
import onnx
import pytest

from deitctl.errors import ExportError
from deitctl.exporters import FORMATS
from deitctl.exporters.golden import GOLDEN, TILE, enlarge, golden_sample, golden_tile
from deitctl.exporters.verify import ONNX_TOLERANCE, reference, verify


def test_a_tile_is_enlarged_to_its_nearest_colours():
    tile = golden_tile()
    pixels = enlarge(tile, 20)
    assert pixels.shape == (1, 20, 20, 3)
    for y, x in ((0, 0), (19, 0), (0, 19), (7, 13)):
        assert (pixels[0, y, x] == tile[8 * y // 20, 8 * x // 20]).all()
    np.testing.assert_array_equal(enlarge(tile, TILE)[0], tile)


def test_swapped_channels_and_transposed_axes_are_other_samples():
    pixels = enlarge(golden_tile(), 32)
    assert not (pixels[..., 0] == pixels[..., 2]).all()
    assert not (pixels == pixels.transpose(0, 2, 1, 3)).all()


def test_the_sample_holds_the_input_and_the_models_answer(shallow, network):
    loaded = shallow()
    sample = json.loads(golden_sample(network(loaded, "dist"), loaded.card))
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(sample["tile"]), np.uint8), golden_tile().ravel())
    wanted = reference(loaded.model, loaded.card, "dist", enlarge(golden_tile(), 32))[0, 0]
    np.testing.assert_allclose(sample["logits"], wanted, rtol=1e-5)


@pytest.mark.parametrize("change", ["logits", "weights"])
def test_a_file_that_does_not_answer_its_golden_sample_does_not_pass(change, onnx_file, shallow, sample, tmp_path):
    proto = onnx.load(onnx_file)
    if change == "logits":
        (entry,) = (e for e in proto.metadata_props if e.key == GOLDEN)
        said = json.loads(entry.value)
        said["logits"][0] += 0.1
        entry.value = json.dumps(said)
    else:
        (bias,) = (w for w in proto.graph.initializer if w.name == "model.head.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias)[::-1].copy(), bias.name))
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = shallow()
    some = sample(loaded, 2)
    wanted = reference(loaded.model, loaded.card, "avg-probs", some.pixels)
    with pytest.raises(ExportError, match="its golden sample is answered"):
        verify(tmp_path / "m.onnx", FORMATS["onnx"].program_file, wanted, some, tolerance=ONNX_TOLERANCE)

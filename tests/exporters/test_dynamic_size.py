"""A file that resizes sees what `eval_transform` sees, to a level or two of 255, and one that does not is caught."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from onnx import helper
from PIL import Image

from deitctl.data.dataset import FileDataset
from deitctl.data.eval_transform import MAX_ASPECT, eval_transform, has_extreme_aspect
from deitctl.errors import ExportError
from deitctl.exporters import dynamic_size
from deitctl.exporters.dynamic_size import (
    build_front,
    make_dynamic,
    make_golden_view,
    require_resizable,
)
from deitctl.exporters.golden import make_golden_input, read_golden
from deitctl.exporters.metadata import collect_metadata
from deitctl.exporters.onnx import IR_VERSION, OPSET, export_onnx
from deitctl.exporters.quantize import quantize_onnx
from deitctl.exporters.runner import load_onnx
from deitctl.exporters.verification_images import compute_reference, read_images
from deitctl.exporters.verify_whole_images import MAX_LEVELS, verify_dynamic_size
from deitctl.models.model_config import Preprocessing

SIZES = ((200, 133), (90, 140), (47, 64), (32, 32), (150, 20), (33, 70))


@cache
def front(pre: Preprocessing) -> onnxruntime.InferenceSession:
    """What comes before the network, alone."""
    graph = onnx.parser.parse_graph(build_front(pre))
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it says which constants this preprocessing does not need
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def seen(images, pre):
    return front(pre).run(None, {"pixels": np.stack([np.asarray(image) for image in images])})[0]


def expected_pixels(image, pre):
    return eval_transform(image, pre).transpose(1, 2, 0)


def levels(image, pre):
    return np.abs(seen([image], pre)[0].astype(int) - expected_pixels(image, pre))


PREPROCESSING = st.builds(
    Preprocessing,
    img_size=st.sampled_from([31, 32, 64]),
    crop_pct=st.sampled_from([0.875, 0.9, 0.95, 1.0, 1.2]),
    crop_mode=st.sampled_from(["center", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)


@given(
    width=st.integers(1, 260), height=st.integers(1, 260), pre=PREPROCESSING, seed=st.integers(0, 9)
)
@example(
    width=35, height=32, pre=Preprocessing(img_size=32, crop_pct=1.0), seed=0
)  # 1.5 pixels over: begins at 2
@example(
    width=32, height=33, pre=Preprocessing(img_size=32, crop_pct=1.0), seed=0
)  # 0.5 pixels over: begins at 0
@example(width=64, height=64, pre=Preprocessing(img_size=64, crop_pct=1.0), seed=0)  # nothing to do
@example(
    width=200, height=90, pre=Preprocessing(img_size=64, crop_pct=1.2), seed=0
)  # 53 high: black above and below
@example(width=1, height=1, pre=Preprocessing(img_size=64, crop_pct=0.9), seed=0)
def test_the_network_sees_what_it_sees_with_pillow(width, height, pre, seed, make_image):
    assume(not has_extreme_aspect(width, height, pre))
    off = levels(make_image(width, height, seed), pre)
    assert off.max() <= MAX_LEVELS
    assert (off > 0).mean() < 0.1


@pytest.mark.parametrize("over", range(8))
@pytest.mark.parametrize("turned", [False, True])
def test_the_centre_is_the_same_pixel_for_every_margin(over, turned):
    """No resize: 32 pixels out of 32 to 39. Every pixel has a value of its own, so equal means the same place."""
    pixels = np.arange(32 * (32 + over) * 3).reshape(32, -1, 3).astype(np.uint16)
    pixels = np.stack(
        [pixels[..., 0] % 251, pixels[..., 0] // 251, pixels[..., 2] % 7], axis=-1
    ).astype(np.uint8)
    image = Image.fromarray(pixels.transpose(1, 0, 2).copy() if turned else pixels)
    pre = Preprocessing(img_size=32, crop_pct=1.0)
    assert np.array_equal(seen([image], pre)[0], expected_pixels(image, pre))


def test_what_is_too_small_gets_a_black_edge_as_here(make_image):
    pre = Preprocessing(img_size=32, crop_pct=1.3)
    assert pre.resize_to == 24
    view = seen([make_image(48, 24)], pre)[0]
    assert not view[:4].any()
    assert not view[28:].any()
    assert view[4:28].any(axis=(1, 2)).all()
    assert np.array_equal(view, expected_pixels(make_image(48, 24), pre))


def test_two_images_of_one_size_are_seen_as_each_alone(make_image):
    pre = Preprocessing(img_size=32)
    both = [make_image(90, 61, seed) for seed in (1, 2)]
    assert np.array_equal(seen(both, pre), np.concatenate([seen([image], pre) for image in both]))


def test_an_interpolation_that_is_unsupported_is_bicubic_in_both(make_image):
    assert (
        levels(make_image(90, 61), Preprocessing(img_size=32, interpolation="random")).max()
        <= MAX_LEVELS
    )


@pytest.mark.parametrize("interpolation", ["lanczos", "nearest", "box"])
def test_what_onnx_does_not_do_as_pillow_is_refused(interpolation):
    with pytest.raises(ExportError, match=rf"bicubic and bilinear, not with {interpolation}"):
        require_resizable(Preprocessing(interpolation=interpolation))


def test_images_much_longer_than_wide_are_for_other_files():
    pre = Preprocessing()
    assert has_extreme_aspect(9, 9 * MAX_ASPECT + 1, pre)
    assert has_extreme_aspect(9 * MAX_ASPECT + 1, 9, pre)
    assert not has_extreme_aspect(9, 9 * MAX_ASPECT, pre)
    assert has_extreme_aspect(9, 9 * MAX_ASPECT, Preprocessing(img_size=1024)), (
        "1137 x 113,700 pixels"
    )
    assert not has_extreme_aspect(
        9, 9 * MAX_ASPECT, Preprocessing(img_size=1024, crop_mode="squash")
    )


@pytest.fixture(scope="module")
def loaded(shallow):
    return shallow()


@pytest.fixture
def make(onnx_file, loaded, tmp_path):
    """Write the dynamic-size file of the distilled DeiT of one block, its front changed as the test says."""
    pre = loaded.model_config.preprocessing

    def write(change=None, source=onnx_file, monkeypatch=None):
        golden = compute_reference(
            loaded.model, loaded.model_config, "avg-probs", make_golden_view(pre)
        )[0, 0]
        if change:
            text = build_front(pre)
            assert change[0] in text
            monkeypatch.setattr(dynamic_size, "build_front", lambda _: text.replace(*change))
        make_dynamic(source, pre, golden, tmp_path / "dynamic.onnx")
        return tmp_path / "dynamic.onnx"

    return write


@pytest.fixture
def verify(loaded, tmp_path, make_image):
    """Verify a file on images of many shapes."""

    def run(path, tolerance=None, sizes=SIZES, golden_off=0.0):
        files = []
        for number, size in enumerate(sizes):
            files.append(str(tmp_path / f"{number}.png"))
            make_image(*size, seed=number).save(files[-1])
        source = FileDataset(files, np.zeros(len(files), dtype=np.int64), ("",))
        pre = loaded.model_config.preprocessing
        sample = read_images(source, pre, len(files))
        answers = compute_reference(loaded.model, loaded.model_config, "avg-probs", sample.pixels)
        golden = read_golden({p.key: p.value for p in onnx.load(path).metadata_props}, pre.img_size)
        golden = golden._replace(logits=golden.logits + golden_off)
        return verify_dynamic_size(path, golden, answers, source, sample, pre, tolerance=tolerance)

    return run


def test_whole_images_of_many_shapes_get_the_models_outputs(make, verify):
    result = verify(make())
    assert (result.num_verified, result.top1_agreement) == (len(SIZES), 100)
    assert result.relative_diff is None
    assert result.max_abs_diff < 0.01
    fraction = float(re.match(r"Whole images: (\S+) % of the pixel values", result.remark)[1])
    assert fraction < 1


@pytest.mark.parametrize(
    "change",
    [
        ("evened = Round (halves)", "evened = Floor (halves)"),
        (
            'mode = "cubic", cubic_coeff_a = -0.5, antialias = 1, exclude_outside = 1',
            'mode = "linear"',
        ),
        ("antialias = 1, exclude_outside = 1", "antialias = 1"),
        ("-0.5", "-0.75"),
        ('mode = "cubic", cubic_coeff_a = -0.5', 'mode = "linear"'),
    ],
    ids=["one pixel beside", "no antialiasing", "edges", "another cubic", "bilinear"],
)
def test_a_file_that_resizes_or_crops_otherwise_fails(change, make, verify, monkeypatch):
    path = make(change, monkeypatch=monkeypatch)
    with pytest.raises(
        ExportError, match=r"preprocesses images unlike the model: pixel values differ by up to \d+"
    ):
        verify(path)


def test_a_network_whose_input_is_not_the_output_called_seen_fails(make, verify):
    path = make()
    model = onnx.load(path)
    flip = helper.make_node("Gather", ["seen", "backwards"], ["swapped"], axis=3)
    model.graph.initializer.append(
        helper.make_tensor("backwards", onnx.TensorProto.INT64, [3], [2, 1, 0])
    )
    for node in model.graph.node:
        node.input[:] = ["swapped" if name == "seen" else name for name in node.input]
    place = next(n for n, node in enumerate(model.graph.node) if "seen" in node.output)
    model.graph.node.insert(place + 1, flip)
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"fails its golden sample"):
        verify(path)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.01), ("int8", 0.15)])
def test_a_rounded_file_takes_whole_images_too(
    precision, tolerance, make, verify, onnx_file, tmp_path
):
    quantize_onnx(onnx_file, precision, tmp_path / "rounded.onnx")
    result = verify(make(source=tmp_path / "rounded.onnx"), tolerance=tolerance)
    assert (result.num_verified, result.top1_agreement) == (len(SIZES), 100)
    assert 0 < result.relative_diff < tolerance


def test_elongated_images_are_left_out_and_nothing_else_is_refused(make, verify):
    path = make()
    assert verify(path, sizes=((40, 30), (2, 300))).num_verified == 1
    with pytest.raises(ExportError, match="too elongated"):
        verify(path, sizes=((2, 300),))


def test_the_file_says_that_it_resizes_and_has_free_sides(make, onnx_file):
    model = onnx.load(make())
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION
    (pixels,) = model.graph.input
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (pixels, *model.graph.output)}
    assert [d.dim_param or d.dim_value for d in shapes["pixels"]] == ["batch", "height", "width", 3]
    assert [d.dim_param or d.dim_value for d in shapes["seen"]] == ["batch", 32, 32, 3]
    assert list(shapes) == ["pixels", "logits", "probabilities", "seen"]
    said, before = (
        {p.key: p.value for p in m.metadata_props} for m in (model, onnx.load(onnx_file))
    )
    preprocessing = json.loads(said["preprocessing"])
    assert preprocessing == json.loads(before["preprocessing"]) | {
        "resize": "inside the file",
        "layout": "NHWC uint8, any height and width",
    }
    assert said["class_names"] == before["class_names"]


def test_the_golden_sample_is_an_image_that_the_file_resizes(make, onnx_file):
    """S x S pixels become S / 0.9 and are cut to S again, so the answer is another than that of the file inside."""
    path = make()
    said, before = (
        {p.key: p.value for p in onnx.load(f).metadata_props} for f in (path, onnx_file)
    )
    sample = json.loads(said["golden_sample"])
    pixels = make_golden_input(32)
    logits = load_onnx(str(path))(pixels)[0][0]
    assert np.sqrt(np.mean((logits - sample["logits"]) ** 2)) <= sample["tolerance"] * np.std(
        sample["logits"]
    )
    inside = json.loads(before["golden_sample"])["logits"]
    assert np.sqrt(np.mean((logits - inside) ** 2)) > sample["tolerance"] * np.std(inside)


def test_a_golden_sample_with_other_outputs_is_caught(make, verify):
    off = np.linspace(-0.01, 0.01, 10, dtype=np.float32)
    with pytest.raises(
        ExportError,
        match=r"fails its golden sample: logits differ by 0\.\d+ .* where 0\.001 is allowed",
    ):
        verify(make(), golden_off=off)


def test_the_file_runs_where_torch_pillow_and_deitctl_cannot_be_imported(
    make, run_without, tmp_path, make_image
):
    (tmp_path / "in").mkdir()
    for number, size in enumerate(SIZES):
        np.save(tmp_path / "in" / f"{number:06d}.npy", np.asarray(make_image(*size)))
    run_without(["torch", "deitctl", "timm", "PIL"], "onnx", make(), "in", "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (2, len(SIZES), 10)
    assert np.load(tmp_path / "seen.npy").shape == (len(SIZES), 32, 32, 3)


@pytest.mark.parametrize("changed", [{"crop_mode": "squash"}, {"crop_pct": 1.2}], ids=str)
def test_a_squashed_and_a_padded_image_reach_the_network_too(
    changed, loaded, network, make_image, tmp_path
):
    model_config = replace(
        loaded.model_config, preprocessing=replace(loaded.model_config.preprocessing, **changed)
    )
    inside = network(replace(loaded, model_config=model_config), "cls")
    export_onnx(
        inside, model_config, collect_metadata(inside, model_config, "onnx"), tmp_path / "m.onnx"
    )
    golden = compute_reference(
        loaded.model, model_config, "cls", make_golden_view(model_config.preprocessing)
    )[0, 0]
    make_dynamic(tmp_path / "m.onnx", model_config.preprocessing, golden, tmp_path / "dynamic.onnx")
    image = make_image(90, 47)
    answer = load_onnx(str(tmp_path / "dynamic.onnx"))(np.asarray(image)[None])
    expected = compute_reference(
        loaded.model, model_config, "cls", expected_pixels(image, model_config.preprocessing)[None]
    )
    np.testing.assert_allclose(answer[0], expected[0], atol=0.01)

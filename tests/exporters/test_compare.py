"""Comparison of an export's outputs with its model's: what passes, what fails, and which broken exports are caught."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from deitctl.errors import ExportError
from deitctl.exporters.compare import CLEAR, compare, compare_quantized, run_on_pixels
from deitctl.exporters.formats import FORMATS
from deitctl.exporters.golden import Golden, make_golden_input, read_golden
from deitctl.exporters.metadata import collect_metadata
from deitctl.exporters.network import ExportedClassifier
from deitctl.exporters.torch_export import export_torch
from deitctl.exporters.verification_images import compute_reference


def name_images(outputs: np.ndarray) -> list[str]:
    return [f"{i}.png" for i in range(outputs.shape[1])]


def check(expected, outputs, tolerance=1e-3):
    return compare(outputs, expected, name_images(expected), tolerance)


def check_quantized(expected, outputs, tolerance):
    """Compare logits [N,K]."""
    expected, outputs = (np.array([logits], dtype=np.float32) for logits in (expected, outputs))
    return compare_quantized(outputs, expected, name_images(expected), tolerance)


@pytest.mark.parametrize("count", [1, 2, 18])
def test_an_exported_file_passes(count, shallow, onnx_file, sample, verify_fp32):
    loaded = shallow()
    images = sample(loaded, count)
    expected = compute_reference(loaded.model, loaded.model_config, "avg-probs", images.pixels)
    result = verify_fp32("onnx", onnx_file, expected, images)
    assert (result.num_verified, result.top1_agreement, result.differing) == (count, 100, ())
    assert result.max_abs_diff < 1e-4


def test_a_file_with_other_weights_fails(shallow, onnx_file, sample, verify_fp32):
    loaded = shallow()
    with torch.no_grad():
        loaded.model.head.weight[0, 0] += 0.1
    images = sample(loaded)
    expected = compute_reference(loaded.model, loaded.model_config, "avg-probs", images.pixels)
    with pytest.raises(
        ExportError, match="disagrees with the model on 18 images: outputs differ by up to"
    ):
        verify_fp32("onnx", onnx_file, expected, images)


def test_a_file_with_other_preprocessing_fails(shallow, onnx_file, sample, verify_fp32):
    loaded = shallow()
    pre = replace(loaded.model_config.preprocessing, mean=(0.5, 0.5, 0.5))
    model_config = replace(loaded.model_config, preprocessing=pre)
    images = sample(loaded)
    expected = compute_reference(loaded.model, model_config, "avg-probs", images.pixels)
    with pytest.raises(ExportError, match="disagrees"):
        verify_fp32("onnx", onnx_file, expected, images)


def test_a_torch_file_passes(shallow, network, sample, verify_fp32, tmp_path):
    loaded, path = shallow(), tmp_path / "m.pt2"
    export_torch(network(loaded, "dist"), loaded.model_config, {}, path)
    images = sample(loaded, 18)
    expected = compute_reference(loaded.model, loaded.model_config, "dist", images.pixels)
    assert verify_fp32("torch", path, expected, images).num_verified == 18


def test_a_damaged_file_is_an_error_with_the_reason(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"does not run in a fresh process: .*m.onnx"):
        run_on_pixels("onnx", tmp_path / "m.onnx", np.zeros((2, 32, 32, 3), dtype=np.uint8))


def test_a_process_without_a_message_is_named_by_its_exit_code(replace_runner, tmp_path):
    replace_runner("raise SystemExit(7)")
    with pytest.raises(ExportError, match="does not run in a fresh process: exit code 7"):
        run_on_pixels("onnx", tmp_path / "m.onnx", np.zeros((1, 2, 2, 3), dtype=np.uint8))


def test_outputs_with_nan_fail():
    expected = np.eye(3, dtype=np.float32)[None]
    with pytest.raises(ExportError, match="nan"):
        check(expected, expected * np.nan)


def test_another_top1_class_fails_although_the_difference_is_allowed():
    expected = np.array([[[1.0, 0.0], [0.0, 1.0]]], dtype=np.float32)
    outputs = np.array([[[0.4, 0.6], [0.0, 1.0]]], dtype=np.float32)
    with pytest.raises(ExportError, match=r"top-1 agrees on 50.0 % \(not on 0.png\)"):
        check(expected, outputs, tolerance=0.9)


def test_a_tie_may_fall_to_either_side():
    expected = np.array([[[1.0, 0.9999], [0.0, 1.0]]], dtype=np.float32)
    outputs = np.array([[[0.9999, 1.0], [0.0, 1.0]]], dtype=np.float32)
    result = check(expected, outputs)
    assert (result.top1_agreement, result.differing, result.preds) == (50, ("0.png",), (1, 1))


def test_outputs_of_another_shape_fail():
    with pytest.raises(ExportError, match="shape"):
        check(np.zeros((1, 2, 3), dtype=np.float32), np.zeros((1, 2, 4), dtype=np.float32))
    with pytest.raises(ExportError, match="shape"):
        check_quantized([[1.0, 0.0]], [[1.0, 0.0, 0.0]], 0.15)


def test_the_quantized_difference_is_relative_to_the_spread_around_each_images_mean():
    """Logits 10 +- 2 have an RMS of 2 around their mean; all of them half a unit off is a quarter of that."""
    expected, outputs = [[12.0, 8.0], [8.0, 12.0]], [[12.5, 8.5], [7.5, 11.5]]
    result = check_quantized(expected, outputs, 0.26)
    assert result.relative_diff == pytest.approx(0.25)
    assert (result.num_verified, result.max_abs_diff) == (2, 0.5)
    assert (result.top1_agreement, result.differing) == (100, ())
    with pytest.raises(
        ExportError, match=r"logits differ by 0.25 of their spread where 0.24 is allowed"
    ):
        check_quantized(expected, outputs, 0.24)


def test_a_quantized_image_whose_classes_are_close_may_change_sides():
    result = check_quantized([[0.1, 0.0], [2.0, 0.0]], [[0.0, 0.1], [2.0, 0.0]], 0.15)
    assert (result.top1_agreement, result.differing) == (50, ("0.png",))


def test_a_quantized_clear_image_may_not_change_sides():
    """One of four hundred flips: the RMS is a twentieth, and its classes were a whole unit apart."""
    expected = np.tile([1.0, 0.0], (400, 1))
    outputs = expected.copy()
    outputs[7] = [0.0, 1.0]
    assert CLEAR * 0.05 < 1
    with pytest.raises(ExportError, match=r"top-1 agrees on 99.8 %, and 7.png is a clear image"):
        check_quantized(expected, outputs, 0.15)


def test_quantized_outputs_with_nan_fail():
    with pytest.raises(ExportError, match="nan"):
        check_quantized([[1.0, 0.0]], [[np.nan, 0.0]], 0.15)


def test_a_single_class_has_no_spread_and_passes():
    assert check_quantized([[3.0], [4.0]], [[3.0], [4.0]], 0.15).relative_diff == 0


class WrongMean(ExportedClassifier):
    """0.5 where ImageNet's mean belongs: what a reader without our metadata assumes."""

    def __init__(self, model, model_config, head):
        super().__init__(model, model_config, head)
        self.preprocessing = replace(model_config.preprocessing, mean=(0.5, 0.5, 0.5))


class SwappedHeads(ExportedClassifier):
    """The distillation head's logits where the class head's belong."""

    def __init__(self, model, model_config, head):
        super().__init__(model, model_config, {"cls": "dist", "dist": "cls"}[head])


class SwappedChannels(ExportedClassifier):
    """BGR where RGB belongs, as OpenCV reads images."""

    def forward(self, pixels):
        return super().forward(pixels.flip(-1))


class TransposedAxes(ExportedClassifier):
    """Columns where rows belong."""

    def forward(self, pixels):
        return super().forward(pixels.transpose(1, 2))


BROKEN = (WrongMean, SwappedHeads, SwappedChannels, TransposedAxes)


@pytest.fixture(scope="module")
def broken(shallow, sample, tmp_path_factory):
    """Write a broken file with the right model's metadata; return it with that model's sample, outputs and images."""

    @cache
    def make(kind):
        loaded = shallow()
        path: Path = tmp_path_factory.mktemp("broken") / "m.onnx"
        model, model_config = loaded.model, loaded.model_config
        right = ExportedClassifier(model, model_config, "cls")
        metadata = collect_metadata(right, model_config, "onnx")
        FORMATS["onnx"].write(kind(model, model_config, "cls"), model_config, metadata, path)
        digits = sample(loaded)
        # digits are gray: with swapped channels they would be the same
        red, green, blue = np.moveaxis(digits.pixels, 3, 0)
        images = digits._replace(pixels=np.stack([red // 2, 255 - green, blue], axis=3))
        expected = compute_reference(model, model_config, "cls", images.pixels)
        return path, read_golden(metadata, 32), expected, images

    return make


@pytest.mark.parametrize("kind", BROKEN)
def test_the_golden_sample_catches_a_broken_export(kind, broken, verify_fp32):
    path, golden, expected, images = broken(kind)
    with pytest.raises(ExportError, match="fails its golden sample"):
        verify_fp32("onnx", path, expected, images, golden)


@pytest.mark.parametrize("kind", BROKEN)
def test_images_catch_a_broken_export_whose_golden_sample_is_as_broken(kind, broken, verify_fp32):
    path, _, expected, images = broken(kind)
    logits = run_on_pixels("onnx", path, make_golden_input(32))[0, 0]
    with pytest.raises(
        ExportError, match=r"disagrees with the model on 18 images: outputs differ by up to"
    ):
        verify_fp32("onnx", path, expected, images, Golden(make_golden_input(32), logits, 1e-3))


def test_an_export_that_is_not_broken_passes(broken, verify_fp32):
    path, golden, expected, images = broken(ExportedClassifier)
    assert verify_fp32("onnx", path, expected, images, golden).top1_agreement == 100


def test_the_two_heads_of_these_tests_differ(shallow):
    """Otherwise swapped heads could not be caught."""
    loaded = shallow()
    cls, dist = (
        compute_reference(loaded.model, loaded.model_config, head, make_golden_input(32))[0, 0]
        for head in ("cls", "dist")
    )
    assert np.abs(cls - dist).max() > 0.1

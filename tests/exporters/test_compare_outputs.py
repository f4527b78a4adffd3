from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from deitctl.data.dataset import FileDataset, select
from deitctl.errors import ExportError
from deitctl.exporters import FORMATS
from deitctl.exporters.compare_outputs import (
    ONNX_TOLERANCE,
    TORCH_TOLERANCE,
    Images,
    images,
    reference,
    verify,
)
from deitctl.exporters.torch_export import export_torch
from deitctl.models.model_config import Preprocessing

PRE = Preprocessing(img_size=32)


def files(*paths):
    return FileDataset(tuple(map(str, paths)), np.zeros(len(paths), dtype=np.int64), ("",))


@pytest.fixture
def reply(tmp_path):
    """Verify against a process that gives `given` whatever the images are."""

    def run(wanted, given, tolerance=1e-3):
        np.save(tmp_path / "given.npy", given)
        program = tmp_path / "reply.py"
        program.write_text("import shutil, sys; shutil.copy(sys.argv[1], sys.argv[3])")
        count = wanted.shape[1]
        sample = Images(
            np.zeros((count, 2, 2, 3), dtype=np.uint8), tuple(f"{i}.png" for i in range(count))
        )
        return verify(tmp_path / "given.npy", program, wanted, sample, tolerance=tolerance)

    return run


def test_images_are_spread_over_the_classes_in_the_order_of_the_data(digit_datasets):
    by_class = select(digit_datasets[1], np.argsort(digit_datasets[1].labels, kind="stable"))
    sample = images(by_class, PRE, 20)
    assert sample.pixels.shape == (20, 32, 32, 3)
    assert sample.pixels.dtype == np.uint8
    index = {by_class.name(i): int(by_class.labels[i]) for i in range(len(by_class.labels))}
    assert len({index[name] for name in sample.names}) == 10


def test_unreadable_images_are_replaced_by_others(image_folder):
    root = image_folder({"a": 6})
    paths = sorted((root / "a").iterdir())
    paths[0].write_bytes(b"no image")
    sample = images(files(*paths), PRE, 3)
    assert len(sample.names) == 3
    assert str(paths[0]) not in sample.names


def test_more_images_than_there_are_means_all(image_folder):
    root = image_folder({"a": 3})
    assert len(images(files(*(root / "a").iterdir()), PRE, 64).names) == 3


def test_no_readable_image_is_an_error(tmp_path):
    with pytest.raises(ExportError, match="None of 1 images"):
        images(files(tmp_path / "absent.png"), PRE, 4)


@pytest.mark.parametrize("count", [1, 2, 18])
def test_an_exported_file_passes(count, shallow, onnx_file, sample):
    loaded = shallow()
    some = sample(loaded, count)
    wanted = reference(loaded.model, loaded.model_config, "avg-probs", some.pixels)
    found = verify(onnx_file, FORMATS["onnx"].program_file, wanted, some, tolerance=ONNX_TOLERANCE)
    assert (found.num_images, found.top1_agreement, found.differing) == (count, 100, [])
    assert found.max_abs_diff < 1e-4


def test_a_file_with_other_weights_fails(shallow, onnx_file, sample):
    loaded = shallow()
    with torch.no_grad():
        loaded.model.head.weight[0, 0] += 0.1
    some = sample(loaded)
    wanted = reference(loaded.model, loaded.model_config, "avg-probs", some.pixels)
    with pytest.raises(
        ExportError, match="disagrees with the model on 18 images: answers differ by up to"
    ):
        verify(onnx_file, FORMATS["onnx"].program_file, wanted, some, tolerance=ONNX_TOLERANCE)


def test_a_file_with_other_preprocessing_fails(shallow, onnx_file, sample):
    loaded = shallow()
    model_config = replace(
        loaded.model_config,
        preprocessing=replace(loaded.model_config.preprocessing, mean=(0.5, 0.5, 0.5)),
    )
    some = sample(loaded)
    wanted = reference(loaded.model, model_config, "avg-probs", some.pixels)
    with pytest.raises(ExportError, match="disagrees"):
        verify(onnx_file, FORMATS["onnx"].program_file, wanted, some, tolerance=ONNX_TOLERANCE)


def test_a_torch_file_passes(shallow, network, sample, tmp_path):
    loaded, path = shallow(), tmp_path / "m.pt2"
    export_torch(network(loaded, "dist"), loaded.model_config, {}, path)
    some = sample(loaded, 18)
    wanted = reference(loaded.model, loaded.model_config, "dist", some.pixels)
    assert (
        verify(
            path, FORMATS["torch"].program_file, wanted, some, tolerance=TORCH_TOLERANCE
        ).num_images
        == 18
    )


def test_a_damaged_file_is_an_error_with_the_reason(shallow, sample, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no graph")
    some = sample(shallow(), 2)
    with pytest.raises(ExportError, match=r"does not run in a fresh process: .*m.onnx"):
        verify(
            tmp_path / "m.onnx",
            FORMATS["onnx"].program_file,
            np.zeros((2, 2, 10)),
            some,
            tolerance=1e-3,
        )


def test_answers_that_are_no_numbers_fail(reply):
    wanted = np.eye(3, dtype=np.float32)[None]
    with pytest.raises(ExportError, match="nan"):
        reply(wanted, wanted * np.nan)


def test_another_first_class_fails_although_the_difference_is_allowed(reply):
    wanted = np.array([[[1.0, 0.0], [0.0, 1.0]]], dtype=np.float32)
    given = np.array([[[0.4, 0.6], [0.0, 1.0]]], dtype=np.float32)
    with pytest.raises(ExportError, match=r"top-1 agrees on 50.0 % \(not on 0.png\)"):
        reply(wanted, given, tolerance=0.9)


def test_a_tie_may_fall_to_either_side(reply):
    wanted = np.array([[[1.0, 0.9999], [0.0, 1.0]]], dtype=np.float32)
    given = np.array([[[0.9999, 1.0], [0.0, 1.0]]], dtype=np.float32)
    found = reply(wanted, given)
    assert (found.top1_agreement, found.differing) == (50, ["0.png"])


def test_answers_of_another_shape_fail(reply):
    with pytest.raises(ExportError, match="shape"):
        reply(np.zeros((1, 2, 3), dtype=np.float32), np.zeros((1, 2, 4), dtype=np.float32))

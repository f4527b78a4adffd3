"""Exports that are broken as exports break: each is caught by the images, and each by the golden sample alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from deitctl.errors import ExportError
from deitctl.exporters import FORMATS
from deitctl.exporters.compare_outputs import ONNX_TOLERANCE, answers_to, reference, verify
from deitctl.exporters.golden import Golden, golden_input, read_golden
from deitctl.exporters.metadata import metadata_of
from deitctl.exporters.network import ExportedClassifier

PROGRAM = FORMATS["onnx"].program_file


class WrongMean(ExportedClassifier):
    """0.5 where ImageNet's mean belongs: what a reader without our metadata assumes."""

    def __init__(self, model, model_config, head):
        super().__init__(model, model_config, head)
        self.preprocessing = replace(model_config.preprocessing, mean=(0.5, 0.5, 0.5))


class SwappedHeads(ExportedClassifier):
    """The distillation head's answer where the class head's belongs."""

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
    """A broken file whose metadata are the right model's, that model's answers to some images, and the images."""

    @cache
    def make(kind):
        loaded = shallow()
        path = tmp_path_factory.mktemp("broken") / "m.onnx"
        said = metadata_of(
            ExportedClassifier(loaded.model, loaded.model_config, "cls"),
            loaded.model_config,
            "onnx",
        )
        FORMATS["onnx"].write(
            kind(loaded.model, loaded.model_config, "cls"), loaded.model_config, said, path
        )
        digits = sample(loaded)
        red, green, blue = np.moveaxis(
            digits.pixels, 3, 0
        )  # digits are gray, and gray is no other with its channels swapped
        some = digits._replace(pixels=np.stack([red // 2, 255 - green, blue], axis=3))
        return (
            path,
            read_golden(said, 32),
            reference(loaded.model, loaded.model_config, "cls", some.pixels),
            some,
        )

    return make


@pytest.mark.parametrize("kind", BROKEN)
def test_the_golden_sample_catches_it(kind, broken):
    path, golden, wanted, some = broken(kind)
    with pytest.raises(ExportError, match="golden sample is answered"):
        verify(path, PROGRAM, wanted, some, tolerance=ONNX_TOLERANCE, golden=golden)


@pytest.mark.parametrize("kind", BROKEN)
def test_images_catch_it_where_the_golden_sample_is_as_broken(kind, broken):
    path, _, wanted, some = broken(kind)
    as_broken = Golden(golden_input(32), answers_to(golden_input(32), path, PROGRAM)[0, 0], 1e-3)
    with pytest.raises(
        ExportError, match=r"disagrees with the model on 18 images: answers differ by up to"
    ):
        verify(path, PROGRAM, wanted, some, tolerance=ONNX_TOLERANCE, golden=as_broken)


def test_what_is_not_broken_passes(broken):
    path, golden, wanted, some = broken(ExportedClassifier)
    assert (
        verify(path, PROGRAM, wanted, some, tolerance=ONNX_TOLERANCE, golden=golden).top1_agreement
        == 100
    )


def test_the_two_heads_of_these_tests_answer_otherwise(shallow):
    """Without which swapping them would be nothing to find."""
    loaded = shallow()
    cls, dist = (
        reference(loaded.model, loaded.model_config, head, golden_input(32))[0, 0]
        for head in ("cls", "dist")
    )
    assert np.abs(cls - dist).max() > 0.1

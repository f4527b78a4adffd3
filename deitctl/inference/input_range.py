"""The value range of the inputs of a prediction, for a model that has none of its own.

A model that was trained on images of more than 8 bits scales others as it scaled those. One that was
trained on 8 bits, such as ImageNet's, has no range: then one is chosen for all inputs together, never
image by image, because a dark image would become as light as a bright one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from deitctl.data.bands import measure_bands
from deitctl.data.decode import measure_image, measure_values, read_bytes
from deitctl.data.deep_image import PNG_DEPTH, Measured, begins_with_eight_bits
from deitctl.data.range_survey import (
    NUM_LOOKED_AT,
    Look,
    RangeSurvey,
    has_eight_bits,
    spread,
    survey_values,
)
from deitctl.data.value_range import NO_RANGE, OPTION
from deitctl.events import Reporter
from deitctl.models.model_config import ValueRange

if TYPE_CHECKING:
    from deitctl.inference.inputs import ImageLike


class InputRange:
    """The range of all inputs; once it is there, it stays."""

    def __init__(self, value_range: ValueRange | None, reporter: Reporter, bands: int = 0) -> None:
        """Begin with the range of the model or of the user, if there is one.

        Args:
            value_range: that range.
            reporter: warned when one is chosen.
            bands: of the images; 0: they are RGB.
        """
        self._bands = bands
        self.value_range = value_range
        self._reporter = reporter
        self._is_each_its_own = False

    @property
    def for_decoding(self) -> ValueRange | None:
        """What `decode` takes: the range, `NO_RANGE` until there is one, or None if each image has its own."""
        return None if self._is_each_its_own else self.value_range or NO_RANGE

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to choose any more."""
        return self._is_each_its_own or self.value_range is not None

    def settle(self, images: Iterable[ImageLike]) -> int:
        """Choose the range by a sample of inputs, unless it is there or none has more than 8 bits.

        Integers and floats among them have no range in common: then each image has its own.

        Returns:
            How many inputs there are.
        """
        looks, num_images = _sample_looks(images, self._bands)
        if looks and not self.is_settled:
            self._take(survey_values(spread(looks, NUM_LOOKED_AT)))
        return num_images

    def settle_by(self, images: Iterable[Measured | None]) -> None:
        """Choose the range by images that were not in that sample: the first that state none, in a batch."""
        survey = RangeSurvey()
        for measured in images:
            survey.add(measured)
        if not self.is_settled:
            self._take(survey)

    def _take(self, survey: RangeSurvey) -> None:
        if not survey.num_deep:
            if doubt := survey.describe_doubt():
                self._reporter.warn(doubt)
            return
        if survey.is_mixed:  # files of several sources, and no data set
            self._is_each_its_own = True
            self._reporter.warn(
                f"{survey.num_deep} images of more than 8 bits state no range, and hold integers and "
                f"floats, or floats of several ranges: each is scaled by its own values. {OPTION} "
                "sets one range."
            )
            return
        self.value_range = survey.choose()
        if description := survey.describe(self.value_range):
            self._reporter.warn(f"{description} The model has no range of its own.")


def _sample_looks(images: Iterable[ImageLike], bands: int = 0) -> tuple[list[Look], int]:
    """Return how to look at inputs that may have more than 8 bits, spread over all, and the number of all.

    Of many inputs every second, then every fourth ... is sampled, so that few of them are held.
    """
    looks: list[Look] = []
    num_images = num_looks = 0
    step = 1
    for image in images:
        num_images += 1
        if (look := _find_look(image, bands)) is None:
            continue
        if num_looks % step == 0:
            looks.append(look)
        num_looks += 1
        if len(looks) > 2 * NUM_LOOKED_AT:
            looks, step = looks[::2], 2 * step
    return looks, num_images


def _find_look(image: ImageLike, bands: int) -> Look | None:
    """Return how to look at an input before it is read; None where that is not to be had, or it has 8 bits."""
    from deitctl.inference.inputs import local_path  # which imports this module

    if isinstance(image, str | os.PathLike):
        path = local_path(str(image))
        is_looked_at = not has_eight_bits(path) and "://" not in path
        return partial(_look_at_file, path, bands) if is_looked_at else None
    if isinstance(image, bytes | bytearray | memoryview):
        is_looked_at = not begins_with_eight_bits(bytes(image[: PNG_DEPTH + 1]))
        return partial(_look_at_bytes, image, bands) if is_looked_at else None
    return partial(_look_at_image, image) if isinstance(image, Image.Image) else None


def _look_at_file(name: str, bands: int) -> tuple[Measured | None, int]:
    if not os.path.isfile(name):  # a pipe would be waited for
        return None, 0
    with open(name, "rb") as file:
        if begins_with_eight_bits(file.read(PNG_DEPTH + 1)):
            return None, PNG_DEPTH
    return _look_at_bytes(read_bytes(Path(name)), bands, name)


def _look_at_bytes(
    data: bytes | bytearray | memoryview, bands: int, name: str = "an image"
) -> tuple[Measured | None, int]:
    if bands:
        return measure_bands(bytes(data), name, bands), len(data)
    return measure_values(bytes(data), name), len(data)


def _look_at_image(image: Image.Image) -> tuple[Measured | None, int]:
    return measure_image(image), 0

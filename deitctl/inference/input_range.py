"""The value range of the inputs of a prediction, for a model that has none of its own.

A model that was trained on images of more than 8 bits scales others as it scaled those. One that was
trained on 8 bits, such as ImageNet's, has no range: then one is chosen for all inputs together, never
image by image, because a dark image would become as light as a bright one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

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

    def __init__(self, value_range: ValueRange | None, reporter: Reporter) -> None:
        """Begin with the range of the model or of the user, if there is one.

        Args:
            value_range: that range.
            reporter: warned when one is chosen.
        """
        self.value_range = value_range
        self._reporter, self._lock = reporter, threading.Lock()
        self._is_each_its_own = False

    def settle(self, images: Iterable[ImageLike]) -> None:
        """Choose the range by a sample of inputs, unless it is there or none has more than 8 bits.

        Integers and floats among them have no range in common: then each image has its own.
        """
        if self.value_range is None and not self._is_each_its_own:
            looks = list(_list_looks(images))
            self._take(survey_values(spread(looks, NUM_LOOKED_AT)))

    def settle_by(self, data: bytes, name: str) -> ValueRange | None:
        """Return the range, which an image chooses that was not looked at before, as one of the web."""
        if self.value_range is None and not begins_with_eight_bits(data):
            with self._lock:
                if self.value_range is None:
                    survey = RangeSurvey()
                    survey.add(measure_values(data, name))
                    self._take(survey)
        return self.value_range

    def _take(self, survey: RangeSurvey) -> None:
        if self._is_each_its_own:
            return
        if survey.is_mixed:  # files of several sources, and no data set
            self._is_each_its_own = True
            self._reporter.warn(
                f"{survey.num_deep} images of more than 8 bits state no range, and hold integers and "
                f"floats, or floats of several ranges: each is scaled by its own values. {OPTION} "
                "sets one range."
            )
            return
        chosen = survey.choose()
        if chosen != NO_RANGE:
            self.value_range = chosen
            self._reporter.warn(f"{survey.describe(chosen)} The model has no range of its own.")


def _list_looks(images: Iterable[ImageLike]) -> Iterator[Look]:
    """Yield how to look at each input that may have more than 8 bits; what is no file has 8."""
    from deitctl.inference.inputs import local_path  # which imports this module

    for image in images:
        if isinstance(image, str | os.PathLike):
            name = str(image)
            path = local_path(name)
            if not has_eight_bits(path) and "://" not in path:
                yield partial(_look_at_file, path)
        elif isinstance(image, bytes | bytearray | memoryview):
            yield partial(_look_at_bytes, bytes(image))
        elif isinstance(image, Image.Image):
            yield partial(_look_at_image, image)


def _look_at_file(name: str) -> tuple[Measured | None, int]:
    if not os.path.isfile(name):  # a pipe would be waited for
        return None, 0
    with open(name, "rb") as file:
        if begins_with_eight_bits(file.read(PNG_DEPTH + 1)):
            return None, PNG_DEPTH
    return _look_at_bytes(read_bytes(Path(name)), name)


def _look_at_bytes(data: bytes, name: str = "an image") -> tuple[Measured | None, int]:
    return measure_values(data, name), len(data)


def _look_at_image(image: Image.Image) -> tuple[Measured | None, int]:
    return measure_image(image), 0

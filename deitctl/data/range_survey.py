"""The value range of a data set: chosen once, by a sample of its images of more than 8 bits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

from deitctl.cores import count_cores
from deitctl.data.bands import measure_bands
from deitctl.data.decode import measure_values
from deitctl.data.deep_image import Measured, begins_with_eight_bits
from deitctl.data.value_range import (
    FLOAT_MAXIMA,
    FULL,
    NO_RANGE,
    OPTION,
    choose_range,
    describe_range,
)
from deitctl.errors import DataError
from deitctl.models.model_config import ValueRange, parse_value_range
from deitctl.threads import DaemonThreads

if TYPE_CHECKING:
    from deitctl.data.dataset import ImageDataset  # imports torch, and predictions need none

EIGHT_BIT = frozenset((".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".avif"))
"""Extensions of formats that are read in 8 bits."""
NUM_LOOKED_AT = 256
"""Images at most, spread over the data; of 8 bits the header alone is looked at."""
NUM_EIGHT_BIT = 4
"""Of them by content although their extension says 8 bits, which it may say wrongly."""
NUM_NAMES = 20_000
"""Spread over the data, whose extensions are looked at."""
MAX_PIXELS = 2**27
MAX_BYTES = 2**29
"""Of the images of a sample, after which no more are looked at, but `MIN_LOOKED_AT` are."""
MIN_LOOKED_AT = 16
OUTLIES = 8
"""Times the largest value of all others, above which an image that sets the range alone is named."""

T = TypeVar("T")
Look: TypeAlias = Callable[[], tuple[Measured | None, int]]
"""Returns what is measured of an image, None for one of 8 bits, and the bytes that were read."""


@dataclass
class RangeSurvey:
    """What a sample of images says about values."""

    num_looked_at: int = 0
    num_deep: int = 0
    """Of more than 8 bits, whose file states no range, or one that its values are scaled up beyond."""
    num_scaled_up: int = 0
    """Of these, PNGs of the latter kind."""
    num_stated: int = 0
    """Of more than 8 bits, whose file states its range."""
    num_maybe_scaled_up: int = 0
    """Of these, PNGs with values within their bits that are such as scaling up to 16 bits gives."""
    low: float = 0.0
    high: float = 0.0
    """Of the `num_deep`."""
    kinds: set[bool] = field(default_factory=set)
    """Whether values are floats, of each of these images."""
    float_tops: set[float] = field(default_factory=set)
    """Upper ends of the ranges that floats, but those of black images, would have by themselves."""
    largest: list[float] = field(default_factory=list)
    """Magnitude of the largest value of each image that states no range."""
    num_beyond: int = 0
    """Of floats beyond any range, which choose none and are refused when they are read."""

    def add(self, measured: Measured | None) -> None:
        """Enter an image; None is one of 8 bits."""
        self.num_looked_at += 1
        if measured is None:
            return
        # Values scaled up beyond the bits that a PNG states say how the others of the data are.
        if measured.stated is not None and not measured.was_scaled_up:
            self.num_stated += 1
            self.num_maybe_scaled_up += measured.may_be_scaled_up and measured.high > 0
            return
        if measured.is_float and max(-measured.low, measured.high) > FLOAT_MAXIMA[-1]:
            self.num_beyond += 1
            return
        self.num_deep += 1
        self.num_scaled_up += measured.was_scaled_up
        self.low = min(self.low, measured.low)
        self.high = max(self.high, FULL.high if measured.was_scaled_up else measured.high)
        if not measured.was_scaled_up:
            self.largest.append(max(-measured.low, measured.high))
        self.kinds.add(measured.is_float)
        if measured.is_float and measured.high > 0:
            self.float_tops.add(choose_range(0, measured.high, is_float=True).high)

    @property
    def has_deep(self) -> bool:
        """Whether an image has more than 8 bits."""
        return self.num_deep + self.num_stated + self.num_beyond > 0

    @property
    def is_of_both_kinds(self) -> bool:
        """Whether some values are integers and some floats, which no range fits."""
        return len(self.kinds) > 1

    @property
    def is_mixed(self) -> bool:
        """Whether integers and floats, or floats up to 1 and up to 255, are among the images."""
        has_both = min(self.float_tops, default=1) <= 1 < 255 <= max(self.float_tops, default=1)
        return self.is_of_both_kinds or has_both

    def choose(self) -> ValueRange:
        """Return the range of the data, `NO_RANGE` if no image needs one.

        Raises:
            DataError: some values are integers and some floats, or all are beyond any range.
        """
        if not self.num_deep and self.num_beyond:
            raise DataError(
                f"Images hold values beyond {FLOAT_MAXIMA[-1]:,.0f}, and their files state no range.",
                f"Say which values are black and white: {OPTION}.",
            )
        if not self.num_deep:
            return NO_RANGE
        if self.is_of_both_kinds:
            raise DataError(
                "Some images hold integers and some floating-point values, and their files do not "
                "state a range.",
                f"Say which values are black and white: {OPTION}.",
            )
        return choose_range(self.low, self.high, is_float=True in self.kinds)

    def describe(self, chosen: ValueRange) -> str:
        """Return what was chosen and why, in a line; empty where files decide for all that need a range."""
        if not self.largest:
            return ""
        values = f"up to {self.high:,.6g}"
        if self.low < 0:
            values = f"from {self.low:,.6g} {values.removeprefix('up ')}"
        second, first = sorted((0.0, *self.largest))[-2:]
        if 0 < OUTLIES * second < first:  # a value that stands for none, or a hot pixel
            values += f" (all but one of them up to {second:,.6g})"
        kind = "floating-point files" if True in self.kinds else "files of more than 8 bits"
        scaled_up = (
            f", or in {self.num_scaled_up} PNGs were scaled up beyond the bits that they state"
        )
        return (
            f"{self.num_deep} of {self.num_looked_at} images looked at hold values {values} in "
            f"{kind} that state no range{scaled_up if self.num_scaled_up else ''}: scaled as "
            f"{describe_range(chosen)}; {OPTION} changes it."
        )

    def describe_doubt(self) -> str:
        """Return in a line that all PNGs may be dark ones that were scaled up; empty where one shows they are not."""
        if self.num_deep or not 0 < self.num_maybe_scaled_up == self.num_stated:
            return ""
        return (
            f"{self.num_stated} of {self.num_looked_at} images looked at hold values within the bits that "
            "they state (sBIT), and empty bits below: scaled by these bits. If they are dark images that "
            "were scaled up to 16 bits: --value-range 0,65535."
        )


def settle_range(
    datasets: Sequence[ImageDataset],
    option: str | ValueRange,
    say: Callable[[str], None],
) -> ValueRange:
    """Return the range of all images of a data set.

    Args:
        datasets: its parts; packed shards may have a range already.
        option: `auto`, `LOW,HIGH`, or a range that was chosen before.
        say: receives what is chosen, in a line.

    Raises:
        ConfigError: `option` is none of these.
        DataError: see `RangeSurvey.choose`.
    """
    requested = option if isinstance(option, ValueRange) else parse_value_range(option)
    if requested is not None:
        if isinstance(option, str) and not survey_datasets(datasets).has_deep:
            say(f"--value-range {option}: none of the images looked at has more than 8 bits.")
        return requested
    for dataset in datasets:
        if dataset.value_range is not None:
            return dataset.value_range
    survey = survey_datasets(datasets)
    chosen = survey.choose()
    if message := survey.describe(chosen) if chosen != NO_RANGE else survey.describe_doubt():
        say(message)
    return chosen


def scale_for(
    dataset: ImageDataset,
    model_range: ValueRange | None,
    say: Callable[[str], None] = lambda message: None,
) -> ImageDataset:
    """Return images as a model is to see them: scaled by its range, else by one for all of them."""
    return dataset.with_value_range(model_range or settle_range([dataset], "auto", say))


def survey_datasets(datasets: Sequence[ImageDataset]) -> RangeSurvey:
    """Look at a sample of the images of data sets."""
    return survey_values(look for dataset in datasets for look in _sample(dataset))


def survey_values(images: Iterable[Look]) -> RangeSurvey:
    """Look at images, until they are `NUM_LOOKED_AT` or large in all; the same for any number of cores."""
    images = list(images)
    # Every n-th first, so that what is left out at the end is spread as well.
    step = max(1, len(images) // MIN_LOOKED_AT)
    ordered = iter([image for start in range(step) for image in images[start::step]])
    survey, num_pixels, num_bytes = RangeSurvey(), 0, 0
    with DaemonThreads(count_cores()) as threads:
        while batch := list(islice(ordered, MIN_LOOKED_AT)):
            for looked_at in threads.map(_try, batch):
                if looked_at is None:
                    continue
                measured, size = looked_at
                survey.add(measured)
                num_bytes += size
                num_pixels += measured.num_pixels if measured is not None else 0
            is_enough = num_pixels > MAX_PIXELS or num_bytes > MAX_BYTES
            if is_enough or survey.num_looked_at >= NUM_LOOKED_AT:
                break
    return survey


def _try(look: Look) -> tuple[Measured | None, int] | None:
    """Return what is seen of an image; None if it cannot be read."""
    try:
        return look()
    except (DataError, OSError, ValueError):  # ValueError: a NUL in the name
        return None


def _sample(dataset: ImageDataset) -> Iterator[Look]:
    """Yield a look at each of a data set's images that may have more than 8 bits, and at a few others."""
    if dataset.is_in_memory:
        return
    cheap = dataset.list_cheap()
    names = [int(cheap[place]) for place in spread(range(len(cheap)), NUM_NAMES)]
    may_be_deep = [index for index in names if not has_eight_bits(dataset.name(index))]
    deep = set(may_be_deep)
    others = [index for index in names if index not in deep]
    for index in (*spread(may_be_deep, NUM_LOOKED_AT), *spread(others, NUM_EIGHT_BIT)):
        yield partial(_look, dataset, index)


def _look(dataset: ImageDataset, index: int) -> tuple[Measured | None, int]:
    if dataset.bands:
        data = dataset.read_bytes(index)
        return measure_bands(data, dataset.name(index), dataset.bands), len(data)
    start = dataset.read_start(index)
    if begins_with_eight_bits(start):
        return None, len(start)
    data = dataset.read_bytes(index)
    return measure_values(data, dataset.name(index)), len(data)


def has_eight_bits(name: str) -> bool:
    """Whether a name ends as that of a format that is read in 8 bits."""
    return os.path.splitext(name)[1].lower() in EIGHT_BIT


def spread(values: Sequence[T], count: int) -> list[T]:
    """Return at most `count` values, evenly spaced."""
    if len(values) <= count:
        return list(values)
    return [values[int(place)] for place in np.linspace(0, len(values) - 1, count)]

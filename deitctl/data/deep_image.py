"""Images of more than 8 bits a channel, or of signed ones: their values, and their scaling to 8 bits.

Of color of 16 bits Pillow keeps the high bytes alone. A file that is decoded again as if its bytes
were in the other order gives the low ones, so that 12 bits in 16 keep their 4,096 levels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deitctl.data.decode_limits import STRIP
from deitctl.data.value_range import (
    BITS_PER_SAMPLE,
    FULL,
    MIN_IS_WHITE,
    NO_RANGE,
    OPTION,
    PHOTOMETRIC,
    SAMPLE_FORMAT,
    choose_range,
    describe_range,
    find_missing,
    find_nodata,
    find_stated_range,
    is_signed_byte,
    require_in_range,
)
from deitctl.errors import DataError
from deitctl.models.model_config import ValueRange

Values = NDArray[Any]
PLANAR = 284
"""Tag of TIFF: whether channels lie apart (2)."""
OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Of the bytes of a value, by the end of Pillow's raw mode; N is the machine's own."""


PNG_DEPTH = 24
"""Offset of the byte of a PNG that has its bits a channel."""


class Measured(NamedTuple):
    """The colors of an image of more than 8 bits, whatever its alpha is."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    is_float: bool
    stated: ValueRange | None
    """By the file; of a PNG whose values are beyond its bits, 16 bits."""
    was_scaled_up: bool
    """Whether they are, as the specification has it."""
    may_be_scaled_up: bool
    """Whether all values of a PNG that states its bits are among those that scaling up gives."""
    num_pixels: int


class RangeNeeded(DataError):
    """An image of more than 8 bits states no range, and none was chosen: by its own values one can be."""

    measured: Measured | None = None


@dataclass(eq=False)
class DeepImage:
    """An image of more than 8 bits a channel, which is loaded when its values are read."""

    image: Image.Image
    """Gray values (signed ones of 8 bits as unsigned), or the high bytes of color."""
    stated: ValueRange | None
    """See `find_stated_range`."""
    mode: str
    """Of the image of 8 bits that it becomes."""
    open_again: Callable[[], Image.Image]
    raw_mode: str = ""
    """Pillow's, of color; empty for gray."""
    low_bytes: Image.Image | None = None
    """Of color, once they are loaded."""

    @property
    def is_planar(self) -> bool:
        """Whether channels lie apart, so that the order of bytes is not to be had from Pillow."""
        tags = getattr(self.image, "tag_v2", {})
        return bool(self.raw_mode) and tags.get(PLANAR) == 2

    @cached_property
    def nodata(self) -> float | None:
        """See `find_nodata`."""
        return find_nodata(self.image)

    def load_low_bytes(self, finish: Callable[[Image.Image], None]) -> None:
        """Load the low bytes of color; `finish` loads an image and turns it upright."""
        if self.raw_mode and self.mode != "LA" and not self.is_planar:
            again = self.open_again()
            _set_raw_mode(again, self.raw_mode[:-1] + OTHER_ORDER[self.raw_mode[-1]])
            finish(again)
            self.low_bytes = again

    def measure(self) -> Measured:
        """Measure the colors, and hold what the file states against them.

        What stands for no value is left out, see `find_missing`.
        """
        low, high = np.inf, -np.inf
        states_bits = self.image.format == "PNG" and self.stated is not None
        scaled_up = _list_scaled_up(self.stated) if states_bits and self.stated else None
        for values in self._iterate_strips():
            colors = values[..., :-1] if self.mode[-1] in "Aa" else values
            if (missing := find_missing(colors, self.nodata)) is not None:
                colors = colors[~missing]
            if colors.size:
                low, high = min(low, float(colors.min())), max(high, float(colors.max()))
            if scaled_up is not None and not scaled_up[colors].all():
                scaled_up = None
        if low > high:  # no values at all
            low = high = 0.0
        was_scaled_up = states_bits and self.stated is not None and high > self.stated.high
        return Measured(
            low,
            high,
            self.image.mode == "F",
            FULL if was_scaled_up else self.stated,
            was_scaled_up,
            scaled_up is not None,
            self.image.width * self.image.height,
        )

    def choose(self, value_range: ValueRange | None, name: str) -> ValueRange:
        """Return the range that the image is scaled by; `value_range` is that of its data.

        Raises:
            DataError: it has values outside of it.
            RangeNeeded: it states no range, and `value_range` is `NO_RANGE`.
        """
        is_scaled = self.stated == FULL and self.image.format != "PNG"  # by Pillow, to FULL
        if is_scaled or (value_range is not None and value_range.clips):
            return FULL if is_scaled or value_range is None else value_range
        measured = self.measure()
        stated = measured.stated
        if stated is None:
            return choose_unstated(measured, value_range, name)
        # Dark enough to fit in its bits, but scaled up as others of the data are. Where none is beyond
        # its bits, they are taken as they are: images of 8 bits in 12 have empty bits too.
        are_scaled_up = value_range is not None and value_range.high > stated.high
        if measured.may_be_scaled_up and are_scaled_up:
            return FULL
        require_in_range(*measured[:2], stated, name, stated=True)
        return stated

    def scale(self, value_range: ValueRange, name: str) -> Image.Image:
        """Return the image in 8 bits: the values of a range become 0..255, rounded.

        Of color whose range is that of 16 bits the high bytes are taken, as Pillow and timm do.
        """
        is_full = value_range[:2] == FULL[:2]
        if self.is_planar and not is_full:
            raise DataError(
                f"{name} has its 16-bit channels apart, of which the high bytes alone are read.",
                "Store it with interleaved channels.",
            )
        if self.raw_mode and self.mode != "LA" and is_full and self.nodata is None:
            return self.image
        table = None
        if self.image.mode not in ("I", "F", "L"):
            values = np.arange(65536)
            table = (
                (values >> 8).astype(np.uint8)
                if self.raw_mode and is_full
                else (scale_values(values, value_range))
            )
        scaled = Image.new(self.mode, self.image.size)
        alpha_table = self._choose_alpha_table(value_range, table)
        top = 0
        for strip in self._iterate_strips():
            pixels = scale_values(strip, value_range) if table is None else table[strip]
            if alpha_table is not None:
                pixels[..., -1] = alpha_table[strip[..., -1]]
            if (missing := find_missing(strip, self.nodata)) is not None:
                pixels[missing] = 0
            if self._is_min_white():
                pixels = 255 - pixels
            size = (strip.shape[1], strip.shape[0])
            scaled.paste(Image.frombytes(self.mode, size, pixels.tobytes()), (0, top))
            top += strip.shape[0]
        return scaled

    def _choose_alpha_table(self, value_range: ValueRange, table: Values | None) -> Values | None:
        """Return the scaling of alpha: that of the colors, if it is no larger than they may be."""
        if table is None or self.mode[-1] not in "Aa":
            return None
        highest = max(int(strip[..., -1].max()) for strip in self._iterate_strips())
        return table if highest <= value_range.high else (np.arange(65536) >> 8).astype(np.uint8)

    def _is_min_white(self) -> bool:
        tags = getattr(self.image, "tag_v2", {})
        return not self.raw_mode and tags.get(PHOTOMETRIC) == MIN_IS_WHITE

    def _iterate_strips(self) -> Iterator[Values]:
        """Yield the values of strips of rows, [H,W] or [H,W,C], in little memory."""
        rows = max(1, STRIP // self.image.width)
        tags = getattr(self.image, "tag_v2", {})
        is_unsigned = self.image.mode == "I" and _first(tags.get(SAMPLE_FORMAT, 1)) == 1
        for top in range(0, self.image.height, rows):
            box = (0, top, self.image.width, min(top + rows, self.image.height))
            values = np.asarray(self.image.crop(box))
            if self.mode == "LA":  # as four bytes of a pixel
                yield values[..., ::2].astype(np.uint16) << 8 | values[..., 1::2]
            elif self.raw_mode:
                low = 0 if self.low_bytes is None else np.asarray(self.low_bytes.crop(box))
                yield values.astype(np.uint16) << 8 | low
            elif self.image.mode == "L":
                yield values.view(np.int8)
            elif is_unsigned and tags:
                yield values.view(np.uint32)  # Pillow's are signed
            else:
                yield values


def choose_unstated(measured: Measured, value_range: ValueRange | None, name: str) -> ValueRange:
    """Return the range of an image that states none: that of its data, else by its own values.

    Raises:
        DataError: it has values outside of the data's.
        RangeNeeded: the data's is `NO_RANGE`.
    """
    if value_range is not None and value_range != NO_RANGE:
        require_in_range(*measured[:2], value_range, name)
        is_of_ones = measured.is_float and 0 <= measured.low <= measured.high <= 1
        if is_of_ones and measured.high > 0 and value_range[0] == 0 and value_range.high >= 255:
            raise DataError(
                f"{name} holds floats up to {measured.high:.6g}, all of them black in the "
                f"{describe_range(value_range)} that this data is scaled by.",
                f"{OPTION} sets another.",
            )
        return value_range
    own = choose_range(*measured[:2], is_float=measured.is_float)
    if value_range == NO_RANGE and (measured.low, measured.high) != (0, 0):  # black anyway
        error = RangeNeeded(
            f"{name} holds values from {measured.low:,.6g} to {measured.high:,.6g} and states no "
            "range, and the images that were looked at have 8 bits.",
            f"Say what is black and white: {OPTION}.",
        )
        error.measured = measured
        raise error
    return own


def begins_with_eight_bits(start: bytes) -> bool:
    """Whether these are the first bytes of an image that is read in 8 bits; of a PNG the header says so."""
    if start.startswith(b"\x89PNG"):
        return start[PNG_DEPTH : PNG_DEPTH + 1] <= b"\x08"
    return start.startswith((b"\xff\xd8", b"GIF8", b"RIFF", b"BM")) or start[4:8] == b"ftyp"


def open_deep(
    image: Image.Image, data: bytes, open_again: Callable[[], Image.Image]
) -> DeepImage | None:
    """Return an image that is opened and not loaded, if it has more than 8 bits a channel, or signed ones.

    It is set up so that loading gives what `DeepImage` needs. A Pillow image without a file may be
    loaded.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return DeepImage(image, find_stated_range(image, data), "L", open_again)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "L" and is_signed_byte(tags):
        return DeepImage(image, find_stated_range(image, data), "L", open_again)
    bits = tags.get(BITS_PER_SAMPLE, (8,))
    is_planar = tags.get(PLANAR) == 2 and len(bits) > 1 and max(bits) > 8
    if is_planar and any(tile[0] == "raw" for tile in getattr(image, "tile", ())):
        # Pillow would mix high and low bytes.
        raise ValueError("its 16-bit channels lie apart; store it with interleaved ones")
    raw_mode = _get_raw_mode(image) if data else ""
    name, wide, order = raw_mode.partition(";16")
    if not wide or order not in OTHER_ORDER:
        return None
    stated = find_stated_range(image, data)
    mode = "RGB" if name == "RGBX" else name
    if mode == "LA":
        image._mode = "RGBA"
        _set_raw_mode(image, "RGBA")
    elif mode == "RGBa":  # Pillow would divide by the high bytes of alpha
        raw_mode = f"RGBA;16{order}"
        _set_raw_mode(image, raw_mode)
    return DeepImage(image, stated, mode, open_again, raw_mode)


def keep_premultiplied(image: Image.Image) -> None:
    """Let colors of 8 bits that are multiplied by alpha be loaded as they are stored."""
    if _get_raw_mode(image) == "RGBa":
        _set_raw_mode(image, "RGBA")


def _get_raw_mode(image: Image.Image) -> str:
    for tile in getattr(image, "tile", ())[:1]:
        args = tile[3]
        raw_mode = args[0] if isinstance(args, tuple) and args else args
        return raw_mode if isinstance(raw_mode, str) else ""
    return ""


def _set_raw_mode(image: Image.Image, raw_mode: str) -> None:
    image.tile = [  # type: ignore[attr-defined]
        tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
        for tile in image.tile  # type: ignore[attr-defined]
    ]


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _list_scaled_up(stated: ValueRange) -> NDArray[np.bool_]:
    """Return which of 16 bits' values are fewer bits scaled up: by their step, with their high bits
    below as the specification recommends, or rounded."""
    values = np.arange(int(stated.high) + 1)
    bits = int(stated.high).bit_length()
    shifted = values << (16 - bits)
    is_scaled_up = np.zeros(65536, np.bool_)
    is_scaled_up[shifted] = True
    is_scaled_up[np.minimum(shifted | (values >> max(0, 2 * bits - 16)), 65535)] = True
    is_scaled_up[np.rint(values * (65535 / stated.high)).astype(np.int64)] = True
    return is_scaled_up


def scale_values(values: Values, value_range: ValueRange) -> NDArray[np.uint8]:
    """Return values in 8 bits: those of a range become 0..255, rounded; NaN becomes 0."""
    low, high = value_range[:2]
    parts = (values.astype(np.float64) - low) / (high - low)
    parts[np.isnan(parts)] = 0
    return np.rint(np.clip(parts, 0, 1) * 255).astype(np.uint8)

from __future__ import annotations

import io
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from deitctl.data.decode import convert_image, decode, measure_values
from deitctl.data.deep_image import RangeNeeded
from deitctl.data.value_range import NO_RANGE
from deitctl.errors import DataError
from deitctl.models.model_config import ValueRange
from tests.data.deep_files import encode_png, encode_tiff

TWELVE = ValueRange(0, 4095)
RAMP = np.array([[0, 1, 8, 9, 2048, 4094, 4095]], np.uint16)
RAMP_IN_8_BITS = [0, 0, 0, 1, 128, 255, 255]  # rint(v / 4095 * 255)


def decoded(data: bytes, value_range: ValueRange | None = None) -> np.ndarray:
    return np.asarray(decode(data, "x.img", value_range=value_range))


def pgm(values: np.ndarray, largest: int) -> bytes:
    header = b"P5\n%d %d\n%d\n" % (*values.shape[::-1], largest)
    return header + values.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "data",
    [
        encode_png(RAMP),
        encode_tiff(RAMP),
        encode_tiff(RAMP, order=">"),
        encode_tiff(RAMP, compressed=True),
        encode_tiff(RAMP, compressed=True, order=">"),
        encode_tiff(RAMP.astype(np.int16)),
        encode_tiff(RAMP.astype(np.int32), order=">"),
        encode_tiff(RAMP.astype(np.uint32)),
        encode_tiff(RAMP.astype(np.float32)),
        pgm(RAMP, 4095),
    ],
)
def test_gray_values_are_scaled_by_the_range_of_the_data(data):
    assert decoded(data, TWELVE)[0, :, 0].tolist() == RAMP_IN_8_BITS


def color(channels: int) -> np.ndarray:
    """Return every level of 12 bits in every channel, in another order in each; alpha is opaque."""
    level = np.arange(4096).reshape(64, 64)
    values = np.stack([level, level[::-1], level.T, level][:channels], axis=2)
    if channels in (2, 4):
        values[..., -1] = 65535
    return values.astype(np.uint16)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", [{}, {"rows": 10}, {"tile": 16}])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
def test_color_of_twelve_bits_in_a_tiff_keeps_its_levels(order, layout, compressed, channels):
    values = color(channels)
    tags = {338: 2} if channels == 4 else {}
    data = encode_tiff(values, tags, order=order, compressed=compressed, **layout)
    expected = np.rint(values[..., :3] / 4095 * 255)
    assert np.array_equal(decoded(data, TWELVE), expected)
    assert np.array_equal(decoded(data), expected)  # one image is a data set of one


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_color_of_twelve_bits_in_a_png_keeps_its_levels(channels):
    values = color(channels)
    colors = values[..., :1].repeat(3, 2) if channels == 2 else values[..., :3]
    assert np.array_equal(decoded(encode_png(values), TWELVE), np.rint(colors / 4095 * 255))


def test_color_that_fills_sixteen_bits_is_what_pillow_makes_of_it():
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    for data in (encode_png(values), encode_tiff(values)):
        assert np.array_equal(decoded(data), np.asarray(Image.open(io.BytesIO(data))))


def test_alpha_is_scaled_as_the_colors_are_unless_it_is_larger():
    black = np.zeros((1, 3, 4), np.uint16)
    black[0, :, 3] = 4095, 0, 2048
    assert decoded(encode_png(black), TWELVE)[0, :, 0].tolist() == [0, 255, 127]
    black[0, :, 3] = 65535, 0, 32768
    assert decoded(encode_png(black), TWELVE)[0, :, 0].tolist() == [0, 255, 127]


@pytest.mark.parametrize(
    "values",
    [RAMP, RAMP.astype(np.float32)],
    ids=["integers", "floats"],
)
def test_a_tiff_whose_zero_is_white_is_inverted(values):
    inverted = [255 - v for v in RAMP_IN_8_BITS]
    assert decoded(encode_tiff(values, {262: 0}), TWELVE)[0, :, 0].tolist() == inverted
    assert decoded(encode_tiff(values, {262: 0}, compressed=True), TWELVE)[0, :, 0].tolist() == (
        inverted
    )


def test_signed_values_are_not_clipped_at_zero():
    values = np.array([[-2048, 0, 2047]], np.int16)
    assert decoded(encode_tiff(values))[0, :, 0].tolist() == [0, 128, 255]
    assert decoded(encode_tiff(values.astype(np.int32)))[0, :, 0].tolist() == [0, 128, 255]


def test_signed_values_of_eight_bits_are_not_taken_for_unsigned_ones():
    """The bytes of -128 to -1 are those of 128 to 255."""
    values = np.array([[-128, -1, 0, 127]], np.int8)
    for compressed in (False, True):
        data = encode_tiff(values, compressed=compressed)
        assert decoded(data)[0, :, 0].tolist() == [0, 127, 128, 255]
        assert decoded(data, TWELVE)[0, :, 0].tolist() == [0, 127, 128, 255]
    window = ValueRange(-1, 0, clips=True)
    assert decoded(encode_tiff(values), window)[0, :, 0].tolist() == [0, 0, 255, 255]
    with pytest.raises(DataError, match="is a TIFF of 3 bands of 8 bits in signed integers"):
        decoded(encode_tiff(np.zeros((2, 2, 3), np.int8)))


def test_a_window_clips_on_purpose():
    values = np.array([[-1024, -160, 40, 240, 3071]], np.int16)
    window = ValueRange(-160, 240, clips=True)
    assert decoded(encode_tiff(values), window)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_large_unsigned_values_are_not_negative():
    values = np.array([[0, 2**31, 2**32 - 1]], np.uint32)
    assert decoded(encode_tiff(values))[0, :, 0].tolist() == [0, 128, 255]


def test_what_a_file_states_goes_before_the_range_of_the_data():
    eight = ValueRange(0, 255)
    for data in (encode_png(RAMP, (12,)), encode_tiff(RAMP, {341: 4095}), pgm(RAMP, 4095)):
        assert decoded(data, eight)[0, :, 0].tolist() == RAMP_IN_8_BITS


def test_a_window_of_the_user_goes_before_what_a_file_states():
    window = ValueRange(0, 8, clips=True)
    assert decoded(encode_png(RAMP, (12,)), window)[0, :3, 0].tolist() == [0, 32, 255]


def test_values_beyond_the_bits_of_a_png_are_scaled_up_ones():
    """The specification wants values in all 16 bits, of which sBIT says how many mean something."""
    scaled_up = np.array([[0, 0x8008, 0xFFFF]], np.uint16)
    assert decoded(encode_png(scaled_up, (12,)))[0, :, 0].tolist() == [0, 128, 255]


def test_a_dark_png_is_scaled_up_where_others_of_its_data_are():
    dark = np.array([[0, 0x0100, 0x0F00]], np.uint16)  # the bits below its 12 are empty
    data = encode_png(dark, (12,))
    assert decoded(data, ValueRange(0, 65535))[0, :, 0].tolist() == [0, 1, 15]
    for value_range in (TWELVE, NO_RANGE, None):
        assert decoded(data, value_range)[0, :, 0].tolist() == [0, 16, 239]


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_dark_png_beside_scaled_up_ones_is_known_by_its_values(bits):
    level = np.arange(2 ** (2 * bits - 16))[None]  # those whose values fit into the bits
    scaled_up = (
        level << (16 - bits),
        level << (16 - bits) | level >> (2 * bits - 16),
        np.rint(level * 65535 / (2**bits - 1)),
    )
    expected = np.rint(level / (2**bits - 1) * 255)[0]
    full = ValueRange(0, 65535)
    for values in scaled_up:
        found = decoded(encode_png(values.astype(np.uint16), (bits,)), full)[0, :, 0]
        assert np.abs(found - expected).max() <= 1
    # And one whose values are not those stays as it is.
    dark = encode_png(np.array([[0, 1, 400]], np.uint16), (12,))
    assert decoded(dark, full)[0, :, 0].tolist() == [0, 0, 25]


@pytest.mark.parametrize("values", [RAMP, color(3), RAMP.astype(np.float32)])
def test_values_beyond_the_range_are_refused_and_not_clipped(values):
    encode = encode_tiff if values.dtype == np.float32 else encode_png
    with pytest.raises(
        DataError, match="x.img holds values from 0 to 4,095, outside of.*--value-range"
    ):
        decode(encode(values), "x.img", value_range=ValueRange(0, 1023))


def test_floats_up_to_one_in_a_range_of_integers_are_refused_and_not_black():
    data = encode_tiff(np.array([[0, 0.5, 0.9]], np.float32))
    with pytest.raises(
        DataError, match=r"floats up to 0.9, all of them black in the 12 bits.*--val"
    ):
        decode(data, "x.tif", value_range=TWELVE)
    assert decoded(data, ValueRange(0, 4095, clips=True)).max() == 0  # as the user wants
    assert decoded(data, ValueRange(0, 2))[0, :, 0].tolist() == [0, 64, 115]
    assert decoded(encode_tiff(np.zeros((1, 2), np.float32)), TWELVE).max() == 0


def test_twelve_bits_packed_are_read_as_they_are_stated():
    packed = np.array([[0x00, 0x08, 0x00, 0xFF, 0xFF, 0xFF]], np.uint8)  # 0, 2048, 4095, 4095
    data = encode_tiff(packed, {256: 4, 258: 12, 279: 6})
    assert decoded(data)[0, :, 0].tolist() == [0, 128, 255, 255]


def test_orientation_is_applied_to_both_bytes_of_a_color():
    values = color(3)[:40, :20]
    upright = decoded(encode_tiff(values, {274: 6}), TWELVE)
    assert np.array_equal(upright, np.rot90(np.rint(values / 4095 * 255), -1))


def test_channels_that_lie_apart_are_refused_rather_than_mixed():
    data = encode_tiff(color(3), {284: 2})
    with pytest.raises(DataError, match="16-bit channels lie apart"):
        decoded(data)


FLOAT_MAX = float(np.finfo(np.float32).max)


def nodata(text: str) -> dict[int, str]:
    """Return GDAL's tag of the value that stands for none."""
    return {42113: text}


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        (np.array([[np.nan, np.inf, -np.inf, -FLOAT_MAX, FLOAT_MAX, 0.5, 1]], np.float32), {}),
        (np.array([[9.96921e36, -3.4e38, 0, 0, 0, 0.5, 1]], np.float32), {}),
        (np.array([[-9999, -9999, 0, 0, 0, 0.5, 1]], np.float32), nodata("-9999")),
        (np.array([[-0.1, -0.1, 0, 0, 0, 0.5, 1]], np.float32), nodata("-0.1")),
        (np.array([[-32768, 0, 0, 0, 0, 2048, 4095]], np.int16), nodata("-32768")),
        (np.array([[65535, 0, 0, 0, 0, 2048, 4095]], np.uint16), nodata("65535 ")),
    ],
)
def test_what_stands_for_no_value_sets_no_range_and_is_its_low_end(values, tags):
    data = encode_tiff(values, tags)
    measured = measure_values(data, "x.tif")
    assert measured is not None
    assert (measured.low, measured.high) == (max(0, measured.low), values[0, -1])
    assert decoded(data)[0, :, 0].tolist() == [0, 0, 0, 0, 0, 128, 255]
    assert decoded(data, ValueRange(0, measured.high))[0, :, 0].tolist() == [0] * 5 + [128, 255]


def test_nodata_in_color_is_black_in_its_channel_whatever_the_range():
    values = np.full((1, 2, 3), 65535, np.uint16)
    values[0, 0] = 4095, 65535, 0
    data = encode_tiff(values, nodata("65535"))
    assert decoded(data).tolist() == [[[255, 0, 0], [0, 0, 0]]]
    assert decoded(data, ValueRange(0, 65535)).tolist() == [[[15, 0, 0], [0, 0, 0]]]


def test_an_image_without_any_value_is_black():
    assert decoded(encode_tiff(np.full((1, 2), np.nan, np.float32))).tolist() == [[[0] * 3] * 2]


def test_an_image_that_needs_a_range_says_what_it_holds_but_black_is_black():
    with pytest.raises(RangeNeeded, match="images that were looked at have 8 bits") as caught:
        decoded(encode_png(RAMP), NO_RANGE)
    assert caught.value.measured is not None
    assert caught.value.measured.high == 4095
    assert pickle.loads(pickle.dumps(caught.value)).measured == caught.value.measured
    assert decoded(encode_png(RAMP * 0), NO_RANGE).max() == 0


def test_values_beyond_any_range_are_refused_in_a_line():
    with pytest.raises(DataError, match=r"from 0 to 1e\+20 are in no range.*--value-range"):
        decoded(encode_tiff(np.array([[0, 1e20]], np.float32)))


def test_an_image_of_eight_bits_has_nothing_to_measure():
    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "PNG")
    assert measure_values(image.getvalue(), "x.png") is None
    measured = measure_values(encode_png(RAMP), "x.png")
    assert measured is not None
    assert (measured.low, measured.high, measured.is_float) == (0, 4095, False)


def test_a_pillow_image_is_scaled_as_its_file():
    image = Image.fromarray(RAMP)
    assert np.asarray(convert_image(image, "x", TWELVE))[0, :, 0].tolist() == RAMP_IN_8_BITS
    pfm = b"Pf\n3 1\n-1.0\n" + struct.pack("<3f", 0, 0.2, 1)
    assert np.asarray(convert_image(Image.open(io.BytesIO(pfm)), "x"))[0, :, 0].tolist() == [
        0,
        51,
        255,
    ]

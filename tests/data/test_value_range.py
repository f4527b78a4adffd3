from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from deitctl.data.value_range import (
    NO_RANGE,
    choose_range,
    describe_range,
    find_stated_range,
    parse_range,
    require_in_range,
    write_range,
)
from deitctl.errors import ConfigError, DataError
from deitctl.models.model_config import ValueRange, parse_value_range, read_value_range
from tests.data.deep_files import encode_png, encode_tiff

GRAY = np.zeros((4, 4), np.uint16)
COLOR = np.zeros((4, 4, 3), np.uint16)


def stated(data: bytes) -> ValueRange | None:
    return find_stated_range(Image.open(io.BytesIO(data)), data)


@pytest.mark.parametrize(
    ("low", "high", "is_float", "expected"),
    [
        (0, 200, False, (0, 255)),
        (0, 256, False, (0, 1023)),
        (0, 4080, False, (0, 4095)),
        (0, 4096, False, (0, 16383)),
        (0, 65535, False, (0, 65535)),
        (0, 70000, False, (0, 2**18 - 1)),
        (-1, 3, False, (-128, 127)),
        (-848, 1040, False, (-2048, 2047)),
        (-1024, 3071, False, (-4096, 4095)),
        (0, 0.9, True, (0, 1)),
        (0, 1.02, True, (0, 2)),
        (0, 200.5, True, (0, 255)),
        (0, 30.5, True, (0, 32)),
        (-0.5, 0.9, True, (-1, 1)),
        (-28.0, 3.5, True, (-32, 32)),
        (-30.0, 0, True, (-32, 0)),
        (-30.0, -2.5, True, (-32, 0)),
        (-1024.0, 600, True, (-1024, 1024)),
        (0, 60000.0, True, (0, 65535)),
    ],
)
def test_the_smallest_usual_range_that_holds_the_values_is_chosen(low, high, is_float, expected):
    assert choose_range(low, high, is_float=is_float)[:2] == expected


def test_the_bits_of_a_png_are_stated_by_sbit():
    assert stated(encode_png(GRAY, (12,))) == (0, 4095, False)
    assert stated(encode_png(COLOR, (10, 12, 10))) == (0, 4095, False)


def test_alpha_does_not_count_among_the_bits_of_a_png():
    assert stated(encode_png(np.zeros((4, 4, 2), np.uint16), (10, 16))) == (0, 1023, False)
    assert stated(encode_png(np.zeros((4, 4, 4), np.uint16), (9, 9, 9, 16))) == (0, 511, False)


def test_sixteen_bits_of_a_png_of_sixteen_state_no_more_than_its_container():
    assert stated(encode_png(GRAY, (16,))) is None
    assert stated(encode_png(GRAY)) is None


def test_the_sample_range_of_a_tiff_is_stated():
    assert stated(encode_tiff(GRAY, {341: 4095})) == (0, 4095, False)
    assert stated(encode_tiff(GRAY, {340: 100, 341: 3000})) == (100, 3000, False)
    assert stated(encode_tiff(COLOR, {341: (1023, 1023, 1023)})) == (0, 1023, False)


def test_a_largest_sample_value_states_a_depth_and_not_the_maximum_of_an_image():
    assert stated(encode_tiff(GRAY, {281: 4095})) == (0, 4095, False)
    assert stated(encode_tiff(GRAY, {281: 3871})) is None
    assert stated(encode_tiff(GRAY, {281: 65535})) is None


def test_a_tiff_of_twelve_bits_states_them():
    packed = np.frombuffer(bytes(4 * 6), np.uint8).reshape(4, 6)  # 4 x 4 values
    data = encode_tiff(packed, {256: 4, 258: 12, 279: 24})
    assert stated(data) == (0, 4095, False)


def test_a_sixteen_bit_pgm_states_its_largest_value():
    assert stated(b"P5\n2 1\n4095\n" + b"\x0f\xff\0\0") == (0, 65535, False)  # Pillow scales it


def test_an_image_beyond_a_range_is_refused_by_the_name_of_the_option():
    with pytest.raises(
        DataError, match="holds values from 0 to 5,000, outside of the 12 bits.*--value-r"
    ):
        require_in_range(0, 5000, ValueRange(0, 4095), "x.png")
    with pytest.raises(DataError, match="outside of"):
        require_in_range(-5, 100, ValueRange(0, 4095), "x.png")
    require_in_range(-5, 5000, ValueRange(0, 4095, clips=True), "x.png")


@pytest.mark.parametrize(
    ("value_range", "words"),
    [
        (ValueRange(0, 4095), "12 bits (0..4095)"),
        (ValueRange(-2048, 2047), "12 bits (-2048..2047)"),
        (ValueRange(0, 1), "0..1"),
        (ValueRange(100, 3000), "100..3000"),
    ],
)
def test_a_range_is_described_with_its_bits(value_range, words):
    assert describe_range(value_range) == words


def test_a_range_on_the_command_line_clips():
    assert parse_value_range("-1024,3071") == ValueRange(-1024, 3071, clips=True)
    assert parse_value_range("auto") is None


@pytest.mark.parametrize("text", ["12", "5,5", "9,1", "a,b", "0,inf", "0,1,2", "nan,1"])
def test_what_is_no_range_is_an_error_of_the_option(text):
    with pytest.raises(ConfigError, match="--value-range"):
        parse_value_range(text)


@pytest.mark.parametrize(
    "values", [[1], [5, 5], [0, float("inf")], "ab", [0, "x"], [0, 1, 2, 3], 7]
)
def test_what_is_no_range_in_a_config_is_refused(values):
    with pytest.raises((TypeError, ValueError)):
        read_value_range(values)


def test_a_range_is_read_back_as_it_was_written():
    for value_range in (ValueRange(0, 4095), ValueRange(-0.5, 1.5, clips=True), NO_RANGE, None):
        assert parse_range(write_range(value_range)) == value_range

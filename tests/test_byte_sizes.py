"""Numbers of bytes are read as people write them."""

from __future__ import annotations

import pytest

from deitctl.byte_sizes import parse_bytes
from deitctl.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000),
        ("1.5 GB", 1_500_000_000),
        ("8GiB", 2**33),
        ("2k", 2000),
        ("1g", 10**9),
        (4096, 4096),
        ("2000000", 2_000_000),
        ("4096B", 4096),
        ("1B", 1),
    ],
)
def test_units_are_decimal_and_those_with_an_i_binary(text, size):
    assert parse_bytes(text, "size") == size


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "GB", "1XB", "1iB", "1e3", "nan", "0.1", "9" * 400]
)
def test_what_is_no_number_of_bytes_is_one_line(text):
    with pytest.raises(ConfigError, match="^size = ") as caught:
        parse_bytes(text, "size")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["10", " 999999 "])
def test_a_small_number_without_a_unit_is_refused_with_the_units(text):
    number = text.strip()
    with pytest.raises(ConfigError, match=rf"has no unit.*Write it as {number}MB or {number}GB"):
        parse_bytes(text, "size")

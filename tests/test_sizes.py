"""A size is typed, kept and read as one side, or as height and width."""

from __future__ import annotations

import pytest

from deitctl.sizes import format_size, height_width, list_size, make_size, parse_size


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("224", 224),
        (224, 224),
        ("192x384", (192, 384)),
        ([192, 384], (192, 384)),
        ("64x64", 64),
        ((32, 32), 32),
        ("0", 0),
    ],
)
def test_a_size_is_read_in_every_spelling(value, size):
    assert parse_size(value) == size
    assert parse_size(format_size(size)) == size
    assert parse_size(list_size(size)) == size
    assert make_size(*height_width(size)) == size


@pytest.mark.parametrize("value", ["axb", "1x2x3", "-1", "0x3", [1, 2, 3], 1.5, True, None, []])
def test_what_is_no_size_is_refused(value):
    with pytest.raises(ValueError, match="."):
        parse_size(value)

"""Cells of labels: lists, signs between labels, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deitctl.data.readers.label_cells import find_sign, read_cells
from deitctl.errors import DataError


def read(*cells: str, task: str = "auto"):
    return read_cells(Path("t.csv"), cells, task, lambda number: f"row {number + 2}")


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ('["cat", "dog"]', ("cat", "dog")),
        ("['cat', 'dog']", ("cat", "dog")),
        ("['cat' 'dog']", ("cat", "dog")),  # NumPy's; Python reads one text of it
        ("('cat', 'dog')", ("cat", "dog")),
        ("{'cat', 'dog'}", ("cat", "dog")),
        ("[cat, golden retriever]", ("cat", "golden retriever")),
        ("[1, 3]", ("1", "3")),
        ("[1 3]", ("1", "3")),
        ('["it\'s", "caf\\u00e9"]', ("it's", "caf\u00e9")),
        (r"['C:\users', 'b\d']", (r"C:\users", r"b\d")),
        (
            r"['C:\\users', 'it\'s', 'caf\xe9', '\u2603', '\N{foo}']",
            (r"C:\users", "it's", "café", "☃", r"\N{foo}"),
        ),
        (r'["C:\users", "\Uffffffff"]', (r"C:\users", r"\Uffffffff")),
        ("[]", ()),
        ("('cat', 'dog',)", ("cat", "dog")),
    ],
)
def test_lists_are_read_however_programs_write_them(text, items):
    found = read(text)
    assert (found.labels, found.is_multilabel) == ((items,), True)


@pytest.mark.parametrize(
    ("cells", "sign"),
    [
        (("cat|dog", "dog"), "|"),
        (("cat;dog", "dog; bird"), ";"),
        (("cat|dog", "bird"), ""),  # neither stands elsewhere
        (("cat,dog", "cat", "dog"), ","),
        (("cat,dog", "cat", "bird"), ""),
        (("scab rust", "scab", "rust"), ""),
        (("cat, wild", "cat, tame"), ""),
    ],
)
def test_a_sign_joins_labels_that_stand_elsewhere_too(cells, sign):
    assert find_sign(cells, is_multilabel=False) == sign


@pytest.mark.parametrize(
    ("cells", "sign"),
    [
        (("cat|dog", "bird"), "|"),
        (("cat, wild", "cat, tame"), ","),
        (("scab rust", "scab", "rust"), " "),
        (("cat+dog", "cat", "dog"), "+"),
        (("golden retriever", "cat"), ""),
    ],
)
def test_known_to_be_several_labels_more_signs_join_them(cells, sign):
    assert find_sign(cells, is_multilabel=True) == sign


@pytest.mark.parametrize(
    ("cells", "error"),
    [
        (("cat", "cat||dog"), r"t.csv, row 3 has an empty label in 'cat\|\|dog'"),
        (("cat", "cat|"), "row 3 has an empty label"),
        (("cat", "cat|dog|cat "), "row 3 has the label 'cat' twice"),
        (("cat|dog", "dog", "cat;dog"), r"row 4 has ';' in 'cat;dog', and labels have '\|'"),
        (("['cat', '']", "['dog']"), "row 2 has an empty label"),
        (("['cat', 'cat']", "['dog']"), "row 2 has the label 'cat' twice"),
        (("['cat','dog']", "['cat','dog]"), "row 3 .*its quotes and commas do not match"),
        (("['cat','dog']", "['cat',,'dog']"), "row 3 .*an item is empty"),
        (("['cat','dog']", "['cat'"), r"row 3 .*\[ is not closed"),
        (('[["cat"]]', '["dog"]'), "row 2 .*its items are no labels"),
    ],
)
def test_broken_lists_are_refused_with_their_row(cells, error):
    with pytest.raises(DataError, match=error):
        read(*cells)


def test_lists_of_one_are_one_label_each_unless_said_otherwise():
    assert not read("['cat']", "['dog']").is_multilabel
    assert read("['cat']", "['dog']", task="multilabel").is_multilabel
    with pytest.raises(DataError, match="2 labels in a list"):
        read("['cat', 'dog']", "['dog']", task="classification")


def test_of_one_label_an_image_names_are_whole():
    found = read("cat|dog", "dog", task="classification")
    assert (found.labels, found.is_multilabel) == ((("cat|dog",), ("dog",)), False)


@pytest.mark.parametrize("joined", ["cat,dog", "cat|dog", "cat;dog"])
def test_a_sign_in_few_rows_may_be_a_mistake(joined):
    def read_rows(num_joined):
        cells, counts = (joined, "cat", "dog"), (num_joined, 40, 55)
        return read_cells(Path("t.csv"), cells, "auto", str, counts).is_multilabel

    assert [read_rows(count) for count in (1, 4, 6)] == [False, False, True]
    assert read("['cat', 'dog']", *"abcdefghijklmnopqrstuvwxyz").is_multilabel


@pytest.mark.parametrize(
    ("cells", "width"),
    [
        (("[1, 0, 0, 1]", "[0, 0, 0, 1]"), 4),
        (("[1. 0. 0.]", "[0. 0. 0.]"), 3),
        (("1 0 1", "", "0 0 1"), 3),
        (("[true, false]", "[false, false]"), 2),
    ],
)
def test_rows_of_0_and_1_that_name_no_class_are_refused_as_such(cells, width):
    with pytest.raises(DataError, match=f"row 2 .*of {width} classes, which have no names.*column"):
        read(*cells)
    assert read("0,1", "1,0").labels == (("0,1",), ("1,0",))
    assert read("[0, 1]", "[1]", "[]").labels == (("0", "1"), ("1",), ())

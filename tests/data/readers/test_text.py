"""Tables of text as spreadsheets and programs write them are read back as they were written."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deitctl.data.readers.column_names import rate_header
from deitctl.data.readers.text import open_text
from deitctl.errors import DataError

DELIMITERS = [",", ";", "\t", "|"]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]
cells = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), include_characters="\n\"',;|\t "), max_size=12
)


def write(rows: list[list[str]], delimiter: str, encoding: str, end: str = "\r\n") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(rows)
    return text.getvalue().encode(encoding)


def read(data: bytes) -> tuple[tuple[str, ...], list[list[str]]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(data)
        table = open_text(path, rate_header)
        return table.header, list(table.read_rows())


@given(
    st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=5),
    st.sampled_from(DELIMITERS),
    st.sampled_from(ENCODINGS),
    st.sampled_from(["\n", "\r\n"]),
)
def test_whatever_a_writer_of_csv_writes_is_read_back_equal(rows, delimiter, encoding, end):
    rows = [[a, b, c] for a, b, c in rows]
    header, found = read(write([["path", "label", "note"], *rows], delimiter, encoding, end))
    assert header == ("path", "label", "note")
    assert found == [row for row in rows if "".join(row).strip()]


@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_other_delimiters_in_quoted_fields_do_not_mislead(delimiter):
    others = "".join(d for d in DELIMITERS if d != delimiter)
    rows = [[f"a{others}{others}.jpg", f"x{others}"]] * 5
    assert read(write([["path", "label"], *rows], delimiter, "utf-8"))[1] == rows


def test_a_table_of_names_of_its_own_is_parted_by_what_parts_every_row():
    assert read(b"Bild;Art, lateinisch\n1.jpg;a\n2.jpg;b\n")[0] == ("Bild", "Art, lateinisch")


def test_spaces_behind_the_commas_of_a_header_are_behind_those_of_the_rows_too():
    header, rows = read(b'path, label\n1.jpg, "a, b"\n2.jpg, c\n')
    assert header == ("path", "label")
    assert rows == [["1.jpg", "a, b"], ["2.jpg", "c"]]


def test_the_hint_of_excel_is_no_row():
    assert read(b'sep=;\r\npath;label\r\n"1,5.jpg";a\r\n') == (
        ("path", "label"),
        [["1,5.jpg", "a"]],
    )


def test_blank_lines_are_no_rows():
    assert read(b"\npath,label\n\n1.jpg,a\n   \n\r\n2.jpg,b\n\n")[1] == [
        ["1.jpg", "a"],
        ["2.jpg", "b"],
    ]


def test_a_list_of_path_and_label_is_parted_by_spaces():
    assert read(b"a/1.jpg 0\nb/2.jpg 1\n") == (("a/1.jpg", "0"), [["b/2.jpg", "1"]])


def test_text_of_older_windows_is_told_by_what_is_no_utf8_however_late(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"path,label\n" + b"1.jpg,a\n" * 200_000 + "2.jpg,Äpfel\n".encode("cp1252"))
    table = open_text(path, rate_header)
    assert table.encoding == "cp1252"
    assert list(table.read_rows())[-1] == ["2.jpg", "Äpfel"]


@pytest.mark.parametrize(
    "text", ["path,label\n1.jpg,a\n2.jpg,cat,dog\n", "path;label\n1;a.jpg;cat\n2;b.jpg;dog\n"]
)
def test_rows_of_more_fields_than_the_header_are_refused_because_columns_are_not_known(text):
    with pytest.raises(DataError, match=r"line \d has 3 fields, and the first row 2.*quotes"):
        read(text.encode())
    assert read(b"path,label\n1.jpg,a,,\n")[1] == [["1.jpg", "a", "", ""]]


def test_a_label_with_a_comma_is_refused_where_the_header_ends_with_one_too():
    with pytest.raises(DataError, match="line 3 has 3 fields, and the first row 2.*quotes"):
        read(b"filename,label,\n0.jpg,dog,\n1.jpg,cat, tabby\n")
    assert read(b"filename,label,,\n0.jpg,dog,,\n")[0] == ("filename", "label")


def test_blank_fields_and_the_end_mark_of_dos_are_no_rows():
    rows = read(b"path,label\n,\n1.jpg,a\n , \n,\n\x1a")[1]
    assert rows == [["1.jpg", "a"]]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PK\3\4" + b"\0" * 50, "is a ZIP archive"),
        (b"<!DOCTYPE html><html>", "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid x\n", "is a Git LFS pointer"),
        (b"\xff\xfea\0\x00\xd8x\0", "none of UTF-8, UTF-16"),
        (b"path,label\n" + b"\x81\x8d,a\n", "none of UTF-8, UTF-16"),
    ],
    ids=["xlsx", "html", "lfs", "half-utf-16", "no-encoding"],
)
def test_what_is_no_text_is_named(data, what, tmp_path):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DataError, match=what):
        list(open_text(tmp_path / "t.csv", rate_header).read_rows())

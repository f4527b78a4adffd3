"""Texts under an image's name: pages, drawings, pointers, with marks and white space before them."""

from __future__ import annotations

import base64
import codecs

import pytest

from deitctl.data.text_types import identify_text

PAGE = "<!DOCTYPE html><html><body>404</body></html>"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (PAGE, "an HTML page"),
        (f"\n\r\n \t{PAGE}", "an HTML page"),
        ("<HTML><HEAD><title>Sign in</title>", "an HTML page"),
        ("<!-- saved --><html>", "an HTML page"),
        ("<body>Access Denied", "an HTML page"),
        ('<?xml version="1.0"?><!DOCTYPE html><html>', "an HTML page"),
        ('<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg">', "an SVG drawing"),
        ("<svg>", "an SVG drawing"),
        ("<html><body><svg></svg>", "an HTML page"),
        ('<?xml version="1.0"?><Error><Code>NoSuchKey</Code>', "an XML file"),
        ("<annotation><folder>x</folder>", "an XML file"),
        ('{"error": "rate limit"}', "a JSON file"),
        ("[1, 2]", "a JSON file"),
        (POINTER, "a Git LFS pointer"),
        ("/annex/objects/SHA256E-s1--abc.jpg\n", "a git-annex pointer"),
        ("../../.git/annex/objects/0/1/SHA256E-s1", "a git-annex pointer"),
        ("../real/1.jpg", "a text file with a path, as a link becomes in some copies"),
        ("data:image/png;base64,iVBO", "a text file with an image in Base64"),
        (
            base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(99)).decode(),
            "a text file with an image in Base64",
        ),
        ("Not found", "a text file"),
        ("Größe: 5 µm\n", "a text file"),
        ("名前", "a text file"),
        (" \n", ""),
    ],
)
def test_a_text_is_named(text, kind):
    assert identify_text(text.encode()) == kind


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF8 + PAGE.encode(),
        codecs.BOM_UTF8 + b"\n" + PAGE.encode(),
        codecs.BOM_UTF16_LE + PAGE.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + PAGE.encode("utf-16-be"),
        PAGE.replace("404", "Größe").encode("latin-1"),
        (PAGE + "é" * 9).encode()[:-1],  # cut within a character
    ],
)
def test_a_page_is_one_in_every_encoding(data):
    assert identify_text(data) == "an HTML page"


@pytest.mark.parametrize(
    "data", [b"\x00\x01\x02", b"\xff\xfe\x00\x00\x05", b"abc\x00def", b"\x80\x9f" * 9]
)
def test_bytes_are_no_text(data):
    assert identify_text(data) == ""

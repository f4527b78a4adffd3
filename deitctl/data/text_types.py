"""What a text file is by its first characters: a page, a drawing, a pointer to a file elsewhere."""

from __future__ import annotations

import codecs
import re

_BASE64_IMAGES = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
"""JPEG, PNG, GIF and WebP in Base64."""
_HTML = re.compile(r"<(!doctype\s+html|html|head|body|title|script|meta)\b", re.IGNORECASE)
_SVG = re.compile(r"<(!doctype\s+svg|svg|[\w-]+:svg)\b", re.IGNORECASE)
_MARKUP = re.compile(r"<[?!a-z]", re.IGNORECASE)
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and the encoding that each stands for."""
CONTROLS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Not tab, line ends, form feed and escape: what is no text."""


def identify_text(start: bytes) -> str:
    """Return what a text is, empty for what is none.

    Args:
        start: its first bytes.
    """
    text = _decode(start)
    if text is None:
        return ""
    text = text.lstrip()
    if text.startswith("version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer"
    if re.match(r"\S*/annex/objects/", text):
        return "a git-annex pointer"
    if text.startswith(("data:image/", *_BASE64_IMAGES)):
        return "a text file with an image in Base64"
    if re.fullmatch(r"\.\.?/[^\n]+", text):
        return "a text file with a path, as a link becomes in some copies"
    if _MARKUP.match(text):
        if _SVG.search(text) and not _HTML.match(text):
            return "an SVG drawing"
        return "an HTML page" if _HTML.search(text) else "an XML file"
    if re.match(r'[{\[]\s*(["{\[\]}\d-]|true|false|null|$)', text):
        return "a JSON file"
    return "a text file" if text else ""


def _decode(start: bytes) -> str | None:
    """Return a text of UTF-8, UTF-16 with its mark, or Latin-1; None for what is no text."""
    for mark, encoding in MARKS:
        if start.startswith(mark):
            text = start.decode(encoding, errors="replace").rstrip("\ufffd")  # a cut character
            return None if CONTROLS.search(text) else text
    try:
        # the last character may be cut
        text = start.decode("utf-8") if len(start) < 4 else _decode_cut(start)
    except UnicodeDecodeError:
        text = start.decode("latin-1")
        num_high = sum(character > "\x7e" for character in text)
        if 4 * num_high > len(text) or re.search("[\x7f-\x9f]", text):
            return None
    return None if CONTROLS.search(text) else text


def _decode_cut(start: bytes) -> str:
    try:
        return start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:
            raise
        return start[: error.start].decode("utf-8")

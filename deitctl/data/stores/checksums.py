"""Checksums that stores send with whole files."""

from __future__ import annotations

import base64
import errno
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

PIECE = 2**20
_MD5 = re.compile(r"[0-9a-f]{32}")


def verify_headers(headers: Mapping[str, str], content: bytes | BinaryIO) -> None:
    """Raise `OSError` if a file is not what the checksum in the headers that came with it says.

    Args:
        headers: of the response that brought all of the file: `x-goog-hash`, `x-amz-checksum-*`,
            `Content-MD5`, or S3's ETag, which is an MD5 of a file that was stored in one part.
        content: all of the file's bytes, or the file at its start.
    """
    checksum = _find_checksum({name.lower(): value for name, value in headers.items()})
    if checksum is not None and checksum[1] != _compute(checksum[0], content):
        raise OSError(errno.EIO, f"its {checksum[0]} is not what its store says")


def _find_checksum(headers: Mapping[str, str]) -> tuple[str, bytes] | None:
    """Return the name and value of a checksum that is computed without other packages."""
    for name in ("sha256", "crc32", "sha1"):
        value = headers.get(f"x-amz-checksum-{name}")
        if value and "-" not in value:  # a dash: of a file in parts, a checksum of their checksums
            return name, base64.b64decode(value)
    for entry in headers.get("x-goog-hash", "").split(","):
        name, _, value = entry.strip().partition("=")
        if name == "md5":
            return name, base64.b64decode(value)
    if value := headers.get("content-md5"):
        return "md5", base64.b64decode(value)
    etag = headers.get("etag", "").strip('"')
    is_plain = not headers.get("x-amz-server-side-encryption", "AES256").startswith("aws:")
    if "x-amz-request-id" in headers and is_plain and _MD5.fullmatch(etag):
        return "md5", bytes.fromhex(etag)
    return None


def _compute(name: str, content: bytes | BinaryIO) -> bytes:
    if name == "crc32":
        number = 0
        for piece in _iterate_pieces(content):
            number = zlib.crc32(piece, number)
        return number.to_bytes(4, "big")
    digest = hashlib.new(name, usedforsecurity=False)
    for piece in _iterate_pieces(content):
        digest.update(piece)
    return digest.digest()


def _iterate_pieces(content: bytes | BinaryIO) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    while piece := content.read(PIECE):
        yield piece

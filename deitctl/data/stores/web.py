"""Files on web servers, read by HTTP's ranges."""

from __future__ import annotations

import asyncio
import errno
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, BinaryIO

from deitctl.data.stores.address import redact
from deitctl.data.stores.checksums import verify_headers
from deitctl.data.stores.patience import Busy, read_retry_after
from deitctl.data.stores.stores import (
    TIMEOUT_S,
    NoRanges,
    Pace,
    StoredPath,
    has_no_version,
    name_run,
)
from deitctl.errors import DataChanged, DataError

BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which another request may succeed."""
ENCODINGS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress")
PIECE = 2**20
MAX_WHOLE = 3
"""Whole files that a server of ranges may send instead of one, as a cache on the way does now and then."""
_with_ranges: set[str] = set()
"""Hosts that have sent a range, as this process has met them."""
_num_whole: Counter[str] = Counter()
"""How often each file came whole instead of a range."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def has_ranges(address: str) -> bool:
    """Return whether the store of an address sends parts of files, as far as is known."""
    return _num_whole.get(address, 0) < (MAX_WHOLE if _get_host(address) in _with_ranges else 1)


def _note_whole(address: str) -> None:
    """Note that a file came whole; raise `OSError` if the range is worth another request."""
    _num_whole[address] += 1
    if has_ranges(address):
        raise OSError(errno.EIO, "its server sent the whole file instead of a range")


def _get_host(address: str) -> str:
    return address[: address.find("/", address.find("://") + 3)]


class WebStore:
    """Files by URL. Without ranges, `copy` reads a whole file."""

    def __init__(self, system: Any) -> None:
        """Read by a file system.

        Args:
            system: fsspec's for HTTP, whose session is used.
        """
        self.system = system

    def describe(self, address: str) -> StoredPath:
        """Return size and version of a file, by a range of one byte: a signed URL allows no HEAD."""
        described: StoredPath = self._run(self._describe, address)
        return described

    def find(self, folder: str, prefix: str = "") -> dict[str, dict[str, Any]]:
        """Raise `DataError`: the web has no folders."""
        raise DataError(
            f"{redact(folder)} cannot be listed: the web has no folders.",
            "Name each file, https://HOST/x-{000000..000146}.tar, or a text file that lists them.",
        )

    def fetch(self, file: StoredPath, offset: int, size: int) -> bytes:
        """Return bytes of a file, see `Store`."""
        data: bytes = self._run(self._fetch, file, offset, size)
        return data

    def copy(self, file: StoredPath, target: BinaryIO) -> None:
        """Write a whole file to another, and verify the checksums that its server sends.

        Raises:
            DataChanged: the file is another than it was.
            OSError: it cannot be read, or is not what its checksum says.
        """
        self._run(self._copy, file, target)

    def _run(self, function: Any, *arguments: Any) -> Any:
        from fsspec.asyn import sync

        # No bound of the whole: a slow link is none that does not answer. `_get` and `Pace` have theirs.
        return sync(self.system.loop, function, *arguments, timeout=None)

    def _get(self, session: Any, address: str, headers: Mapping[str, str]) -> Any:
        import aiohttp
        import yarl

        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=TIMEOUT_S / 2)
        url = yarl.URL(address, encoded="%" in address)
        # else a server may send another number of bytes than the file has
        plain = {"Accept-Encoding": "identity", **headers}
        return session.get(url, headers=plain, timeout=limits, auto_decompress=False)

    async def _describe(self, address: str) -> StoredPath:
        session = await self.system.set_session()
        async with self._get(session, address, {"Range": "bytes=0-0"}) as response:
            _raise_for_status(response, address)
            if response.status == 206:
                _with_ranges.add(_get_host(address))
                size = int(_parse_range(response)[2])
            elif response.status == 416:
                size = 0
            elif response.content_length is None:
                raise OSError(errno.EINVAL, "its server does not say how large it is")
            else:
                size = response.content_length
                if size > 1:
                    _note_whole(address)
            version = _get_version(response.headers)
            return StoredPath(address, size, version or name_run(address))

    async def _fetch(self, file: StoredPath, offset: int, size: int) -> bytes:
        session = await self.system.set_session()
        headers = {"Range": f"bytes={offset}-{offset + size - 1}"} | _make_condition(file)
        is_all = offset == 0 and size == file.size
        async with self._get(session, file.address, {} if is_all else headers) as response:
            _raise_for_status(response, file.address)
            _require_same(response, file)
            if response.status != 206 and not is_all:
                _note_whole(file.address)
                raise NoRanges(redact(file.address))
            if response.status == 206:
                _with_ranges.add(_get_host(file.address))
                first, _, total = _parse_range(response)
                if total != file.size:
                    raise _report_change(file)
                if first != offset:
                    raise OSError(errno.EIO, "its server sent another range")
            data, pace = bytearray(), Pace()
            async for piece in response.content.iter_chunked(PIECE):
                data += piece
                pace.require(len(data))
                if len(data) > size:
                    raise OSError(errno.EIO, "its server sent more than the range")
            if is_all and len(data) == size:
                verify_headers(response.headers, bytes(data))
            return bytes(data)

    async def _copy(self, file: StoredPath, target: BinaryIO) -> None:
        session = await self.system.set_session()
        target.seek(0)
        target.truncate()
        async with self._get(session, file.address, _make_condition(file)) as response:
            _raise_for_status(response, file.address)
            _require_same(response, file)
            count, pace = 0, Pace()
            async for piece in response.content.iter_chunked(PIECE):
                count += len(piece)
                pace.require(count)
                if count > file.size:
                    raise _report_change(file)
                await asyncio.to_thread(target.write, piece)
        if count < file.size:
            raise OSError(errno.EIO, f"{count:,} of {file.size:,} bytes came")
        await asyncio.to_thread(target.seek, 0)
        verify_headers(response.headers, target)


def _make_condition(file: StoredPath) -> dict[str, str]:
    """Return the header by which a server refuses another version than ours."""
    is_strong = not file.version.startswith("W/") and " " not in file.version
    return {"If-Match": f'"{file.version}"'} if is_strong else {}


def _get_version(headers: Mapping[str, str]) -> str:
    return (headers.get("ETag") or headers.get("Last-Modified") or "").strip('"')


def _require_same(response: Any, file: StoredPath) -> None:
    """Raise `DataChanged` for another version of a file."""
    version = _get_version(response.headers)
    is_gone = response.status in (412, 416)
    is_other = version and not has_no_version(file) and version != file.version
    if is_gone or is_other:
        raise _report_change(file)


def _report_change(file: StoredPath) -> DataChanged:
    return DataChanged(
        f"{redact(file.address)} was replaced while in use.", "Run the command again."
    )


def _parse_range(response: Any) -> tuple[int, int, int]:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None:
        raise OSError(errno.EIO, "its server does not say which range it sent")
    return int(match[1]), int(match[2]), int(match[3])


def _raise_for_status(response: Any, address: str) -> None:
    """Raise what a status means, but for those of another version."""
    status, name = response.status, redact(address)
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ENCODINGS:
        raise DataError(
            f"{name} cannot be read: its server sends it compressed ({encoding}), also where it is requested "
            "as it is.",
            "Switch that off at the server for these files, or copy them to a disk.",
        )
    if status in (200, 206, 412, 416):
        return
    reason = f"HTTP {status} {response.reason or ''}".strip()
    if status in BUSY:
        raise Busy(reason, read_retry_after(response.headers.get("Retry-After", "")))
    if status in (404, 410):
        raise FileNotFoundError(errno.ENOENT, reason, name)
    if status in (401, 403, 407):
        raise PermissionError(errno.EACCES, reason, name)
    raise OSError(errno.EINVAL, reason, name)

"""Files on web servers, read by HTTP's ranges."""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Mapping
from typing import Any, BinaryIO

from deitctl.data.stores.address import redact
from deitctl.data.stores.checksums import verify_headers
from deitctl.data.stores.patience import Busy
from deitctl.data.stores.stores import TIMEOUT_S, NoRanges, StoredPath, has_no_version, name_run
from deitctl.errors import DataChanged, DataError

BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which another request may succeed."""
PIECE = 2**20
_without_ranges: set[str] = set()
"""Hosts that send whole files alone, as this process has met them."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def has_ranges(address: str) -> bool:
    """Return whether the store of an address sends parts of files, as far as is known."""
    return _get_host(address) not in _without_ranges


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

    def find(self, folder: str) -> dict[str, dict[str, Any]]:
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
        self._run(self._copy, file, target, timeout=None)

    def _run(self, function: Any, *arguments: Any, timeout: float | None = TIMEOUT_S) -> Any:
        from fsspec.asyn import sync

        return sync(self.system.loop, function, *arguments, timeout=timeout)

    def _get(self, session: Any, address: str, headers: Mapping[str, str]) -> Any:
        import aiohttp
        import yarl

        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=TIMEOUT_S / 2)
        url = yarl.URL(address, encoded="%" in address)
        # else a server may send another number of bytes than the file has
        return session.get(url, headers={"Accept-Encoding": "identity", **headers}, timeout=limits)

    async def _describe(self, address: str) -> StoredPath:
        session = await self.system.set_session()
        async with self._get(session, address, {"Range": "bytes=0-0"}) as response:
            _raise_for_status(response, address)
            if response.status == 206:
                size = int(_parse_range(response)[2])
            elif response.status == 416:
                size = 0
            elif response.content_length is None:
                raise OSError(errno.EINVAL, "its server does not say how large it is")
            else:
                size = response.content_length
                if size > 1:
                    _without_ranges.add(_get_host(address))
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
                _without_ranges.add(_get_host(file.address))
                raise NoRanges(redact(file.address))
            if response.status == 206:
                first, _, total = _parse_range(response)
                if total != file.size:
                    raise _report_change(file)
                if first != offset:
                    raise OSError(errno.EIO, "its server sent another range")
            data = bytearray()
            async for piece in response.content.iter_chunked(PIECE):
                data += piece
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
            count = 0
            async for piece in response.content.iter_chunked(PIECE):
                count += len(piece)
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
    if status in (200, 206, 412, 416):
        return
    reason = f"HTTP {status} {response.reason or ''}".strip()
    if status in BUSY:
        pause = response.headers.get("Retry-After", "")
        raise Busy(reason, float(pause) if pause.isdecimal() else 0.0)
    if status in (404, 410):
        raise FileNotFoundError(errno.ENOENT, reason, name)
    if status in (401, 403, 407):
        raise PermissionError(errno.EACCES, reason, name)
    raise OSError(errno.EINVAL, reason, name)

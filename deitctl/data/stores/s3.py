"""Files in S3 and what speaks as it does, by its own credentials, profiles and `AWS_ENDPOINT_URL`."""

from __future__ import annotations

import errno
from typing import Any

from deitctl.data.stores.address import redact
from deitctl.data.stores.checksums import verify_headers
from deitctl.data.stores.stores import (
    Pace,
    StoredPath,
    has_no_version,
    make_stored_path,
    open_file_system,
)
from deitctl.errors import DataChanged, DataError


class S3Store:
    """Objects of buckets; public ones without credentials."""

    def __init__(self, system: Any) -> None:
        """Read by a file system.

        Args:
            system: s3fs's.
        """
        self.system = system

    def describe(self, address: str) -> StoredPath:
        """Return size and version of an object."""
        return make_stored_path(address, self._try_without_credentials("info", address))

    def find(self, folder: str, prefix: str = "") -> dict[str, dict[str, Any]]:
        """Return the descriptions of all objects below a folder, by path, see `Store`."""
        self.system.invalidate_cache()  # it remembers listings, of an hour ago perhaps
        entries: dict[str, dict[str, Any]] = self._try_without_credentials(
            "find", folder, detail=True, prefix=prefix
        )
        return entries

    def fetch(self, file: StoredPath, offset: int, size: int) -> bytes:
        """Return bytes of an object, see `Store`."""
        from fsspec.asyn import sync

        arguments = (file, offset, size)
        try:
            return bytes(sync(self.system.loop, self._fetch, *arguments, timeout=None))
        except Exception as error:
            if not self._goes_anonymous(error):
                raise
            return bytes(sync(self.system.loop, self._fetch, *arguments, timeout=None))

    async def _fetch(self, file: StoredPath, offset: int, size: int) -> bytes:
        bucket, key, _ = self.system.split_path(file.address)
        conditions = {} if has_no_version(file) else {"IfMatch": f'"{file.version}"'}
        if is_part := offset > 0 or size < file.size:
            conditions["Range"] = f"bytes={offset}-{offset + size - 1}"
        try:
            response = await self.system._call_s3(
                "get_object", Bucket=bucket, Key=key, **conditions
            )
        except OSError as error:
            if _get_status(error) in (412, 416):
                raise _report_change(file) from error
            raise
        _require_range(response, file, offset, size)
        data, pace = bytearray(), Pace()
        async with response["Body"] as body:
            while more := await body.read(size + 1 - len(data)):
                data += more
                pace.require(len(data))
        if not is_part and len(data) == size:
            verify_headers(response["ResponseMetadata"]["HTTPHeaders"], bytes(data))
        return bytes(data)

    def _try_without_credentials(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self.system, method)(*arguments, **options)
        except Exception as error:
            if not self._goes_anonymous(error):
                raise
            return getattr(self.system, method)(*arguments, **options)

    def _goes_anonymous(self, error: Exception) -> bool:
        """Where there are no credentials, ask without from now on, as public buckets allow."""
        if "NoCredentials" not in type(error).__name__:
            return False
        if not self.system.anon:  # another thread may have come first
            self.system = open_file_system("s3", anon=True)
        return True


def _require_range(response: Any, file: StoredPath, offset: int, size: int) -> None:
    """Raise what it means if a response is not a range of a file, or all of it, as it was requested."""
    version = response.get("ETag", "").strip('"')
    if version != file.version and not has_no_version(file):  # some ignore IfMatch
        raise _report_change(file)
    if offset == 0 and size == file.size:
        if response.get("ContentRange") is None:
            return
    elif response.get("ContentRange") is None:
        raise DataError(
            f"{redact(file.address)} cannot be read: its server sends no parts of objects.",
            "Copy the data to a disk, or to another store.",
        )
    span = f"bytes {offset}-{offset + size - 1}/{file.size}"
    if response["ContentRange"] != span:
        raise OSError(errno.EIO, "its server sent another range")


def _report_change(file: StoredPath) -> DataChanged:
    return DataChanged(
        f"{redact(file.address)} was replaced while in use.", "Run the command again."
    )


def _get_status(error: OSError) -> int:
    """Return the status of the response that s3fs has made an error of; 0 if there is none."""
    response = getattr(error.__cause__, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))

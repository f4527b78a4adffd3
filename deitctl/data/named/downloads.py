"""Downloads of data sets: resumed, verified by checksum, and one line where there is no network."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deitctl.data.stores.patience import read_retry_after
from deitctl.errors import DataError
from deitctl.events import Reporter
from deitctl.paths import DiskError

ATTEMPTS = 5
PATIENCE_S = 300.0
"""That a server which is busy may want to pass before the next of them."""
NOTED_S = 10.0
"""Such a pause is noted from here on."""
BUSY = (408, 425, 429)
"""Statuses below 500 that pass."""
READ_SIZE = 1 << 20
READ_TIMEOUT = 60.0
"""Seconds to the next byte."""
UNPACKED = 2
"""Times the bytes of an archive that are free before it is downloaded: it, and what is in it."""
CACHE = "$DEITCTL_CACHE"
MANUAL = "https://drive.google.com/"
"""Of addresses whose files are behind a page."""


@dataclass(frozen=True)
class Download:
    """A file that a data set is made of."""

    url: str
    name: str
    md5: str = ""
    """Empty: its publisher states none."""


class _Dropped(Exception):
    """The connection ended before the file did."""


def fetch_files(
    title: str, downloads: Sequence[Download], folder: Path, reporter: Reporter, pause: float = 1.0
) -> list[Path]:
    """Download the files that are not in a folder, and verify all; return those that were downloaded.

    Args:
        title: of the data set.
        downloads: the files.
        folder: where they lie, or are put.
        reporter: receives progress.
        pause: seconds before a second attempt, twice as many before each after it.

    Raises:
        DataError: a file cannot be had, or is damaged; the message says what to put where.
        DiskError: there is too little space, or the folder cannot be written.
    """
    missing = [each for each in downloads if not (folder / each.name).is_file()]
    for download in downloads:
        if download not in missing:
            _require_checksum(folder / download.name, download, reporter)
    fetched = []
    for number, download in enumerate(missing):
        path = folder / download.name
        try:
            _fetch(download, path, reporter, pause)
        except (urllib.error.URLError, http.client.HTTPException, _Dropped, ValueError) as error:
            raise _explain(title, error, missing[number:], folder) from error
        except OSError as error:
            raise DiskError.from_os_error(path, error, CACHE) from error
        fetched.append(path)
    return fetched


def _fetch(download: Download, path: Path, reporter: Reporter, pause: float) -> None:
    """Download a file beside its place, resuming what is there, and move it there when it is verified."""
    if download.url.startswith(MANUAL):
        raise urllib.error.URLError("Google Drive gives it to a browser alone")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    if not download.md5:
        part.unlink(missing_ok=True)  # nothing would show that its halves do not fit
    was_resumed = part.is_file()
    for attempt in range(ATTEMPTS):
        try:
            _append(download.url, part, reporter)
            break
        except (urllib.error.URLError, http.client.HTTPException, _Dropped) as error:
            reason = getattr(error, "reason", error)
            refusal = error if isinstance(error, urllib.error.HTTPError) else None
            is_final = refusal is not None and refusal.code < 500 and refusal.code not in BUSY
            if is_final or isinstance(reason, socket.gaierror) or attempt == ATTEMPTS - 1:
                raise
            pause_text = refusal.headers.get("Retry-After", "") if refusal else ""
            requested_s = read_retry_after(pause_text)
            if refusal and requested_s > PATIENCE_S:
                raise urllib.error.URLError(
                    f"HTTP {refusal.code} {reason}, to be tried again in {requested_s:,.0f} s"
                ) from error
            if requested_s >= NOTED_S:
                reporter.note(
                    f"{path.name}: its server is busy, waiting {requested_s:.0f} s for it."
                )
            time.sleep(max(requested_s, pause * 2**attempt))
    if download.md5 and (md5 := _compute_md5(part, reporter)) != download.md5:
        part.unlink()
        if was_resumed:
            return _fetch(download, path, reporter, pause)
        raise ValueError(f"what came has the MD5 {md5}, not {download.md5}")
    part.replace(path)
    return None


def _append(url: str, part: Path, reporter: Reporter) -> None:
    """Download a file from where a part of it ends."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "deitctl", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=READ_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # all of it is there, or more: the checksum says which; it is cheaper not to ask
        raise _Dropped("the server has another file than before") from error
    with response:
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0
        length = response.length
        if length is not None:
            _require_space(part, length + start, start)
        total = None if length is None else start + length
        with (
            part.open("ab" if start else "wb") as file,
            reporter.task(f"download {part.stem}", total, "bytes") as task,
        ):
            task.skip(start)
            while data := _read(response):
                file.write(data)
                task.advance(len(data))
    if total is not None and part.stat().st_size < total:
        raise _Dropped(f"the connection ended after {part.stat().st_size:,} of {total:,} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    """Return the next bytes; what goes wrong is the network's fault, not the disk's."""
    try:
        return response.read(READ_SIZE)
    except OSError as error:
        raise _Dropped(str(error) or type(error).__name__) from error


def _require_space(path: Path, num_bytes: int, num_there: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < UNPACKED * num_bytes - num_there:
        raise DiskError(
            f"{path.stem} takes {UNPACKED * num_bytes / 1e9:.1f} GB with what is in it, and "
            f"{path.parent} has {free / 1e9:.1f} GB free.",
            f"Free some space, or let {CACHE} name a folder on another disk.",
        )


def _require_checksum(path: Path, download: Download, reporter: Reporter) -> None:
    """Raise `DataError` for a file that is there, and is another than the published one."""
    try:
        md5 = _compute_md5(path, reporter) if download.md5 else ""
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    if md5 != download.md5:
        raise DataError(
            f"{path} is not the published file: its MD5 is {md5}, not {download.md5}.",
            "Remove it: the next start downloads it.",
        )


def _compute_md5(path: Path, reporter: Reporter) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    size = path.stat().st_size
    with path.open("rb") as file, reporter.task(f"verify {path.name}", size, "bytes") as task:
        while data := file.read(READ_SIZE):
            digest.update(data)
            task.advance(len(data))
    return digest.hexdigest()


def _explain(title: str, error: Exception, missing: Sequence[Download], folder: Path) -> DataError:
    """Return the error of files that cannot be downloaded: which they are, and where they go."""
    reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    files = ", ".join(
        each.url
        + (f" as {each.name}" if Path(each.url).name != each.name else "")
        + (f" (MD5 {each.md5})" if each.md5 else "")
        for each in missing
    )
    return DataError(
        f"{title} cannot be downloaded: {reason}.", f"Put into {folder}, and start again: {files}."
    )

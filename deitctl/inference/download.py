"""Downloads over http and https with limits on time, bytes and redirects."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.error
import urllib.request
from types import TracebackType
from typing import Any

from deitctl.errors import DataError

MAX_DOWNLOAD = 64 * 2**20  # bytes of a body
READ_TIMEOUT = 20.0  # seconds to the next byte
DEADLINE = 60.0
"""Seconds of a download with redirects; a trickle of bytes never exceeds `READ_TIMEOUT`."""


def fetch(url: str, *, seconds: float = DEADLINE) -> bytes:
    """Return the body of an http or https address.

    At most ten redirects are followed, to http and https only. A compressed body is not unpacked.

    Args:
        url: the address.
        seconds: limit on the duration.

    Raises:
        DataError: the download fails, exceeds `MAX_DOWNLOAD` bytes or takes too long.
    """
    with _Cutoff(seconds) as cutoff:
        try:
            with _build_opener(cutoff).open(url, timeout=min(READ_TIMEOUT, seconds)) as response:
                data: bytes = response.read(MAX_DOWNLOAD + 1)
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
            raise DataError(
                _describe_timeout(url, seconds)
                if cutoff.is_over
                else f"{url} cannot be fetched: {reason}."
            ) from error
    if cutoff.is_over:  # a closed connection looks like the end of the body
        raise DataError(_describe_timeout(url, seconds))
    if len(data) > MAX_DOWNLOAD:
        raise DataError(f"{url} is larger than {MAX_DOWNLOAD // 2**20} MB.")
    return data


def _describe_timeout(url: str, seconds: float) -> str:
    return f"{url} took longer than {seconds:.0f} seconds."


class _Cutoff:
    """Shuts down every connection at the deadline, even during a read or a handshake."""

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True

    def __enter__(self) -> _Cutoff:
        self._timer.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._timer.cancel()
        for duplicate in self._sockets:
            duplicate.close()

    def connect(self, *args: Any, **options: Any) -> socket.socket:
        """Open a connection as `socket.create_connection` does, and register it."""
        if self.is_over:
            raise TimeoutError("the deadline has passed")
        opened = socket.create_connection(*args, **options)
        # TLS takes over the original; shutting down the duplicate shuts down both
        self._sockets.append(opened.dup())
        return opened

    def _shut(self) -> None:
        self.is_over = True
        for duplicate in self._sockets:
            try:
                duplicate.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # already closed


def _build_opener(cutoff: _Cutoff) -> urllib.request.OpenerDirector:
    """Return an opener for http and https only; urllib's default also opens file, ftp and data."""

    def http_connection(host: str, **options: Any) -> http.client.HTTPConnection:
        return _register_connections(cutoff, http.client.HTTPConnection(host, **options))

    def https_connection(host: str, **options: Any) -> http.client.HTTPConnection:
        return _register_connections(cutoff, http.client.HTTPSConnection(host, **options))

    class Http(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(http_connection, request)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(https_connection, request)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        Http(),
        Https(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _register_connections(
    cutoff: _Cutoff, connection: http.client.HTTPConnection
) -> http.client.HTTPConnection:
    connection._create_connection = cutoff.connect  # type: ignore[attr-defined]
    return connection

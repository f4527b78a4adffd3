"""Images from web addresses: so much time, so many bytes, so many detours, and no other protocol."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.error
import urllib.request
from types import TracebackType
from typing import Any

from deitctl.errors import DataError

MAX_DOWNLOAD = 64 * 2**20
"""Bytes of a body."""
SILENCE = 20.0
"""Seconds to wait for the next byte."""
DEADLINE = 60.0
"""Seconds for the whole of it, redirects included: a byte now and then would never be silence."""


def fetch(url: str, *, seconds: float = DEADLINE) -> bytes:
    """Return the body of an http or https address, at most `MAX_DOWNLOAD` bytes in at most `seconds`.

    Redirects are followed ten times, to http and https alone. A compressed body is not unpacked.

    Raises:
        DataError: it cannot be had, is too large or too slow.
    """
    with _Cutoff(seconds) as cutoff:
        try:
            with _opener(cutoff).open(url, timeout=min(SILENCE, seconds)) as response:
                data: bytes = response.read(MAX_DOWNLOAD + 1)
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            why = " ".join(str(getattr(error, "reason", error)).split())[:200]
            raise DataError(
                _too_slow(url, seconds) if cutoff.over else f"{url} cannot be fetched: {why}."
            ) from error
    if cutoff.over:  # a shut connection looks like the end of the body
        raise DataError(_too_slow(url, seconds))
    if len(data) > MAX_DOWNLOAD:
        raise DataError(f"{url} is larger than {MAX_DOWNLOAD // 2**20} MB.")
    return data


def _too_slow(url: str, seconds: float) -> str:
    return f"{url} is not there after {seconds:.0f} seconds."


class _Cutoff:
    """Shuts every connection of a download when its time is over, in the middle of a read or a handshake."""

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True

    def __enter__(self) -> _Cutoff:
        self._timer.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._timer.cancel()
        for twin in self._sockets:
            twin.close()

    def connect(self, *args: Any, **options: Any) -> socket.socket:
        """Open a connection as `socket.create_connection` does, and remember it."""
        if self.over:
            raise TimeoutError("the time is over")
        opened = socket.create_connection(*args, **options)
        self._sockets.append(
            opened.dup()
        )  # TLS takes the first one away; to shut the twin shuts both
        return opened

    def _shut(self) -> None:
        self.over = True
        for twin in self._sockets:
            try:
                twin.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has ended by itself


def _opener(cutoff: _Cutoff) -> urllib.request.OpenerDirector:
    """Return an opener that knows http and https alone (the usual one knows file, ftp and data too)."""

    def http_connection(host: str, **options: Any) -> http.client.HTTPConnection:
        return _through(cutoff, http.client.HTTPConnection(host, **options))

    def https_connection(host: str, **options: Any) -> http.client.HTTPConnection:
        return _through(cutoff, http.client.HTTPSConnection(host, **options))

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


def _through(cutoff: _Cutoff, connection: http.client.HTTPConnection) -> http.client.HTTPConnection:
    connection._create_connection = cutoff.connect  # type: ignore[attr-defined]  # http.client's place for this
    return connection

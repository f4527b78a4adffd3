"""Servers that never end, send elsewhere, or send too much: docs/security.md, "Addresses"."""

from __future__ import annotations

import gzip
import http.server
import io
import threading
import time
from collections.abc import Iterator

import pytest
from PIL import Image

from deitctl.data.decode import decode
from deitctl.errors import DataError
from deitctl.inference import download as fetching
from deitctl.inference.download import fetch


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    return buffer.getvalue()


class Hostile(http.server.BaseHTTPRequestHandler):
    """Behaves as its path says."""

    protocol_version = "HTTP/1.0"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        try:
            getattr(self, self.path.strip("/").partition("?")[0])()
        except OSError:  # the client has gone
            self.close_connection = True

    def answer(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def good(self) -> None:
        self.answer(png())

    def redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.end_headers()

    def once(self) -> None:
        self.redirect("/good")

    def loop(self) -> None:
        self.redirect("/loop")

    def ever_further(self) -> None:
        self.redirect(f"/ever_further?{time.monotonic_ns()}")

    def to_file(self) -> None:
        self.redirect("file:///etc/passwd")

    def to_ftp(self) -> None:
        self.redirect("ftp://127.0.0.1/x.png")

    def to_data(self) -> None:
        self.redirect("data:image/png;base64,AAAA")

    def endless(self) -> None:
        self.answer(b"")
        while True:
            self.wfile.write(b"\0" * 65536)

    def drip(self) -> None:
        self.answer(b"")
        while True:
            self.wfile.write(b"x")
            time.sleep(0.05)

    def drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
        while True:
            self.wfile.write(b"x")
            time.sleep(0.05)

    def silent(self) -> None:
        time.sleep(5)

    def long_header(self) -> None:
        self.answer(png(), X="x" * 70_000)

    def many_headers(self) -> None:
        self.answer(png(), **{f"X{n}": "x" for n in range(500)})

    def gzipped(self) -> None:
        self.answer(gzip.compress(b"\0" * 10**7), Content_Encoding="gzip")

    def lies(self) -> None:
        self.answer(png(), Content_Length="999999999999")

    def missing(self) -> None:
        self.send_error(404)

    def chatter(self) -> None:
        self.wfile.write(b"\xff\xfe\0\r\n" * 9)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    served.daemon_threads = True
    threading.Thread(
        target=served.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    ).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


@pytest.fixture(autouse=True)
def _directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("path", ["good", "once"])
def test_an_image_and_a_redirect_to_one_are_fetched(server, path):
    assert fetch(f"{server}/{path}") == png()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("loop", "infinite loop"),
        ("ever_further", "infinite loop"),
        ("to_file", "not allowed"),
        ("to_data", "not allowed"),
        ("to_ftp", "unknown url type"),
        ("long_header", "got more than 65536 bytes"),
        ("many_headers", "got more than 100 headers"),
        ("missing", "Not Found"),
        ("chatter", "cannot be fetched"),
    ],
)
def test_what_a_server_may_not_do_is_one_line(server, path, says):
    with pytest.raises(DataError, match=says) as caught:
        fetch(f"{server}/{path}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("path", ["drip", "drip_headers", "silent"])
def test_a_server_that_trickles_is_cut_off_at_the_deadline(server, path):
    begun = time.monotonic()
    with pytest.raises(DataError, match="took longer than 1 seconds|timed out"):
        fetch(f"{server}/{path}", seconds=0.6)
    assert time.monotonic() - begun < 3


def test_a_body_without_end_is_left_at_the_limit(server, monkeypatch):
    monkeypatch.setattr(fetching, "MAX_DOWNLOAD", 2**20)
    with pytest.raises(DataError, match="is larger than 1 MB"):
        fetch(f"{server}/endless")


def test_a_compressed_body_is_not_unpacked(server):
    data = fetch(f"{server}/gzipped")
    assert len(data) < 20_000
    with pytest.raises(DataError, match="is a GZIP archive, not an image; unpack it"):
        decode(data, "x")


def test_a_length_that_lies_takes_neither_time_nor_memory(server):
    assert fetch(f"{server}/lies") == png()


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://[::1",
        "https://a b/",
        "http://x:99999/",
        "http://\ud800/",
        "http://a\r\nb/",
    ],
)
def test_an_address_that_is_none_is_one_line(url):
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch(url)

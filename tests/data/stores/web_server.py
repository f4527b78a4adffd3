"""A web server in this process, with ranges, and with what goes wrong on the way."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Listener(ThreadingHTTPServer):
    """Many connections at a time, and a word about none that is reset."""

    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class WebServer:
    """Files by path, and how they are sent."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        """By path, or by path and query where they differ in this."""
        self.has_ranges = True
        self.requests: list[tuple[str, str]] = []
        """Path and range of each."""
        self.failures: list[int | str] = []
        """What happens to the next requests: a status, `cut` (half of the body), `reset`, `whole`."""
        self.headers: dict[str, str] = {}
        """Sent with each file, beside its ETag."""
        self.has_etags = True
        self.url = ""


def _answer(server: WebServer, request: BaseHTTPRequestHandler) -> None:
    path, span = request.path.partition("?")[0], request.headers.get("Range", "")
    server.requests.append((request.path, span))
    failure = server.failures.pop(0) if server.failures else 0
    content = server.files.get(request.path, server.files.get(path))
    if failure == "reset":
        request.close_connection = True
        return
    if content is None or (isinstance(failure, int) and failure):
        request.send_response(failure if isinstance(failure, int) and failure else 404)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    etag = hashlib.md5(content).hexdigest()
    if request.headers.get("If-Match", f'"{etag}"') != f'"{etag}"':
        request.send_response(412)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", span)
    if match and int(match[1]) >= len(content):
        request.send_response(416)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    if match and server.has_ranges and failure != "whole":
        first, last = int(match[1]), min(int(match[2]), len(content) - 1)
        body = content[first : last + 1]
        request.send_response(206)
        request.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
    else:
        body = content
        request.send_response(200)
    if server.has_etags:
        request.send_header("ETag", f'"{etag}"')
    request.send_header("Content-Length", str(len(body)))
    for name, value in server.headers.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body[: len(body) // 2] if failure == "cut" else body)
    request.close_connection = failure == "cut"


@contextmanager
def serve() -> Generator[WebServer]:
    """Serve until the block ends."""
    server = WebServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _answer(server, self)

        def log_message(self, *arguments: object) -> None:
            pass

    listener = Listener(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listener.server_port}"
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
